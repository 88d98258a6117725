import { describe, expect, it } from "vitest";
import { density } from "../src/features/density";
import { filledBins } from "../src/features/histogram";
import { askedOf, emptyQuery, layersOf, numFilters, problemOf, readQuery, writeQuery, type FeatureQuery } from "../src/features/query";
import { foundIn } from "../src/features/relations";
import { FeatureRows, PAGE_ROWS } from "../src/features/rows";
import { barOf, extentOf, MAX_HEIGHT, moved, topFor, topOf } from "../src/features/scroll";
import type { FeaturePageAnswer, FeatureRow } from "../src/features/types";
import { parseRoute } from "../src/routes";

describe("query", () => {
  const whole: FeatureQuery = {
    ...emptyQuery(), by: "token", text: " Paris & Lyon", layers: "0-2, 7", states: ["active", "dead"], labelState: "human",
    scoreKind: "fuzzing", sort: "density", falls: false, bounds: { density: ["0.1", "5"], max_activation: ["", "9"], decoder_norm: ["2", ""], score: ["0.5", ""] },
  };

  it("comes back from the address as it was", () => {
    expect(readQuery(writeQuery(whole))).toEqual(whole);
    expect(writeQuery(emptyQuery())).toBe("");
    expect(readQuery("")).toEqual(emptyQuery());
  });

  it("takes nothing from an address that the page does not know", () => {
    const read = readQuery("?sort=%3Cscript%3E&label_state=mine&score_kind=luck&states=angry,dense&order=up");
    expect(read).toEqual({ ...emptyQuery(), states: ["dense"] });
  });

  it("asks the backend in its own terms: shares, layers by number, an order with its direction", () => {
    const asked = Object.fromEntries(askedOf(whole));
    expect(asked).toEqual({
      token: " Paris & Lyon", layers: "0,1,2,7", states: "active,dead", density_min: "0.001", density_max: "0.05", max_activation_max: "9",
      decoder_norm_min: "2", score_min: "0.5", label_state: "human", score_kind: "fuzzing", order_by: "density",
    });
    expect(askedOf({ ...emptyQuery(), text: "  months " }).toString()).toBe("label=months");
    expect(askedOf({ ...emptyQuery(), sort: "score" }).toString()).toBe("score_kind=detection&order_by=score+desc");
  });

  it("reads lists of layers and says what is none", () => {
    expect(layersOf("3, 1-2,2")).toEqual([1, 2, 3]);
    expect(layersOf("")).toEqual([]);
    for (const wrong of ["a", "3-1", "1-", "-2", "1 2", "0-9999"]) expect(layersOf(wrong), wrong).toBeNull();
    expect(problemOf({ ...emptyQuery(), layers: "two" })).toContain("0-3, 7");
    expect(problemOf({ ...emptyQuery(), bounds: { ...emptyQuery().bounds, score: ["", "high"] } })).toContain("high");
    expect(problemOf(whole)).toBeNull();
    expect(numFilters(whole)).toBe(7);
  });
});

describe("scrolling", () => {
  const view = 500;

  it("is the browser's own where rows fit", () => {
    const extent = extentOf(1000, 36);
    expect(extent).toEqual({ real: 36_000, shown: 36_000 });
    expect(moved(100, 100, 30_000, extent, view)).toBe(30_000);
  });

  it("reaches every row of a million, both ends included, and comes back", () => {
    const extent = extentOf(1_000_000, 36);
    expect(extent.shown).toBe(MAX_HEIGHT);
    expect(topOf(0, extent, view)).toBe(0);
    expect(topOf(MAX_HEIGHT - view, extent, view)).toBe(extent.real - view);
    let before = -1;
    for (let bar = 0; bar <= MAX_HEIGHT - view; bar += 12_345) {
      const top = topOf(bar, extent, view);
      expect(top).toBeGreaterThan(before);
      expect(barOf(top, extent, view)).toBeCloseTo(bar, 3);
      before = top;
    }
  });

  it("moves by what the wheel says, and jumps by the bar", () => {
    const extent = extentOf(1_000_000, 36);
    expect(moved(9e6, 2.1e6, 2.1e6 + 120, extent, view)).toBe(9e6 + 120);
    expect(moved(9e6, 2.1e6, 4e6, extent, view)).toBe(topOf(4e6, extent, view));
    expect(moved(50, 50, 0, extent, view)).toBe(0);
    const end = extent.real - view;
    expect(moved(end - 10, MAX_HEIGHT - view - 10, MAX_HEIGHT - view, extent, view)).toBe(end);
  });

  it("brings a row into view and leaves one that is there", () => {
    expect(topFor(3, 36, 0, view)).toBe(0);
    expect(topFor(20, 36, 0, view)).toBe(21 * 36 - view);
    expect(topFor(2, 36, 1000, view)).toBe(72);
  });
});

function rowsOf(skip: number, count: number, word: string): FeatureRow[] {
  return Array.from({ length: count }, (_, at) => ({ name: word, layer: 0, index: skip + at, statistics: null, label: null }));
}

/** A backend that answers when the test says so. */
function backend() {
  const calls: { skip: number; word: string; signal: AbortSignal; answer: (total: number) => Promise<void>; fail: () => Promise<void> }[] = [];
  const of = (word: string) => (skip: number, size: number, signal: AbortSignal) => new Promise<FeaturePageAnswer>((resolve, reject) => {
    const settled = () => new Promise<void>((done) => setTimeout(done, 0));
    calls.push({
      skip, word, signal,
      answer: (total) => { resolve({ features: rowsOf(skip, Math.min(size, total - skip), word), total_size: total, token_ids: [] }); return settled(); },
      fail: () => { reject(new Error("no")); return settled(); },
    });
  });
  return { calls, of };
}

