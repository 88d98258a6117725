/** What is searched for, as the address holds it and as the backend is asked. */

export const BOUNDED = ["density", "max_activation", "decoder_norm", "score"] as const;
export type Bounded = (typeof BOUNDED)[number];
export const STATES = ["active", "dense", "dead"] as const;
export const LABEL_STATES = ["labelled", "unlabelled", "human", "model"] as const;
export const SCORES = ["detection", "fuzzing", "intruder", "embedding"] as const;
export const SORTS = ["layer", "density", "max_activation", "mean_activation", "decoder_norm", "last_layer", "score"] as const;
const MAX_TEXT = 500;
const MAX_LAYERS = 1000;

export interface FeatureQuery {
  by: "label" | "token";
  text: string;
  /** As written: `0-3, 7`. */
  layers: string;
  states: string[];
  /** Least and most of each figure, as written; densities in percent. */
  bounds: Record<Bounded, [string, string]>;
  labelState: string;
  scoreKind: string;
  /** Empty: by layer, or for a token by how often it triggers. */
  sort: string;
  falls: boolean;
}

export function emptyQuery(): FeatureQuery {
  return {
    by: "label", text: "", layers: "", states: [], labelState: "", scoreKind: "detection", sort: "", falls: true,
    bounds: { density: ["", ""], max_activation: ["", ""], decoder_norm: ["", ""], score: ["", ""] },
  };
}

export function readQuery(search: string): FeatureQuery {
  const values = new URLSearchParams(search);
  const query = emptyQuery();
  const oneOf = (key: string, allowed: readonly string[], otherwise: string) => {
    const value = values.get(key) ?? "";
    return allowed.includes(value) ? value : otherwise;
  };
  const token = values.get("token");
  query.by = token === null ? "label" : "token";
  query.text = (token ?? values.get("label") ?? "").slice(0, MAX_TEXT);
  query.layers = (values.get("layers") ?? "").slice(0, MAX_TEXT);
  query.states = STATES.filter((state) => (values.get("states") ?? "").split(",").includes(state));
  for (const name of BOUNDED) query.bounds[name] = [values.get(`${name}_min`) ?? "", values.get(`${name}_max`) ?? ""];
  query.labelState = oneOf("label_state", LABEL_STATES, "");
  query.scoreKind = oneOf("score_kind", SCORES, "detection");
  query.sort = oneOf("sort", SORTS, "");
  query.falls = values.get("order") !== "rising";
  return query;
}

/** `?…`, or nothing where nothing is asked. */
export function writeQuery(query: FeatureQuery): string {
  const values = new URLSearchParams();
  if (query.text || query.by === "token") values.set(query.by, query.text);
  if (query.layers.trim()) values.set("layers", query.layers.trim());
  if (query.states.length > 0) values.set("states", query.states.join(","));
  for (const name of BOUNDED) {
    const [least, most] = query.bounds[name];
    if (least) values.set(`${name}_min`, least);
    if (most) values.set(`${name}_max`, most);
  }
  if (query.labelState) values.set("label_state", query.labelState);
  if (query.scoreKind !== "detection") values.set("score_kind", query.scoreKind);
  if (query.sort) values.set("sort", query.sort);
  if (query.sort && !query.falls) values.set("order", "rising");
  const text = values.toString();
  return text ? `?${text}` : "";
}

/** `0-3, 7` as numbers; null where it is no such list. */
export function layersOf(text: string): number[] | null {
  const layers = new Set<number>();
  for (const part of text.split(",").map((one) => one.trim()).filter(Boolean)) {
    const range = /^(\d{1,4})(?:\s*[-–]\s*(\d{1,4}))?$/.exec(part);
    if (!range) return null;
    const first = Number(range[1]);
    const last = Number(range[2] ?? range[1]);
    if (last < first) return null;
    for (let layer = first; layer <= last && layers.size <= MAX_LAYERS; layer++) layers.add(layer);
  }
  return layers.size <= MAX_LAYERS ? [...layers].sort((a, b) => a - b) : null;
}

/** Whether a bound can be asked; an empty one bounds nothing. */
export function isNumber(written: string): boolean {
  return written.trim() === "" || Number.isFinite(Number(written));
}

/** What is wrong with what is written, for the person to mend; null where it can be asked. */
export function problemOf(query: FeatureQuery): string | null {
  if (layersOf(query.layers) === null) return `“${query.layers.trim()}” is no list of layers; write them as 0-3, 7.`;
  for (const name of BOUNDED) {
    const wrong = query.bounds[name].find((text) => !isNumber(text));
    if (wrong !== undefined) return `“${wrong}” is no number; write 0.5, for example.`;
  }
  return null;
}

/** The parameters that the backend is asked with, less the page. */
export function askedOf(query: FeatureQuery): URLSearchParams {
  const asked = new URLSearchParams();
  // Blanks around words say nothing; those around a token are part of it.
  const text = query.by === "label" ? query.text.trim() : query.text;
  if (text) asked.set(query.by, text);
  const layers = layersOf(query.layers) ?? [];
  if (layers.length > 0) asked.set("layers", layers.join(","));
  if (query.states.length > 0) asked.set("states", query.states.join(","));
  let hasScore = query.sort === "score";
  for (const name of BOUNDED) {
    for (const [end, written] of [["min", query.bounds[name][0]], ["max", query.bounds[name][1]]] as const) {
      if (written.trim() === "") continue;
      asked.set(`${name}_${end}`, String(name === "density" ? Number((Number(written) / 100).toPrecision(12)) : Number(written)));
      if (name === "score") hasScore = true;
    }
  }
  if (query.labelState) asked.set("label_state", query.labelState);
  if (hasScore) asked.set("score_kind", query.scoreKind);
  if (query.sort) asked.set("order_by", query.falls ? `${query.sort} desc` : query.sort);
  return asked;
}

/** How many filters are set, beside the text and the order. */
export function numFilters(query: FeatureQuery): number {
  const bounds = BOUNDED.filter((name) => query.bounds[name].some((text) => text.trim() !== ""));
  return bounds.length + [query.layers.trim(), query.states.length > 0, query.labelState].filter(Boolean).length;
}
