import { useCallback, useEffect, useState } from "preact/hooks";
import { ApiError, get } from "../api";

export interface Loaded<T> {
  data: T | null;
  problem: ApiError | null;
  reload: () => void;
}

/** Fetches JSON when the path changes; null fetches nothing. */
export function useLoad<T>(path: string | null): Loaded<T> {
  const [state, setState] = useState<{ path: string | null; data: T | null; problem: ApiError | null }>({ path: null, data: null, problem: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    if (path === null) return undefined;
    let isCurrent = true;
    get<T>(path).then(
      (data) => isCurrent && setState({ path, data, problem: null }),
      (error: unknown) => isCurrent && setState({ path, data: null, problem: toApiError(error) }),
    );
    return () => {
      isCurrent = false;
    };
  }, [path, round]);
  const reload = useCallback(() => setRound((n) => n + 1), []);
  const isCurrent = state.path === path;
  return { data: isCurrent ? state.data : null, problem: isCurrent ? state.problem : null, reload };
}

export function toApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError(0, "UNKNOWN", error instanceof Error ? error.message : String(error));
}
