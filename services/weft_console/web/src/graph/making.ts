/** A graph on its way: how far it is, and what there is of it so far. */
import { useEffect, useRef, useState } from "preact/hooks";
import { follow, get } from "../api";
import type { Graph, Progress } from "../types";
import type { RawGraph } from "./model";

/** A file so far may be large: the next one is fetched no sooner than this. */
const PAUSE_MS = 1500;

export interface Making {
  progress: Progress | null;
  raw: RawGraph | null;
  problem: string | null;
}

/** Follows a running graph by its path under `/api`; null follows nothing. Calls back once it has ended. */
export function useMaking(path: string | null, onEnd: () => void): Making {
  const [state, setState] = useState<Making>({ progress: null, raw: null, problem: null });
  const end = useRef(onEnd);
  end.current = onEnd;
  useEffect(() => {
    if (path === null) return undefined;
    let isCurrent = true;
    let isFetching = false;
    setState({ progress: null, raw: null, problem: null });
    const merge = (part: Partial<Making>) => isCurrent && setState((before) => ({ ...before, ...part }));
    const fetchFile = async () => {
      if (isFetching) return;
      isFetching = true;
      try {
        merge({ raw: await get<RawGraph>(`${path}/json`) });
      } catch {
        // It may just have ended; then the whole file comes anyway.
      }
      window.setTimeout(() => { isFetching = false; }, PAUSE_MS);
    };
    const stop = follow(`${path}/events`, {
      progress: (data) => merge({ progress: data as Progress }),
      graph: (data) => {
        const news = data as Graph & { has_json: boolean };
        if (news.state !== "running") end.current();
        else if (news.has_json) void fetchFile();
      },
    }, (problem) => merge({ problem }));
    return () => {
      isCurrent = false;
      stop();
    };
  }, [path]);
  return state;
}
