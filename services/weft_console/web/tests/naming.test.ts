import { describe, expect, it } from "vitest";
import { overlaps, placeLabels, type Box } from "../src/graph/place-labels";
import { featureOf, labelNote, nameNodes, proposeFor, type Labels } from "../src/graph/labels";
import { buildModel, searchNodes, type RawGraph } from "../src/graph/model";
import { proposeName } from "../src/graph/naming";
import { groupPins, readState, renameGroup, writeState, type PageState } from "../src/graph/state";
import type { StandingLabel } from "../src/ui/origin";

const named = (...texts: (string | null)[]) => proposeName(texts.map((text, at) => (text === null ? null : { text, weight: texts.length - at })))?.name ?? null;

describe("a name for a group", () => {
  it.each([
    [["cities in France", "capital cities of France", "French cities"], "cities, France"],
    [["names of months", "Names of Months in dates", "months"], "months, names"],
    [["the end of a sentence", "end of a sentence, before a name"], "end of a sentence"],
    [["City of Paris", "cities"], "City"],
    [["closing brackets", "closing brackets"], "closing brackets"],
    [["words about law", "words about sport"], "words about law and 1 other"],
    [["a", "b", "c"], "a and 2 others"],
    [["only one", null, null], "only one"],
    [["глаголы движения", "глаголы речи"], "глаголы"],
    [["mention of the word ‘bank’", "mention of the word ‘bank’ in finance"], "bank"],
  ])("of %j is %j", (texts, wanted) => {
    expect(named(...texts)).toBe(wanted);
  });

  it("is none where no member has a label", () => {
    expect(named(null, null)).toBeNull();
    expect(named()).toBeNull();
    expect(named("  ")).toBeNull();
  });

  it("takes what half of the labels have, and at least two of them", () => {
    expect(named("red fruit", "red car", "blue car", "green tea")).toBe("red, car");
    expect(named("red fruit", "blue car", "green tea", "red wine", "old house")).toBe("red fruit and 4 others");
  });

  it("is of the weightiest label where nothing is shared", () => {
    expect(proposeName([{ text: "first", weight: 1 }, { text: "second", weight: 3 }, null])).toEqual({ name: "second and 1 other", numLabelled: 2, numMembers: 3 });
  });

  it("is short, and text whatever it looks like", () => {
    const long = Array.from({ length: 500 }, () => "x").join("");
    expect(named(long)!.length).toBe(120);
    expect(named("<img src=x onerror=alert(1)>")).toBe("<img src=x onerror=alert(1)>");
  });
});

const RAW: RawGraph = {
  metadata: { slug: "g", scan: "m", prompt: "a b", prompt_tokens: ["a", " b"] },
  nodes: [
    { node_id: "E_1_0", feature: 0, layer: "E", ctx_idx: 0, feature_type: "embedding", clerp: "" },
    { node_id: "0_5_1", feature: 20, layer: "0", ctx_idx: 1, feature_type: "cross layer transcoder", clerp: "", activation: 1 },
    { node_id: "0_5_0", feature: 20, layer: "0", ctx_idx: 0, feature_type: "cross layer transcoder", clerp: "", activation: 1 },
    { node_id: "1_7_1", feature: 43, layer: "1", ctx_idx: 1, feature_type: "cross layer transcoder", clerp: "", activation: 2 },
    { node_id: "0_error_mlp_1", feature: -1, layer: "0", ctx_idx: 1, feature_type: "mlp reconstruction error", clerp: "" },
    { node_id: "3_9_1", feature: 9, layer: "3", ctx_idx: 1, feature_type: "logit", clerp: 'Output " c" (p=0.9)', token_prob: 0.9 },
  ],
  links: [{ source: "0_5_1", target: "1_7_1", weight: 1 }, { source: "1_7_1", target: "3_9_1", weight: 1 }],
};
const label = (text: string): StandingLabel => ({ text, is_human: true, scores: {}, explainer: "", is_imported: false });

