/** Rows of a search, page by page as they are looked at; what was overtaken is aborted. */
import type { FeaturePageAnswer, FeatureRow } from "./types";

export const PAGE_ROWS = 100;
const MAX_PAGES = 40;

export type FetchPage = (skip: number, size: number, signal: AbortSignal) => Promise<FeaturePageAnswer>;

interface Search {
  fetch: FetchPage;
  total: number | null;
  tokenIds: number[];
  pages: Map<number, FeatureRow[]>;
  loading: Map<number, AbortController>;
  /** Pages that could not be had; they are not asked for again by themselves. */
  failed: Set<number>;
}

/**
 * Holds the rows of the last search that answered, and those of the one that was asked since, until its first page comes.
 */
export class FeatureRows {
  private shown: Search | null = null;
  private asked: Search | null = null;
  problem: unknown = null;

  constructor(private readonly onChange: () => void) {}

  /** Whether a newer question waits for its answer. */
  get isStale(): boolean {
    return this.asked !== null && this.asked !== this.shown;
  }

  get total(): number | null {
    return this.shown?.total ?? null;
  }

  get tokenIds(): number[] {
    return this.shown?.tokenIds ?? [];
  }

  row(at: number): FeatureRow | undefined {
    return this.shown?.pages.get(Math.floor(at / PAGE_ROWS))?.[at % PAGE_ROWS];
  }

  /** Begins another search; what the one before still asked for is aborted. */
  ask(fetch: FetchPage): void {
    this.abort();
    this.problem = null;
    this.asked = { fetch, total: null, tokenIds: [], pages: new Map(), loading: new Map(), failed: new Set() };
    this.load(this.asked, 0);
    this.onChange();
  }

  /** Asks once more for what could not be had. */
  retry(): void {
    this.problem = null;
    if (this.shown?.total == null && this.asked) this.ask(this.asked.fetch);
    else this.shown?.failed.clear();
    this.onChange();
  }

  /** Says which rows are looked at: they are fetched, and pages that scrolled by are no longer waited for. */
  want(first: number, last: number): void {
    const search = this.shown;
    if (!search || this.isStale || search.total === null || search.total === 0) return;
    const low = Math.floor(Math.max(0, first) / PAGE_ROWS);
    const high = Math.floor(Math.min(last, search.total - 1) / PAGE_ROWS);
    for (const [page, controller] of search.loading) {
      if (page < low || page > high) {
        search.loading.delete(page);
        controller.abort();
      }
    }
    for (let page = low; page <= high; page++) this.load(search, page);
  }

  /** Puts labels into rows that are there. */
  relabel(layer: number, index: number, label: FeatureRow["label"]): void {
    for (const page of this.shown?.pages.values() ?? []) {
      for (const row of page) if (row.layer === layer && row.index === index) row.label = label;
    }
    this.onChange();
  }

  abort(): void {
    for (const search of [this.shown, this.asked]) {
      search?.loading.forEach((controller) => controller.abort());
      search?.loading.clear();
    }
  }

  private load(search: Search, page: number): void {
    if (search.pages.has(page) || search.loading.has(page) || search.failed.has(page)) return;
    const controller = new AbortController();
    search.loading.set(page, controller);
    search.fetch(page * PAGE_ROWS, PAGE_ROWS, controller.signal).then(
      (answer) => {
        if (controller.signal.aborted) return;
        search.loading.delete(page);
        search.total = answer.total_size;
        search.tokenIds = answer.token_ids;
        search.pages.set(page, answer.features);
        // The oldest pages go first: where one has been is asked for again.
        for (const old of search.pages.keys()) {
          if (search.pages.size <= MAX_PAGES) break;
          search.pages.delete(old);
        }
        // Another page's problem stays told until it is asked for again.
        if (search.failed.size === 0) this.problem = null;
        this.shown = search;
        this.onChange();
      },
      (error: unknown) => {
        if (controller.signal.aborted) return;
        search.loading.delete(page);
        search.failed.add(page);
        this.problem = error;
        // A question that failed is answered: with nothing.
        if (search === this.asked && search !== this.shown) this.shown = search;
        this.onChange();
      },
    );
  }
}
