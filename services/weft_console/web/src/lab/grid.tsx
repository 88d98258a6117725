/** Tokens across, layers up: the strongest features of every cell, shaded by how strong they are. */
import { useRef, useState } from "preact/hooks";
import { figure, percent } from "../format";
import { showToken } from "../ui/token-text";
import { cellKey, featureName, type Fired, type Grid } from "./firing";
import { beside, takeTabStop } from "../ui/tab-stop";
import { pinKey } from "./state";

const BUTTONS = ".fires, .lab-token";
/** Tokens that are drawn at once; the others are a step away. */
const COLUMNS = 40;

interface Props {
  grid: Grid;
  tokens: string[];
  perCell: number;
  token: number | null;
  pinned: ReadonlySet<string>;
  onToken: (token: number | null) => void;
  onPin: (place: { layer: number; index: number }) => void;
}

export function FiringGrid({ grid, tokens, perCell, token, pinned, onToken, onPin }: Props) {
  const table = useRef<HTMLTableElement>(null);
  // A link may name a token that is further on.
  const [start, setStart] = useState(() => COLUMNS * Math.floor((token ?? 0) / COLUMNS));
  const first = Math.min(start, Math.max(0, tokens.length - 1));
  const shown = tokens.map((text, position) => ({ text, position })).slice(first, first + COLUMNS);
  const stop = token !== null && shown.some(({ position }) => position === token) ? token : first;
  const onKey = (event: KeyboardEvent) => {
    const next = neighbour(event.target as HTMLElement, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  };
  // One token and one chip are in the page's tab order.
  const onFocus = (event: FocusEvent) => {
    const button = event.target as HTMLElement;
    const kind = [".fires", ".lab-token"].find((one) => button.matches(one));
    if (kind && table.current) takeTabStop(table.current, button, kind);
  };
  let isFirst = true;
  return (
    <>
      {tokens.length > COLUMNS ? (
        <div class="row lab-pager">
          <button type="button" class="button small" disabled={first === 0} onClick={() => setStart(Math.max(0, first - COLUMNS))}>Earlier tokens</button>
          <span class="note">tokens {first} to {first + shown.length - 1} of {tokens.length}</span>
          <button type="button" class="button small" disabled={first + COLUMNS >= tokens.length} onClick={() => setStart(first + COLUMNS)}>Later tokens</button>
        </div>
      ) : null}
      <div class="scroll lab-scroll" role="region" aria-label="What fires where, table" tabIndex={0}>
        <table class="lab-grid" ref={table} onKeyDown={onKey} onFocusCapture={onFocus}>
          <caption class="visually-hidden">The strongest features by layer and token; arrow keys move between them and the tokens above, Enter pins</caption>
          <thead>
            <tr>
              <th scope="col">layer</th>
              {shown.map(({ text, position }) => (
                <th key={position} scope="col">
                  <button type="button" class="lab-token mono" tabIndex={position === stop ? 0 : -1} aria-pressed={token === position} title={`position ${position}`} onClick={() => onToken(token === position ? null : position)}>{showToken(text)}</button>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {grid.layers.map((layer) => (
              <tr key={layer}>
                <th scope="row">{layer}</th>
                {shown.map(({ text, position }) => {
                  const cell = grid.cells.get(cellKey(layer, position)) ?? [];
                  return (
                    <td key={position} class={token === position ? "is-chosen" : ""} title={told(cell, text)}>
                      <div class={perCell === 1 ? "lab-single" : ""}>
                        {cell.slice(0, perCell).map((fired) => {
                          const tabIndex = isFirst ? 0 : -1;
                          isFirst = false;
                          return <Chip key={fired.feature.index} fired={fired} token={text} tabIndex={tabIndex} isPinned={pinned.has(pinKey(fired.feature))} onPin={onPin} />;
                        })}
                        {cell.length > perCell ? <span class="lab-more">+{cell.length - perCell}</span> : null}
                      </div>
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

interface ChipProps {
  fired: Fired;
  token: string;
  tabIndex: number;
  isPinned: boolean;
  onPin: Props["onPin"];
}

function Chip({ fired, token, tabIndex, isPinned, onPin }: ChipProps) {
  const { feature, activation, strength } = fired;
  const name = featureName(feature);
  return (
    <button type="button" class="fires" tabIndex={tabIndex} aria-pressed={isPinned} data-feature={pinKey(feature)} style={{ "--heat": Math.round(100 * strength) }}
      aria-label={`${name}, layer ${feature.layer}, at ${showToken(token)}: activation ${figure(activation)}`} onClick={() => onPin(feature)}>
      {feature.label ? name : feature.index}
    </button>
  );
}

/** What hovering tells: the first few features of a cell with their values. */
function told(cell: Fired[], token: string): string {
  if (cell.length === 0) return `nothing fires at ${showToken(token)}`;
  const lines = cell.slice(0, 6).map(({ feature, activation, strength }) => `${featureName(feature)} (${pinKey(feature)}): ${figure(activation)}, ${percent(strength, 0)}`);
  return [...lines, ...(cell.length > 6 ? [`and ${cell.length - 6} more`] : [])].join("\n");
}

/** The button beside another one: left and right within the row, up and down within the column, whose token is on top. */
function neighbour(from: HTMLElement, key: string): HTMLElement | null {
  const cell = from.closest("td, th");
  const row = cell?.closest("tr");
  if (!cell || !row || !from.matches(BUTTONS)) return null;
  if (key !== "ArrowUp" && key !== "ArrowDown") return beside(row, from, BUTTONS, key);
  const column = [...row.children].indexOf(cell);
  const buttons = [...(row.closest("table")?.rows ?? [])].flatMap((other) => [...(other.children[column]?.querySelectorAll<HTMLElement>(BUTTONS) ?? [])]);
  return buttons[buttons.indexOf(from) + (key === "ArrowUp" ? -1 : 1)] ?? null;
}
