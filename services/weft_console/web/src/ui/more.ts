import { useState } from "preact/hooks";
import { get, type ApiError } from "../api";
import { toApiError } from "./load";

export interface More<A> {
  /** The first page and those that were asked for since. */
  pages: A[];
  /** Empty where there are no more. */
  next: string;
  isBusy: boolean;
  problem: ApiError | null;
  load: () => void;
}

/** The pages after a first one, one at a time as a person asks for them. */
export function useMore<A extends { next_page_token: string }>(first: A | null, pathOf: (token: string) => string): More<A> {
  const [more, setMore] = useState<A[]>([]);
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const pages = first ? [first, ...more] : [];
  const next = pages[pages.length - 1]?.next_page_token ?? "";
  const load = () => {
    // A second click asks for no second copy.
    if (isBusy) return;
    setBusy(true);
    get<A>(pathOf(next)).then(
      (page) => { setMore((before) => [...before, page]); setProblem(null); setBusy(false); },
      (error: unknown) => { setProblem(toApiError(error)); setBusy(false); },
    );
  };
  return { pages, next, isBusy, problem, load };
}
