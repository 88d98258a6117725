/** What a person has set in the lab, kept in the address so that a link does the same again. */

export type ChangeKind = "factor" | "value" | "add";

export interface Change {
  kind: ChangeKind;
  amount: number;
}

export interface Pin {
  layer: number;
  index: number;
  /** What is done to it; null where it is only looked at. */
  change: Change | null;
  /** Where, by position; none is everywhere. */
  positions: number[];
}

export interface LabState {
  transcoder: string;
  /** The text that is looked at; empty where nothing was asked yet. */
  prompt: string;
  /** As written: `3-8, 12`; empty is all. */
  layers: string;
  /** The position that the list is of; null is all. */
  token: number | null;
  /** Features that a cell shows. */
  perCell: number;
  pins: Pin[];
  newTokens: number;
  /** Whether the changes were run, so that a link runs them again. */
  isRun: boolean;
}

/** As many as the service changes at once. */
export const MAX_PINS = 100;
export const MAX_NEW_TOKENS = 200;
export const MAX_PER_CELL = 4;
const SIGNS: Record<ChangeKind, string> = { factor: "x", value: "=", add: "+" };
const KINDS: Record<string, ChangeKind> = { x: "factor", "=": "value", "+": "add" };
const PIN = /^(\d{1,4})-(\d{1,9})(?:([x=+])(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?))?(?:@(\d+(?:\.\d+)*))?$/i;

export const NOTHING: LabState = { transcoder: "", prompt: "", layers: "", token: null, perCell: 1, pins: [], newTokens: 20, isRun: false };

export function readLab(search: string): LabState {
  const values = new URLSearchParams(search);
  const whole = (key: string, otherwise: number, low: number, high: number) => {
    const text = values.get(key) ?? "";
    return /^\d{1,6}$/.test(text) ? Math.min(high, Math.max(low, Number(text))) : otherwise;
  };
  const token = whole("token", -1, 0, 1e6);
  const pins = new Map<string, Pin>();
  for (const text of values.getAll("pin").slice(0, MAX_PINS)) {
    const pin = readPin(text);
    if (pin) pins.set(pinKey(pin), pin);
  }
  return {
    transcoder: values.get("transcoder") ?? "",
    prompt: values.get("prompt") ?? "",
    layers: values.get("layers") ?? "",
    token: token < 0 ? null : token,
    perCell: whole("cell", NOTHING.perCell, 1, MAX_PER_CELL),
    pins: [...pins.values()],
    newTokens: whole("tokens", NOTHING.newTokens, 1, MAX_NEW_TOKENS),
    isRun: values.get("run") === "1",
  };
}

export function writeLab(state: LabState): string {
  const values = new URLSearchParams();
  if (state.transcoder) values.set("transcoder", state.transcoder);
  if (state.prompt) values.set("prompt", state.prompt);
  if (state.layers.trim()) values.set("layers", state.layers.trim());
  if (state.token !== null) values.set("token", String(state.token));
  if (state.perCell !== NOTHING.perCell) values.set("cell", String(state.perCell));
  for (const pin of state.pins) values.append("pin", writePin(pin));
  if (state.newTokens !== NOTHING.newTokens) values.set("tokens", String(state.newTokens));
  if (state.isRun) values.set("run", "1");
  const text = values.toString();
  return text ? `?${text}` : "";
}

/** The name of a feature within its transcoder. */
export function pinKey(pin: { layer: number; index: number }): string {
  return `${pin.layer}-${pin.index}`;
}

function writePin(pin: Pin): string {
  const change = pin.change ? `${SIGNS[pin.change.kind]}${pin.change.amount}` : "";
  return `${pinKey(pin)}${change}${pin.positions.length > 0 ? `@${pin.positions.join(".")}` : ""}`;
}

function readPin(text: string): Pin | null {
  const found = PIN.exec(text);
  if (!found) return null;
  const amount = Number(found[4] ?? NaN);
  const kind = KINDS[found[3] ?? ""];
  return {
    layer: Number(found[1]),
    index: Number(found[2]),
    change: kind && Number.isFinite(amount) ? { kind, amount } : null,
    positions: [...new Set((found[5] ?? "").split(".").filter(Boolean).map(Number))].sort((a, b) => a - b),
  };
}

/** Pins a feature, or takes it off. */
export function togglePin(state: LabState, place: { layer: number; index: number }): Partial<LabState> {
  const key = pinKey(place);
  if (state.pins.some((pin) => pinKey(pin) === key)) return { pins: state.pins.filter((pin) => pinKey(pin) !== key) };
  return { pins: [...state.pins, { layer: place.layer, index: place.index, change: null, positions: [] }].slice(-MAX_PINS) };
}

export function changePin(state: LabState, key: string, part: Partial<Pin>): Partial<LabState> {
  return { pins: state.pins.map((pin) => (pinKey(pin) === key ? { ...pin, ...part } : pin)) };
}

/** The layers that a text names, rising; null where it cannot be read or names one that there is not. */
export function parseLayers(text: string, numLayers: number): number[] | null {
  const found = new Set<number>();
  for (const part of text.split(/[\s,]+/).filter(Boolean)) {
    const ends = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part);
    if (!ends) return null;
    const first = Number(ends[1]);
    const last = Number(ends[2] ?? ends[1]);
    if (first > last || last >= numLayers) return null;
    for (let layer = first; layer <= last; layer++) found.add(layer);
  }
  return [...found].sort((a, b) => a - b);
}

/** What the backend is asked to change. */
export function changesOf(pins: Pin[]): Record<string, unknown>[] {
  return pins.flatMap((pin) => (pin.change ? [{ feature: pinKey(pin), positions: pin.positions, [pin.change.kind]: pin.change.amount }] : []));
}
