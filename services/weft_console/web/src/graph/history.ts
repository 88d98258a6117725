/** Steps that can be undone. Where one looks is no step; what one sets is. */
import { useCallback, useReducer } from "preact/hooks";
import type { PageState } from "./state";

const MAX_STEPS = 100;
/** Changes of the same things within this time are one step: a slider makes many. */
const JOIN_MS = 700;
/** Parts of the state that are no step by themselves. */
const PASSING: ReadonlySet<string> = new Set(["selected", "view"]);

export interface History {
  past: PageState[];
  present: PageState;
  future: PageState[];
  /** What the last step changed, and when. */
  last: { keys: string; time: number } | null;
}

export type Step = { change: Partial<PageState> | ((before: PageState) => Partial<PageState>); time: number } | "undo" | "redo" | { load: PageState };

export function startHistory(present: PageState): History {
  return { past: [], present, future: [], last: null };
}

export function advance(history: History, step: Step): History {
  const { past, present, future } = history;
  if (step === "undo") {
    const before = past[past.length - 1];
    return before ? { past: past.slice(0, -1), present: keepView(before, present), future: [present, ...future], last: null } : history;
  }
  if (step === "redo") {
    const after = future[0];
    return after ? { past: [...past, present], present: keepView(after, present), future: future.slice(1), last: null } : history;
  }
  if ("load" in step) return startHistory(step.load);
  const part = typeof step.change === "function" ? step.change(present) : step.change;
  const keys = Object.keys(part).filter((key) => !Object.is(part[key as keyof PageState], present[key as keyof PageState]));
  if (keys.length === 0) return history;
  const next = { ...present, ...part };
  const lasting = keys.filter((key) => !PASSING.has(key)).join(" ");
  if (!lasting) return { ...history, present: next };
  const joins = history.last !== null && history.last.keys === lasting && isSlider(lasting) && step.time - history.last.time < JOIN_MS;
  return {
    past: joins ? past : [...past, present].slice(-MAX_STEPS),
    present: next,
    future: [],
    last: { keys: lasting, time: step.time },
  };
}

function isSlider(keys: string): boolean {
  return keys === "threshold" || keys === "numEdges" || keys === "maxPositions" || keys === "groups";
}

/** A step back leaves the eye where it is. */
function keepView(state: PageState, present: PageState): PageState {
  return { ...state, selected: present.selected, view: present.view };
}

/** The page's state and what changes it. */
export function useHistory(first: () => PageState) {
  const [history, dispatch] = useReducer(advance, undefined, () => startHistory(first()));
  const change = useCallback(
    (part: Partial<PageState> | ((before: PageState) => Partial<PageState>)) => dispatch({ change: part, time: performance.now() }), [],
  );
  const undo = useCallback(() => dispatch("undo"), []);
  const redo = useCallback(() => dispatch("redo"), []);
  const load = useCallback((state: PageState) => dispatch({ load: state }), []);
  return { state: history.present, change, undo, redo, load, canUndo: history.past.length > 0, canRedo: history.future.length > 0 };
}
