import { describe, expect, it } from "vitest";
import { buildGrid, cellKey, featureName, listed, type Firing, type FiringFeature } from "../src/lab/firing";
import { sharedStart } from "../src/lab/result";
import { changePin, changesOf, NOTHING, parseLayers, readLab, togglePin, writeLab, type LabState } from "../src/lab/state";
import { originOf, type StandingLabel } from "../src/ui/origin";

const label = (text: string, more: Partial<StandingLabel> = {}): StandingLabel => ({ text, is_human: false, scores: {}, explainer: "", is_imported: false, ...more });
const feature = (layer: number, index: number, at: Record<number, number>, relative_max = 0, text = ""): FiringFeature => ({
  layer, index, positions: Object.keys(at).map(Number), activations: Object.values(at), relative_max, label: text ? label(text) : null,
});
const firing = (features: FiringFeature[]): Firing => ({ tokens: ["<s>", "The", " end"], features, num_active_features: features.length });

describe("the address of the lab", () => {
  it("holds all of the state", () => {
    const state: LabState = {
      transcoder: "a b", prompt: "1 + 1 = &\n", layers: "3-8, 12", token: 0, perCell: 3, newTokens: 7, isRun: true,
      pins: [
        { layer: 3, index: 15, change: null, positions: [] },
        { layer: 0, index: 0, change: { kind: "factor", amount: 0 }, positions: [1, 4] },
        { layer: 7, index: 1048575, change: { kind: "value", amount: -2.5 }, positions: [] },
        { layer: 8, index: 2, change: { kind: "add", amount: 1e-7 }, positions: [2] },
        { layer: 9, index: 2, change: { kind: "add", amount: 1e21 }, positions: [] },
      ],
    };
    expect(readLab(writeLab(state))).toEqual(state);
    expect(writeLab(NOTHING)).toBe("");
    expect(readLab("")).toEqual(NOTHING);
  });

  it("leaves out what makes no sense", () => {
    const read = readLab("?pin=x&pin=3-&pin=3-4x&pin=3-4=zz&pin=5-6&pin=5-6x2&cell=99&tokens=0&token=-1&run=yes");
    expect(read.pins).toEqual([{ layer: 5, index: 6, change: { kind: "factor", amount: 2 }, positions: [] }]);
    expect(read).toMatchObject({ perCell: 4, newTokens: 1, token: null, isRun: false });
  });

  it("has no more pins than the service changes at once", () => {
    const many = Array.from({ length: 150 }, (_, i) => `pin=1-${i}`).join("&");
    const read = readLab(`?${many}`);
    expect(read.pins).toHaveLength(100);
    expect(togglePin(read, { layer: 2, index: 0 }).pins).toHaveLength(100);
  });
});

describe("pins", () => {
  it("come, change and go", () => {
    const one = { ...NOTHING, ...togglePin(NOTHING, { layer: 1, index: 2 }) };
    const changed = { ...one, ...changePin(one, "1-2", { change: { kind: "factor", amount: 0 }, positions: [3] }) };
    expect(changesOf(one.pins)).toEqual([]);
    expect(changesOf(changed.pins)).toEqual([{ feature: "1-2", positions: [3], factor: 0 }]);
    expect(togglePin(changed, { layer: 1, index: 2 }).pins).toEqual([]);
  });
});

describe("layers as written", () => {
  it("are read, or not at all", () => {
    expect(parseLayers("3-5, 9 4", 12)).toEqual([3, 4, 5, 9]);
    expect(parseLayers(" ", 12)).toEqual([]);
    for (const wrong of ["12", "5-3", "a", "1-", "3--4", "0-99999999"]) expect(parseLayers(wrong, 12)).toBeNull();
  });
});

describe("what fires where", () => {
  it("holds features against their own largest where there is an index", () => {
    const grid = buildGrid(firing([feature(0, 1, { 1: 2, 2: 4 }, 0.5), feature(0, 2, { 1: 3 }, 0.9), feature(2, 9, { 2: 1 }, 0)]));
    expect(grid.isIndexed).toBe(true);
    expect(grid.layers).toEqual([2, 0]);
    expect(grid.cells.get(cellKey(0, 1))!.map((fired) => [fired.feature.index, fired.strength])).toEqual([[2, 0.9], [1, 0.25]]);
    // The index never saw it active: its largest is here.
    expect(grid.cells.get(cellKey(2, 2))![0]!.strength).toBe(1);
  });

  it("holds them against their layer's largest where there is none", () => {
    const grid = buildGrid(firing([feature(0, 1, { 1: 2, 2: 4 }), feature(0, 2, { 1: 3 }), feature(1, 0, { 1: 10 })]));
    expect(grid.isIndexed).toBe(false);
    expect(grid.cells.get(cellKey(0, 1))!.map((fired) => fired.strength)).toEqual([0.75, 0.5]);
    expect(grid.cells.get(cellKey(1, 1))![0]!.strength).toBe(1);
  });

  it("lists each feature once, of a token or of all, by words of its label", () => {
    const grid = buildGrid(firing([feature(0, 1, { 1: 2, 2: 4 }, 0, "Capital cities"), feature(0, 2, { 1: 3 }), feature(1, 1, { 1: 10 })]));
    expect(listed(grid, null, "").map((fired) => [fired.feature.layer, fired.feature.index, fired.activation])).toEqual([[1, 1, 10], [0, 1, 4], [0, 2, 3]]);
    expect(listed(grid, 1, "").map((fired) => fired.activation)).toEqual([10, 3, 2]);
    expect(listed(grid, null, "CITIES cap").map(({ feature: { index } }) => index)).toEqual([1]);
    expect(listed(grid, null, "0-2").map(({ feature: { index } }) => index)).toEqual([2]);
    expect(listed(grid, 0, "")).toEqual([]);
  });

  it("is called by its label, or by its place", () => {
    expect(featureName(feature(3, 15, {}, 0, "names"))).toBe("names");
    expect(featureName(feature(3, 15, {}))).toBe("L3 · 15");
  });
});

describe("who said a label", () => {
  it("is told apart", () => {
    expect(originOf(label("a", { is_human: true, scores: { detection: 0.9 } })).name).toBe("person");
    expect(originOf(label("a", { scores: { fuzzing: 0.61, detection: 0.84 }, explainer: "m" }))).toEqual({ kind: "model", name: "model 0.84", told: "A model's label by m; fuzzing 0.61, detection 0.84" });
    expect(originOf(label("a"))).toEqual({ kind: "model", name: "model", told: "A model's label; not scored yet" });
    expect(originOf(label("a", { is_imported: true, explainer: "m" }))).toEqual({ kind: "imported", name: "imported", told: "A model's label from elsewhere by m; not scored here" });
  });
});

describe("two continuations", () => {
  it("share their start", () => {
    const of = (...ids: number[]) => ids.map((token_id) => ({ token_id }));
    expect(sharedStart(of(1, 2, 3), of(1, 2, 4))).toBe(2);
    expect(sharedStart(of(1, 2), of(1, 2))).toBe(2);
    expect(sharedStart(of(1, 2), of())).toBe(0);
  });
});
