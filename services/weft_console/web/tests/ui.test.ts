import { describe, expect, it } from "vitest";
import { binName, densityCounts } from "../src/pages/evaluation";
import type { Evaluation } from "../src/types";
import { bytes, count, figure, seconds, signedPercent } from "../src/format";
import { parseRoute } from "../src/routes";
import { visible } from "../src/ui/heat-table";
import { logTicks, spanOf, thin, ticks } from "../src/ui/scale";
import { tabNameOf } from "../src/ui/tab-name";
import { showInText, showToken } from "../src/ui/token-text";

describe("scale", () => {
  it("marks an axis with round values inside it", () => {
    expect(ticks(0, 100)).toEqual([0, 25, 50, 75, 100]);
    expect(ticks(0, 120, 5)).toEqual([0, 25, 50, 75, 100]);
    expect(ticks(0, 1).map((value) => Object.is(value, -0))).not.toContain(true);
    expect(ticks(3, 3)).toEqual([3]);
  });

  it("goes from 0 to 1 where all bars are 0", () => {
    expect(spanOf([0, 0])).toEqual([0, 1]);
    expect(spanOf([])).toEqual([0, 1]);
    expect(spanOf([0.2, 3])).toEqual([0, 3]);
    expect(spanOf([-2, 0])).toEqual([-2, 0]);
  });

  it("marks a logarithmic axis with few values", () => {
    expect(logTicks(0.01, 100)).toEqual([0.01, 0.1, 1, 10, 100]);
    for (const value of logTicks(0.4, 1.1)) {
      expect(value).toBeGreaterThanOrEqual(0.4 * 0.999);
      expect(value).toBeLessThanOrEqual(1.1 * 1.001);
    }
  });

  it("thins a long line without losing its spikes or its end", () => {
    const points = Array.from({ length: 50_000 }, (_, i): [number, number] => [i, i === 31_337 ? 99 : Math.sin(i)]);
    const kept = thin(points, 800);
    expect(kept.length).toBeLessThanOrEqual(804);
    expect(kept).toContainEqual([31_337, 99]);
    expect(kept[kept.length - 1]).toEqual(points[points.length - 1]);
    expect(kept.map(([x]) => x)).toEqual(kept.map(([x]) => x).sort((a, b) => a - b));
  });
});

describe("format", () => {
  it("writes numbers as people read them", () => {
    expect(signedPercent(-0.0412)).toBe("−4.1%");
    expect(signedPercent(0.5)).toBe("+50.0%");
    expect(count(1204113)).toBe("1,204,113");
    expect(bytes(912_000_000)).toBe("869.8 MiB");
    expect(bytes(12)).toBe("12 B");
    expect(figure(0.00012)).toBe("1.20e−4");
    expect(figure(-0.31)).toBe("−0.31");
    expect(seconds(0.2)).toBe("200 ms");
    expect(seconds(125)).toBe("2 min 5 s");
  });
});

describe("routes", () => {
  it("knows every page and no other", () => {
    expect(parseRoute("/")).toEqual({ section: "graphs", id: null });
    expect(parseRoute("/graphs/the-capital-1a2b")).toEqual({ section: "graphs", id: "the-capital-1a2b" });
    expect(parseRoute("/runs")).toEqual({ section: "runs", id: null });
    expect(parseRoute("/graphs/a/b").section).toBe("unknown");
    expect(parseRoute("/secrets").section).toBe("unknown");
  });
});

describe("the tab's name", () => {
  it("tells pages of one transcoder apart", () => {
    const names = ["/", "/lab", "/interpretation", "/transcoders/first", "/transcoders/first/features", "/transcoders/first/features/3/14", "/graphs/a-1", "/x"].map((path) => tabNameOf(parseRoute(path)));
    expect(names).toEqual(["Graphs", "Lab", "Labels", "first · Transcoders", "Features of first", "L3 · 14 · first", "a-1 · Graphs", "No such page"]);
  });
});

describe("tokens", () => {
  it("show what would not be seen", () => {
    expect(["", " the", "  ", "a\n\r\t", "\u00a0x", "\u200b", "\u202eabc", "\u0000", "\ufeff"].map(showToken)).toEqual(["∅", "·the", "··", "a⏎␍⇥", "⍽x", "⟨200B⟩", "⟨202E⟩abc", "⟨0000⟩", "⟨FEFF⟩"]);
    expect([" the ", "", "\u2066a"].map(showInText)).toEqual([" the ", "", "⟨2066⟩a"]);
  });

  it("leave alone what shapes the letters beside it", () => {
    expect(["\u0645\u06cc\u200c", "👩\u200d🚀", "é", "�"].map(showToken)).toEqual(["\u0645\u06cc\u200c", "👩\u200d🚀", "é", "�"]);
    expect(showToken("\u200d")).toBe("⟨200D⟩");
  });
});

describe("evaluation", () => {
  it("adds up the bins of all layers", () => {
    const evaluation = { density_edges_log10: [-2, -1, 0], density_counts_by_layer: [1, 2, 3, 4, 5, 6] } as Evaluation;
    expect(densityCounts(evaluation)).toEqual([9, 12]);
    expect(densityCounts({ density_edges_log10: [], density_counts_by_layer: [] } as unknown as Evaluation)).toEqual([]);
  });

  it("names bins in per cent and marks powers of ten", () => {
    const edges = [-2, -1.5, -1];
    expect(binName(edges, 0, false)).toBe("1% to 3.2% of tokens");
    expect(binName(edges, 0, true)).toBe("1e-2");
    expect(binName(edges, 1, true)).toBe("");
  });
});

describe("visible", () => {
  it("marks spaces at the ends, line breaks and nothing at all", () => {
    expect(["", " a b", "  ", "a\n", "\t "].map(visible)).toEqual(["∅", "␣a b", "␣␣", "a⏎", "⇥␣"]);
  });
});
