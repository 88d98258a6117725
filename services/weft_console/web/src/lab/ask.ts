/** Questions of the lab: the newest wins, an overtaken one is broken off. */
import { useEffect, useRef, useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import type { StandingLabel } from "../ui/origin";
import { toApiError } from "../ui/load";

/** Letters of a filter come one by one: it is asked for once they rest this long. */
const WAIT_MS = 250;

export interface ContinuedToken {
  token_id: number;
  text: string;
  probability: number;
}

export interface Steered {
  tokens: string[];
  features: { feature: string; positions: number[]; before: number[]; after: number[]; added_after: number; label: StandingLabel | null }[];
  next_tokens: { token_id: number; text: string; probability_before: number; probability_after: number; logit_change: number }[];
  kl_divergence: number;
  undisturbed: ContinuedToken[];
  changed: ContinuedToken[];
}

export interface Asked<T> {
  /** The newest answer, also while a newer one is on its way or where that could not be had. */
  data: T | null;
  /** What that answer was asked by. */
  key: string;
  problem: ApiError | null;
  isBusy: boolean;
  /** Asks the same once more. */
  reload: () => void;
}

type State<T> = Omit<Asked<T>, "reload">;

/** Asks anew whenever the body changes; null asks nothing and forgets. */
export function useAsked<T>(path: string, body: object | null): Asked<T> {
  const [state, setState] = useState<State<T>>({ data: null, key: "", problem: null, isBusy: false });
  const [round, setRound] = useState(0);
  const key = body === null ? "" : JSON.stringify(body);
  useEffect(() => {
    if (!key) {
      setState({ data: null, key: "", problem: null, isBusy: false });
      return undefined;
    }
    const abort = new AbortController();
    setState((before) => ({ ...before, problem: null, isBusy: true }));
    const timer = window.setTimeout(() => {
      post<T>(path, JSON.parse(key), abort.signal).then(
        (data) => !abort.signal.aborted && setState({ data, key, problem: null, isBusy: false }),
        (error: unknown) => !abort.signal.aborted && setState((before) => ({ ...before, problem: toApiError(error), isBusy: false })),
      );
    }, WAIT_MS);
    return () => {
      window.clearTimeout(timer);
      abort.abort();
    };
  }, [path, key, round]);
  return { ...state, reload: () => setRound((n) => n + 1) };
}

/** The same once a person says so; what was found stays until the next answer. */
export function useRun(): State<Steered> & { run: (body: object) => void; stop: () => void } {
  const [state, setState] = useState<State<Steered>>({ data: null, key: "", problem: null, isBusy: false });
  const abort = useRef<AbortController | null>(null);
  useEffect(() => () => abort.current?.abort(), []);
  const run = (body: object) => {
    abort.current?.abort();
    const mine = new AbortController();
    abort.current = mine;
    const key = JSON.stringify(body);
    setState((before) => ({ ...before, problem: null, isBusy: true }));
    post<Steered>("/api/lab/steering", body, mine.signal).then(
      (data) => !mine.signal.aborted && setState({ data, key, problem: null, isBusy: false }),
      (error: unknown) => !mine.signal.aborted && setState((before) => ({ ...before, problem: toApiError(error), isBusy: false })),
    );
  };
  const stop = () => {
    abort.current?.abort();
    setState((before) => ({ ...before, isBusy: false }));
  };
  return { ...state, run, stop };
}