describe("rows", () => {
  it("keeps what was found until the next search answers, and never shows what was overtaken", async () => {
    const { calls, of } = backend();
    const rows = new FeatureRows(() => {});
    rows.ask(of("one"));
    await calls[0]!.answer(500);
    rows.ask(of("two"));
    rows.ask(of("three"));
    expect(calls.map((call) => call.signal.aborted)).toEqual([false, true, false]);
    expect([rows.isStale, rows.row(0)?.name, rows.total]).toEqual([true, "one", 500]);
    await calls[2]!.answer(7);
    await calls[1]!.answer(9);
    expect([rows.isStale, rows.row(0)?.name, rows.total]).toEqual([false, "three", 7]);
  });

  it("fetches the pages that are looked at and aborts those that scrolled by", async () => {
    const { calls, of } = backend();
    const rows = new FeatureRows(() => {});
    rows.ask(of("all"));
    await calls[0]!.answer(1_000_000);
    rows.want(500_000, 500_150);
    rows.want(500_000, 500_150);
    expect(calls.slice(1).map((call) => call.skip)).toEqual([500_000, 500_100]);
    rows.want(999_950, 1_000_020);
    expect(calls.slice(1).map((call) => [call.skip, call.signal.aborted])).toEqual([[500_000, true], [500_100, true], [999_900, false]]);
    await calls[3]!.answer(1_000_000);
    expect(rows.row(999_999)?.index).toBe(999_999);
    expect(rows.row(500_000)).toBeUndefined();
  });

  it("keeps a bounded number of pages", async () => {
    const { calls, of } = backend();
    const rows = new FeatureRows(() => {});
    rows.ask(of("all"));
    await calls[0]!.answer(1_000_000);
    for (let page = 1; page <= 60; page++) {
      rows.want(page * PAGE_ROWS, page * PAGE_ROWS);
      await calls[calls.length - 1]!.answer(1_000_000);
    }
    const kept = Array.from({ length: 61 }, (_, page) => rows.row(page * PAGE_ROWS)).filter(Boolean);
    expect(kept.length).toBe(40);
    expect(rows.row(60 * PAGE_ROWS)?.index).toBe(6000);
  });

  it("asks for what failed only once it is told to", async () => {
    const { calls, of } = backend();
    const rows = new FeatureRows(() => {});
    rows.ask(of("all"));
    await calls[0]!.fail();
    expect([rows.problem instanceof Error, rows.total, rows.isStale]).toEqual([true, null, false]);
    rows.retry();
    await calls[1]!.answer(300);
    expect(rows.problem).toBeNull();
    rows.want(150, 160);
    await calls[2]!.fail();
    rows.want(150, 160);
    expect(calls.length).toBe(3);
    rows.retry();
    rows.want(150, 160);
    expect(calls.length).toBe(4);
    await calls[3]!.answer(300);
    expect([rows.problem, rows.row(150)?.index]).toEqual([null, 150]);
  });

  it("tells a page's problem until that page is there, whatever else comes", async () => {
    const { calls, of } = backend();
    const rows = new FeatureRows(() => {});
    rows.ask(of("all"));
    await calls[0]!.answer(300);
    rows.want(150, 250);
    await calls[1]!.fail();
    await calls[2]!.answer(300);
    expect(rows.row(250)?.index).toBe(250);
    expect(rows.problem).toBeInstanceOf(Error);
    rows.retry();
    rows.want(150, 250);
    await calls[3]!.answer(300);
    expect([rows.problem, calls.length]).toEqual([null, 4]);
  });
});

describe("figures", () => {
  it("show the bins from the first to the last that hold anything", () => {
    expect(filledBins([0, 2, 0, 3, 0], [1, 2, 4, 8, 16, 32])).toEqual([
      { low: 2, high: 4, count: 2 }, { low: 4, high: 8, count: 0 }, { low: 8, high: 16, count: 3 },
    ]);
    expect(filledBins([0, 0], [1, 2, 4])).toEqual([]);
  });

  it("tell in how many graphs a feature is", () => {
    expect(foundIn(3, 1200, true)).toBe("It is a node of 3 of the newest 1,200 graphs");
    expect(foundIn(0, 2, false)).toBe("It is a node of none of the 2 graphs");
    expect(foundIn(1, 1, false)).toBe("It is a node of the only graph");
    expect(foundIn(0, 1, true)).toBe("It is no node of the newest graph");
  });

  it("tell rare from never", () => {
    expect([density(0), density(0.0123), density(2e-6)]).toEqual(["0%", "1.23%", "2.00e−4%"]);
  });
});

describe("routes", () => {
  it("know features below their transcoder", () => {
    expect(parseRoute("/transcoders/a%20b/features")).toEqual({ section: "transcoders", id: "a b", rest: ["features"] });
    expect(parseRoute("/transcoders/demo/features/3/14")).toEqual({ section: "transcoders", id: "demo", rest: ["features", "3", "14"] });
    for (const path of ["/transcoders/demo/features/3", "/transcoders/demo/features/3/x", "/transcoders/demo/other", "/graphs/a/b"]) {
      expect(parseRoute(path).section, path).toBe("unknown");
    }
  });
});
