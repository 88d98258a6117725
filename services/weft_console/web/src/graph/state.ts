/** What a person has set on a graph's page, kept in the address's fragment so that a link shares it. */

/** Nodes that a person put together, or that a summary did. */
export interface Group {
  name: string;
  ids: string[];
  /** Whether the name was made of its members' labels and nobody changed it since. */
  isProposed?: boolean;
}

export type ViewName = "graph" | "summary" | "compare";

export interface PageState {
  selected: string | null;
  pinned: string[];
  groups: Group[];
  /** Where dragged nodes stand, in the layout's units. */
  moved: Record<string, [number, number]>;
  threshold: number;
  showErrors: boolean;
  /** Features at more positions than this are hidden; 0 hides none. */
  maxPositions: number;
  numEdges: number;
  view: ViewName;
  /** The graph that this one is compared with. */
  other: string | null;
}

/** Most nodes that a link holds, pinned or in groups, and most that have a place of their own. */
export const MAX_PART = 1000;
export const MAX_MOVED = 400;
const MAX_GROUPS = 40;
const MAX_NAME = 120;

export function readState(fragment: string, threshold: number): PageState {
  const values = new URLSearchParams(fragment.replace(/^#/, ""));
  const number = (key: string, otherwise: number, low: number, high: number) => {
    const value = Number(values.get(key) ?? NaN);
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
  };
  const view = values.get("view");
  return {
    selected: values.get("selected"),
    pinned: listOf(values.get("pinned")).slice(0, MAX_PART),
    groups: readGroups(values),
    moved: readMoved(values.get("moved")),
    threshold: number("influence", threshold, 0, 1),
    showErrors: values.get("errors") !== "0",
    maxPositions: Math.round(number("positions", 0, 0, 1e6)),
    numEdges: number("edges", 300, 0, 2000),
    view: view === "summary" || view === "compare" ? view : "graph",
    other: values.get("other"),
  };
}

export function writeState(state: PageState, threshold: number): string {
  const values = new URLSearchParams();
  if (state.view !== "graph") values.set("view", state.view);
  if (state.other) values.set("other", state.other);
  if (state.selected) values.set("selected", state.selected);
  if (state.pinned.length > 0) values.set("pinned", state.pinned.join(","));
  for (const group of state.groups) values.append("group", `${group.name}|${group.ids.join(",")}`);
  const proposed = state.groups.flatMap((group, place) => (group.isProposed ? [place] : []));
  if (proposed.length > 0) values.set("proposed", proposed.join(","));
  const moved = Object.entries(state.moved).map(([id, [x, y]]) => `${id}:${x.toFixed(2)}:${y.toFixed(2)}`);
  if (moved.length > 0) values.set("moved", moved.join(","));
  if (state.threshold !== threshold) values.set("influence", state.threshold.toFixed(3));
  if (!state.showErrors) values.set("errors", "0");
  if (state.maxPositions > 0) values.set("positions", String(state.maxPositions));
  if (state.numEdges !== 300) values.set("edges", String(state.numEdges));
  const text = values.toString();
  return text ? `#${text}` : "";
}

function listOf(text: string | null): string[] {
  return [...new Set((text ?? "").split(",").filter(Boolean))];
}

function readGroups(values: URLSearchParams): Group[] {
  const proposed = new Set(listOf(values.get("proposed")));
  const groups = values.getAll("group").slice(0, MAX_GROUPS).map(readGroup);
  return groups.map((group, place) => (proposed.has(String(place)) ? { ...group, isProposed: true } : group)).filter((group) => group.ids.length > 0);
}

/** A name may hold anything; ids hold no bar. */
function readGroup(text: string): Group {
  const bar = text.lastIndexOf("|");
  return { name: text.slice(0, Math.max(bar, 0)).slice(0, MAX_NAME), ids: listOf(text.slice(bar + 1)).slice(0, MAX_PART) };
}

function readMoved(text: string | null): PageState["moved"] {
  const moved: PageState["moved"] = {};
  for (const entry of listOf(text).slice(0, MAX_MOVED)) {
    const [id, x, y] = entry.split(":");
    const place: [number, number] = [Number(x ?? NaN), Number(y ?? NaN)];
    if (id && place.every(Number.isFinite)) moved[id] = place;
  }
  return moved;
}

/** Ids of the part that a person works on: pins and what is in groups. */
export function partOf(state: PageState): string[] {
  return [...new Set([...state.pinned, ...state.groups.flatMap((group) => group.ids)])];
}

/** Pins a node, or takes it out of the pins and of every group. */
export function togglePin(state: PageState, id: string): Partial<PageState> {
  if (!partOf(state).includes(id)) return { pinned: [...state.pinned, id].slice(-MAX_PART) };
  const groups = state.groups.map((group) => ({ ...group, ids: group.ids.filter((one) => one !== id) }));
  return { pinned: state.pinned.filter((one) => one !== id), groups: groups.filter((group) => group.ids.length > 0) };
}

/** Puts all loose pins into a new group; it has the name that is proposed, if one is. */
export function groupPins(state: PageState, proposed: string | null = null): Partial<PageState> {
  if (state.pinned.length === 0 || state.groups.length >= MAX_GROUPS) return {};
  if (proposed !== null) return { pinned: [], groups: [...state.groups, { name: proposed.slice(0, MAX_NAME), ids: state.pinned, isProposed: true }] };
  const taken = new Set(state.groups.map((group) => group.name));
  let number = 1;
  while (taken.has(`Group ${number}`)) number++;
  return { pinned: [], groups: [...state.groups, { name: `Group ${number}`, ids: state.pinned }] };
}

/** Makes loose pins of a group again. */
export function ungroup(state: PageState, place: number): Partial<PageState> {
  const freed = state.groups[place]?.ids ?? [];
  return { groups: state.groups.filter((_, at) => at !== place), pinned: [...new Set([...state.pinned, ...freed])].slice(0, MAX_PART) };
}

/** Gives a group a name: a person's own, or one that is proposed. */
export function renameGroup(state: PageState, place: number, name: string, isProposed = false): Partial<PageState> {
  return { groups: state.groups.map((group, at) => (at === place ? { name: name.slice(0, MAX_NAME), ids: group.ids, ...(isProposed ? { isProposed } : {}) } : group)) };
}
