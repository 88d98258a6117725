/** The pinned features: where each fires, what is done to it, and where. */
import type { TargetedKeyboardEvent } from "preact";
import { figure } from "../format";
import { showToken } from "../ui/token-text";
import { OriginMark } from "../ui/origin";
import { beside, takeTabStop } from "../ui/tab-stop";
import type { FiringFeature } from "./firing";
import { featurePath } from "./list";
import { pinKey, type Change, type Pin } from "./state";

const CELL = "button.cell";
/** Choices by their words; `own` has an amount of its own. */
const CHOICES = [["none", "Leave as it is"], ["ablate", "Ablate"], ["factor", "Times"], ["value", "Set to"], ["add", "Add"]] as const;
type Choice = (typeof CHOICES)[number][0];
const AMOUNTS: Record<Choice, number> = { none: 0, ablate: 0, factor: 2, value: 1, add: 1 };

interface Props {
  pins: Pin[];
  tokens: string[];
  transcoder: string;
  /** What is known of pinned features on this text, by name. */
  known: ReadonlyMap<string, FiringFeature>;
  onChange: (key: string, part: Partial<Pin>) => void;
  onUnpin: (pin: Pin) => void;
}

export function Pins({ pins, tokens, transcoder, known, onChange, onUnpin }: Props) {
  return (
    <ul class="lab-pins" data-list="pins">
      {pins.map((pin) => (
        <PinRow key={pinKey(pin)} pin={pin} tokens={tokens} transcoder={transcoder} feature={known.get(pinKey(pin)) ?? null}
          onChange={(part) => onChange(pinKey(pin), part)} onUnpin={() => onUnpin(pin)} />
      ))}
    </ul>
  );
}

interface RowProps {
  pin: Pin;
  tokens: string[];
  transcoder: string;
  feature: FiringFeature | null;
  onChange: (part: Partial<Pin>) => void;
  onUnpin: () => void;
}

function PinRow({ pin, tokens, transcoder, feature, onChange, onUnpin }: RowProps) {
  const name = `L${pin.layer} · ${pin.index}`;
  const choice = choiceOf(pin.change);
  const most = Math.max(...(feature?.activations ?? []), 1e-12);
  const at = new Map((feature?.positions ?? []).map((position, i): [number, number] => [position, feature!.activations[i]!]));
  const choose = (next: Choice) => {
    if (next === "none") onChange({ change: null });
    else onChange({ change: { kind: next === "ablate" ? "factor" : next, amount: next === "value" && feature ? Number(figureOf(2 * most, feature)) : AMOUNTS[next] } });
  };
  const toggle = (position: number) => onChange({
    positions: pin.positions.includes(position) ? pin.positions.filter((one) => one !== position) : [...pin.positions, position].sort((a, b) => a - b),
  });
  return (
    <li class="card lab-pin" data-pin={pinKey(pin)}>
      <div class="row">
        <p class="lab-pin-name"><a href={featurePath(transcoder, pin)}>{feature?.label ? feature.label.text : name}</a>{feature?.label ? <> <span class="note">{name}</span> <OriginMark label={feature.label} /></> : null}</p>
        <button type="button" class="button quiet small" aria-label={`Unpin ${name}`} onClick={onUnpin}>✕</button>
      </div>
      <div class="on-prompt" role="group" aria-label={`Where ${name} is changed; arrow keys move between tokens`} onKeyDown={onStripKey}
        onFocusCapture={(event) => { if ((event.target as HTMLElement).matches(CELL)) takeTabStop(event.currentTarget, event.target as HTMLElement, CELL); }}>
        {tokens.map((token, position) => {
          const value = at.get(position);
          return position === 0 ? <span key={position} class="cell">{showToken(token)}</span> : (
            <button key={position} type="button" class={`cell${value === undefined ? "" : " is-active"}`} tabIndex={position === 1 ? 0 : -1} aria-pressed={pin.positions.includes(position)}
              title={value === undefined ? `position ${position}: silent` : `position ${position}: activation ${figure(value)}`} style={{ "--heat": value === undefined ? 0 : Math.round((100 * value) / most) }} onClick={() => toggle(position)}>
              {showToken(token)}
            </button>
          );
        })}
      </div>
      <div class="row lab-change">
        <label class="field-inline">
          <span class="visually-hidden">Change of {name}</span>
          <select value={choice} onChange={(event) => choose(event.currentTarget.value as Choice)}>
            {CHOICES.map(([value, words]) => <option key={value} value={value}>{words}</option>)}
          </select>
        </label>
        {pin.change && choice !== "ablate" ? (
          <input type="number" step="any" class="lab-amount" aria-label={`Amount for ${name}`} value={pin.change.amount}
            onInput={(event) => { const amount = event.currentTarget.valueAsNumber; if (Number.isFinite(amount) && pin.change) onChange({ change: { ...pin.change, amount } }); }}
            onBlur={(event) => { event.currentTarget.value = String(pin.change!.amount); }} />
        ) : null}
        <span class="note">{where(pin, feature)}</span>
        {pin.positions.length > 0 ? <button type="button" class="button quiet small" onClick={() => onChange({ positions: [] })}>Everywhere</button> : null}
      </div>
    </li>
  );
}

function onStripKey(event: TargetedKeyboardEvent<HTMLElement>): void {
  const next = beside(event.currentTarget, event.target as HTMLElement, CELL, event.key);
  if (!next) return;
  event.preventDefault();
  next.focus();
}

/** Two significant digits are enough to begin with. */
function figureOf(value: number, feature: FiringFeature): string {
  return feature.activations.length > 0 ? value.toPrecision(2) : "1";
}

function choiceOf(change: Change | null): Choice {
  if (!change) return "none";
  return change.kind === "factor" && change.amount === 0 ? "ablate" : change.kind;
}

/** Where a change is made, in words. */
function where(pin: Pin, feature: FiringFeature | null): string {
  const isSilent = feature !== null && feature.positions.length === 0;
  if (pin.positions.length > 0) return `at position${pin.positions.length > 1 ? "s" : ""} ${pin.positions.join(", ")}`;
  if (!pin.change) return isSilent ? "silent on this text" : "choose tokens, or change it everywhere";
  if (pin.change.kind === "factor") return isSilent ? "silent on this text: nothing to multiply" : "wherever it is active";
  return pin.change.kind === "value" ? "at every token of the text" : "at every token, those that follow too";
}
