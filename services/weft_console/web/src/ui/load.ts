import { useCallback, useEffect, useState } from "preact/hooks";
import { ApiError, get } from "../api";

export interface Loaded<T> {
  data: T | null;
  problem: ApiError | null;
  reload: () => void;
}

/** Fetches JSON when the path changes; null fetches nothing. What nobody waits for any more is broken off. */
export function useLoad<T>(path: string | null): Loaded<T> {
  const [state, setState] = useState<{ path: string | null; data: T | null; problem: ApiError | null }>({ path: null, data: null, problem: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    if (path === null) return undefined;
    const abort = new AbortController();
    get<T>(path, abort.signal).then(
      (data) => !abort.signal.aborted && setState({ path, data, problem: null }),
      (error: unknown) => !abort.signal.aborted && setState({ path, data: null, problem: toApiError(error) }),
    );
    return () => abort.abort();
  }, [path, round]);
  const reload = useCallback(() => setRound((n) => n + 1), []);
  const isCurrent = state.path === path;
  return { data: isCurrent ? state.data : null, problem: isCurrent ? state.problem : null, reload };
}

export function toApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError(0, "UNKNOWN", error instanceof Error ? error.message : String(error));
}
