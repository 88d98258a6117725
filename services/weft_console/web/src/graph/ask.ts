/** Answers to questions that follow each other: the newest question wins. */
import { useEffect, useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import type { PartScore } from "../types";
import { toApiError } from "../ui/load";

/** Pins come in bursts: a part is scored once it has been the same for this long. */
const WAIT_MS = 250;

export interface Scored {
  /** The newest answer, also while a newer one is on its way. */
  score: PartScore | null;
  isStale: boolean;
  problem: ApiError | null;
}

/** Scores of a part of a graph, asked for anew whenever the part changes; none for an empty part. */
export function usePartScore(graphId: string, ids: string[]): Scored {
  const [state, setState] = useState<{ key: string; score: PartScore | null; problem: ApiError | null }>({ key: "", score: null, problem: null });
  const key = ids.join(",");
  useEffect(() => {
    if (!key) return undefined;
    let isCurrent = true;
    const timer = window.setTimeout(() => {
      post<PartScore>(`/api/graphs/${encodeURIComponent(graphId)}/score`, { node_ids: key.split(",") }).then(
        (score) => isCurrent && setState({ key, score, problem: null }),
        (error: unknown) => isCurrent && setState({ key, score: null, problem: toApiError(error) }),
      );
    }, WAIT_MS);
    return () => {
      isCurrent = false;
      window.clearTimeout(timer);
    };
  }, [graphId, key]);
  return key ? { score: state.score, isStale: state.key !== key, problem: state.key === key ? state.problem : null } : { score: null, isStale: false, problem: null };
}