describe("labels of a graph", () => {
  it("are said to be of some features only where that is so", () => {
    expect(labelNote(20_000, 20_000)).toBeNull();
    expect(labelNote(0, 0)).toBeNull();
    expect(labelNote(20_000, 34_567)).toContain("the 20,000 most influential of 34,567 features");
  });

  const labels: Labels = new Map([["0-5", label("letters of the alphabet")], ["1-7", label("small letters")], ["0-99", label("pruned letters")]]);

  it("name its features at every position, and are found", () => {
    const model = buildModel(RAW);
    nameNodes(model, labels);
    expect(model.nodes.map((node) => node.label)).toEqual(["a", "letters of the alphabet", "letters of the alphabet", "small letters", "Error L0 at ·b", "·c"]);
    expect(searchNodes(model, "ALPHABET letters", 9).map((node) => node.id).sort()).toEqual(["0_5_0", "0_5_1"]);
    expect(searchNodes(model, "L1 · 7", 9).map((node) => node.id)).toEqual(["1_7_1"]);
    nameNodes(model, new Map());
    expect(model.byId.get("1_7_1")).toMatchObject({ label: "L1 · 7", stands: null });
  });

  it("name groups, each feature once, those too that the file leaves out", () => {
    const model = buildModel(RAW);
    expect(proposeFor(model, labels, ["0_5_1", "0_5_0", "1_7_1", "0_99_1", "2_3_1", "3_9_1", "E_1_0", "0_error_mlp_1"])).toEqual({ name: "letters", numLabelled: 3, numMembers: 4 });
    expect(proposeFor(model, labels, ["3_9_1", "2_3_1"])).toBeNull();
    expect(featureOf("0_error_mlp_1")).toBeNull();
  });
});

describe("a proposed name", () => {
  const empty = readState("", 1);
  const pinned: PageState = { ...empty, pinned: ["0_5_1"] };

  it("is marked, in the address too, until somebody writes another", () => {
    const grouped = { ...pinned, ...groupPins(pinned, "letters | and, more") };
    expect(grouped.groups).toEqual([{ name: "letters | and, more", ids: ["0_5_1"], isProposed: true }]);
    const two = { ...grouped, pinned: ["1_7_1"] };
    const both = { ...two, ...groupPins(two) };
    expect(readState(writeState(both, 1), 1)).toEqual(both);
    const renamed = { ...both, ...renameGroup(both, 0, "mine") };
    expect(renamed.groups[0]).toEqual({ name: "mine", ids: ["0_5_1"] });
    expect(writeState(renamed, 1)).not.toContain("proposed");
  });
});

describe("labels in the drawing", () => {
  it("overlap where both ways they do", () => {
    const box: Box = [0, 0, 10, 10];
    expect(overlaps(box, [9, 9, 20, 20])).toBe(true);
    expect(overlaps(box, [10, 0, 20, 10])).toBe(false);
    expect(overlaps(box, [0, 10, 10, 20])).toBe(false);
  });

  it("lie over no other and within the drawing, the first ones first, over as few nodes as can be", () => {
    let seed = 7;
    const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
    const marks = { x: Array.from({ length: 150 }, () => 400 * random()), y: Array.from({ length: 150 }, () => 300 * random()), radius: Array.from({ length: 150 }, () => 2 + 5 * random()) };
    const all = marks.x.map((_, i) => i);
    const wanted = all.slice(0, 60).map((mark) => ({ mark, width: 20 + 90 * random() }));
    const room = { bounds: [0, 0, 400, 300] as Box, height: 13, gap: 4, margin: 3, mostCovered: 2, limit: 30 };
    const taken: Box[] = [[100, 100, 180, 130]];
    const boxes = placeLabels(wanted, marks, all, taken, room);
    const placed = boxes.filter((box): box is Box => box !== null);
    expect(placed.length).toBeGreaterThan(5);
    expect(placed.length).toBeLessThanOrEqual(30);
    // Whether a circle meets a box, by points in it.
    const points = Array.from({ length: 48 }, (_, k) => [(1 - (k % 4) / 4) * Math.cos(k), (1 - (k % 4) / 4) * Math.sin(k)] as const);
    const covers = ([left, top, right, bottom]: Box, i: number) => points.some(([dx, dy]) => {
      const x = marks.x[i]! + marks.radius[i]! * dx;
      const y = marks.y[i]! + marks.radius[i]! * dy;
      return x > left && x < right && y > top && y < bottom;
    });
    const full = [...taken];
    boxes.forEach((box, at) => {
      if (!box) return;
      const [left, top, right, bottom] = box;
      expect([left >= 0, top >= 0, right <= 400, bottom <= 300]).toEqual([true, true, true, true]);
      for (const other of full) expect(overlaps([left - 2.9, top - 2.9, right + 2.9, bottom + 2.9], other)).toBe(false);
      expect(all.filter((i) => i !== wanted[at]!.mark && covers(box, i)).length).toBeLessThanOrEqual(2);
      full.push(box);
    });
    // With nothing around, it stands to the right; at the right edge to the left.
    const alone = (x: number) => placeLabels([{ mark: 0, width: 50 }], { x: [x], y: [150], radius: [5] }, [0], [], room)[0]![0];
    expect([alone(100), alone(390)]).toEqual([109, 331]);
  });
});
