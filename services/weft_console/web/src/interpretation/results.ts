/** What came of the features of one job, fetched as they come. */
import { useEffect, useRef, useState } from "preact/hooks";
import { get, type ApiError } from "../api";
import { toApiError } from "../ui/load";
import { firstMissing, merged } from "./model";
import type { InterpretedFeature, Outcome } from "./types";

/** More are not held: a person does not scroll through them, and failures have a filter of their own. */
export const MOST_ROWS = 20_000;
const A_PAGE = 1000;
const EVERY_MS = 700;
/** What is told as done stands in the bucket a second later at the latest, and may be the last for a while. */
const ONCE_MORE_MS = 1600;
/** So far behind the last row, one that is worked on beside it may still come. */
const BEHIND = 500;

interface Page { features: InterpretedFeature[]; next_page_token: string }

export interface Results {
  rows: InterpretedFeature[];
  isLoading: boolean;
  problem: ApiError | null;
}

const NOTHING: Results = { rows: [], isLoading: true, problem: null };

/**
 * Rows of a job by place. They are asked for again when `completed` has moved, every 0.7 s at most, and once more from
 * the beginning when the job is over.
 */
export function useResults(id: string, outcomes: Outcome[], completed: number, isOver: boolean): Results & { retry: () => void } {
  const key = `${id} ${outcomes.join()}`;
  const [found, setFound] = useState<{ key: string; results: Results }>({ key, results: NOTHING });
  const look = useRef<(isLast: boolean) => void>(() => undefined);
  useEffect(() => {
    let rows: InterpretedFeature[] = [];
    const abort = new AbortController();
    let isBusy = false;
    let wanted: "nothing" | "new" | "all" = "nothing";
    let lastMs = 0;
    let timer = 0;
    let onceMore = 0;
    const load = async () => {
      timer = 0;
      isBusy = true;
      lastMs = Date.now();
      const behind = Math.max(0, (rows[rows.length - 1]?.position ?? 0) - BEHIND);
      const from = wanted === "all" ? 0 : outcomes.length === 0 ? firstMissing(rows) : behind;
      wanted = "nothing";
      try {
        let fresh = rows;
        let token = "";
        do {
          const asked = new URLSearchParams([["from", `${from}`], ["page_size", `${A_PAGE}`], ["page_token", token], ...outcomes.map((one) => ["outcome", one])]);
          const page = await get<Page>(`/api/interpretations/${encodeURIComponent(id)}/features?${asked}`, abort.signal);
          if (abort.signal.aborted) return;
          fresh = merged(fresh, page.features);
          token = page.next_page_token;
        } while (token && fresh.length < MOST_ROWS);
        rows = fresh.slice(0, MOST_ROWS);
        setFound({ key, results: { rows, isLoading: false, problem: null } });
      } catch (error) {
        if (abort.signal.aborted) return;
        setFound({ key, results: { rows, isLoading: false, problem: toApiError(error) } });
      }
      isBusy = false;
      if (wanted !== "nothing") queue();
    };
    const queue = () => {
      if (!isBusy && !timer) timer = window.setTimeout(() => void load(), Math.max(0, lastMs + EVERY_MS - Date.now()));
    };
    look.current = (isLast) => {
      wanted = isLast || wanted === "all" ? "all" : "new";
      queue();
      window.clearTimeout(onceMore);
      if (isLast) return;
      onceMore = window.setTimeout(() => {
        wanted = wanted === "all" ? "all" : "new";
        queue();
      }, ONCE_MORE_MS);
    };
    return () => {
      abort.abort();
      window.clearTimeout(timer);
      window.clearTimeout(onceMore);
    };
  }, [key]);
  useEffect(() => look.current(isOver), [key, completed, isOver]);
  const retry = () => look.current(isOver);
  return { ...(found.key === key ? found.results : NOTHING), retry };
}
