import { describe, expect, it } from "vitest";
import { Geometry } from "../src/graph/geometry";
import { layOut } from "../src/graph/layout";
import { buildModel, fullThreshold, inputsOf, outputsOf, searchNodes, visibleNodes, type RawGraph, type RawNode } from "../src/graph/model";
import { BOX_HEIGHT, placeGroups } from "../src/graph/groups-layout";
import { advance, startHistory } from "../src/graph/history";
import { edgesOf, hull, shorten, strongestVisible } from "../src/graph/paint";
import { groupPins, MAX_PART, partOf, readState, togglePin, ungroup, writeState, type PageState } from "../src/graph/state";
import { targetsOf } from "../src/graph/targets";
import type { Summary, Supernode } from "../src/types";

function node(id: string, layer: number | string, position: number, type: string, more: Partial<RawNode> = {}): RawNode {
  return { node_id: id, feature: null, layer, ctx_idx: position, feature_type: type, clerp: "", ...more };
}

/** Two tokens, two features in a chain, an error, two logits; small enough to work out by hand. */
function small(): RawGraph {
  const feature = "cross layer transcoder";
  return {
    metadata: { slug: "s", scan: "m", prompt: "a b", prompt_tokens: ["a", " b"], node_threshold: 0.8 },
    nodes: [
      node("E_1_0", "E", 0, "embedding"),
      node("E_2_1", "E", 1, "embedding"),
      node("0_7_1", "0", 1, feature, { influence: 0.3, activation: 2 }),
      node("1_9_1", "1", 1, feature, { influence: 0.6, activation: 1, clerp: "capitals" }),
      node("0_error_mlp_1", "0", 1, "mlp reconstruction error", { influence: 0.7 }),
      node("3_50_1", "3", 1, "logit", { token_prob: 0.6, clerp: 'Output " Paris" (p=0.600)' }),
      node("3_51_1", "3", 1, "logit", { token_prob: 0.2, clerp: 'Output "x" (p=0.200)' }),
    ],
    links: [
      { source: "E_1_0", target: "0_7_1", weight: 3 },
      { source: "E_2_1", target: "0_7_1", weight: -1 },
      { source: "0_7_1", target: "1_9_1", weight: 1 },
      { source: "0_error_mlp_1", target: "1_9_1", weight: 1 },
      { source: "1_9_1", target: "3_50_1", weight: 2 },
      { source: "0_7_1", target: "3_50_1", weight: -2 },
      { source: "E_2_1", target: "3_51_1", weight: 5 },
    ],
  };
}

describe("model", () => {
  it("shares an edge out of the absolute input of its target", () => {
    const model = buildModel(small());
    const inputs = inputsOf(model, model.byId.get("0_7_1")!);
    expect(inputs.map((edge) => [edge.other.id, edge.share])).toEqual([["E_1_0", 0.75], ["E_2_1", -0.25]]);
    const outputs = outputsOf(model, model.byId.get("0_7_1")!);
    expect(outputs.map((edge) => [edge.other.id, edge.share])).toEqual([["1_9_1", 0.5], ["3_50_1", -0.5]]);
  });

  it("hands influence down from the logits in proportion to absolute shares", () => {
    const model = buildModel(small());
    const influence = (id: string) => model.byId.get(id)!.influence;
    expect(influence("3_50_1")).toBeCloseTo(0.75, 12);
    expect(influence("1_9_1")).toBeCloseTo(0.375, 12);
    expect(influence("0_7_1")).toBeCloseTo(0.375 + 0.1875, 12);
    expect(influence("0_error_mlp_1")).toBeCloseTo(0.1875, 12);
    expect(influence("E_1_0")).toBeCloseTo(0.5625 * 0.75, 12);
    // What leaves the logits arrives at tokens and errors, and nowhere else.
    expect(influence("E_1_0") + influence("E_2_1") + influence("0_error_mlp_1")).toBeCloseTo(1, 12);
  });

  it("takes labels from tokens, ids and logits", () => {
    const model = buildModel(small());
    expect(model.nodes.map((one) => one.label)).toEqual(["a", "·b", "L0 · 7", "capitals", "Error L0 at ·b", "·Paris", "x"]);
    expect(model.numLayers).toBe(2);
  });

  it("keeps tokens, logits and what a person wants at every threshold", () => {
    const model = buildModel(small());
    const kept = (threshold: number, showErrors: boolean, wanted: string[] = []) => {
      const visible = visibleNodes(model, { threshold, showErrors, maxPositions: 0 }, new Set(wanted));
      return model.nodes.filter((one) => visible[one.index]).map((one) => one.id);
    };
    expect(kept(0, true)).toEqual(["E_1_0", "E_2_1", "3_50_1", "3_51_1"]);
    expect(kept(0.6, true)).toHaveLength(6);
    expect(kept(0.8, true)).toHaveLength(7);
    expect(kept(0.8, false)).not.toContain("0_error_mlp_1");
    expect(kept(0, true, ["1_9_1"])).toContain("1_9_1");
  });

  it("shows everything at the slider's end, also the node that crosses the threshold", () => {
    const raw = small();
    raw.nodes[3]!.influence = 0.8125;
    const model = buildModel(raw);
    expect(fullThreshold(model, 0.8)).toBe(0.8125);
    expect(visibleNodes(model, { threshold: fullThreshold(model, 0.8), showErrors: true, maxPositions: 0 }, new Set())).not.toContain(0);
    expect(fullThreshold(buildModel(small()), 0.8)).toBe(0.8);
  });

  it("refuses files that contradict themselves, and says where", () => {
    const twice = small();
    twice.nodes.push(twice.nodes[0]!);
    expect(() => buildModel(twice)).toThrow("E_1_0 stands twice");
    const loose = small();
    loose.links.push({ source: "E_1_0", target: "9_9_9", weight: 1 });
    expect(() => buildModel(loose)).toThrow("9_9_9");
    const strange = small();
    strange.nodes[0]!.feature_type = "gate";
    expect(() => buildModel(strange)).toThrow('"gate"');
  });

  it("finds nodes by any of their words, most influential first", () => {
    const model = buildModel(small());
    expect(searchNodes(model, "cap", 5).map((one) => one.id)).toEqual(["1_9_1"]);
    expect(searchNodes(model, "feature", 5).map((one) => one.id)).toEqual(["0_7_1", "1_9_1"]);
    expect(searchNodes(model, "  ", 5)).toEqual([]);
  });

  it("draws only edges between visible nodes, strongest first", () => {
    const model = buildModel(small());
    const visible = visibleNodes(model, { threshold: 0.8, showErrors: false, maxPositions: 0 }, new Set());
    const edges = strongestVisible(model, visible, 3);
    expect(edges).toHaveLength(3);
    const scores = edges.map((edge) => model.edgeScore[edge]!);
    expect(scores).toEqual([...scores].sort((a, b) => b - a));
    const own = edgesOf(model, model.byId.get("1_9_1")!, visible, 10);
    expect(own.map((edge) => model.nodes[model.edgeSource[edge]!]!.id).sort()).toEqual(["0_7_1", "1_9_1"]);
  });
});

describe("layout", () => {
  it("puts layers above each other and positions beside each other", () => {
    const model = buildModel(small());
    const layout = layOut(model);
    const at = (id: string) => [layout.x[model.byId.get(id)!.index]!, layout.y[model.byId.get(id)!.index]!] as const;
    expect(at("3_50_1")[1]).toBeLessThan(at("1_9_1")[1]);
    expect(at("1_9_1")[1]).toBeLessThan(at("0_7_1")[1]);
    expect(at("0_7_1")[1]).toBeLessThan(at("E_1_0")[1]);
    expect(at("E_1_0")[0]).toBeLessThan(at("E_2_1")[0]);
  });

  it("gives every node of a crowded graph a place of its own inside its column", () => {
    const raw = small();
    for (let i = 0; i < 9; i++) raw.nodes.push(node(`3_${60 + i}_1`, "3", 1, "logit"));
    for (let i = 0; i < 500; i++) raw.nodes.push(node(`1_${100 + i}_1`, "1", 1, "cross layer transcoder", { influence: 0.5 }));
    const model = buildModel(raw);
    const layout = layOut(model);
    const places = new Set(model.nodes.filter((one) => one.kind !== "logit").map((one) => `${layout.x[one.index]},${layout.y[one.index]}`));
    expect(places.size).toBe(model.nodes.length - 11);
    expect(new Set(model.nodes.filter((one) => one.kind === "logit").map((one) => layout.y[one.index])).size).toBe(1);
    const column = layout.columns[1]!;
    for (const one of model.nodes) {
      if (one.position !== 1 || one.kind === "logit") continue;
      expect(layout.x[one.index]!).toBeGreaterThan(column.start);
      expect(layout.x[one.index]!).toBeLessThan(column.end);
    }
  });
});

describe("geometry", () => {
  const model = buildModel(small());
  const all = new Uint8Array(model.nodes.length).fill(1);

  it("finds the node under the pointer and none beside it", () => {
    const geometry = new Geometry(model, layOut(model), 800, 600);
    for (const one of model.nodes) expect(geometry.at(geometry.px[one.index]! + 2, geometry.py[one.index]!, all)).toBe(one);
    expect(geometry.at(2, 2, all)).toBeNull();
  });

  it("keeps the point under the pointer while it zooms, and fits again", () => {
    const geometry = new Geometry(model, layOut(model), 800, 600);
    const one = model.byId.get("0_7_1")!;
    const x = geometry.px[one.index]!;
    const y = geometry.py[one.index]!;
    geometry.zoomBy(3, x, y);
    expect(geometry.px[one.index]).toBeCloseTo(x, 6);
    expect(geometry.py[one.index]).toBeCloseTo(y, 6);
    geometry.fit();
    expect(geometry.zoom).toBe(1);
    expect(geometry.px[one.index]).toBeCloseTo(x, 6);
  });

  it("leads the arrow keys to every node", () => {
    const geometry = new Geometry(model, layOut(model), 800, 600);
    const reached = new Set([model.nodes[0]!]);
    for (const one of reached) {
      for (const direction of ["left", "right", "up", "down"] as const) {
        const next = geometry.neighbour(one, direction, all);
        if (next) reached.add(next);
      }
    }
    expect(reached.size).toBe(model.nodes.length);
  });
});

describe("state in the address", () => {
  it("comes back as it went", () => {
    const state: PageState = {
      selected: "1_9_1", pinned: ["0_7_1", "E_1_0"], groups: [{ name: "a|b, c&d", ids: ["1_9_1"] }], moved: { "0_7_1": [1.5, -2] },
      threshold: 0.5, showErrors: false, maxPositions: 3, numEdges: 50, view: "compare", other: "italy",
    };
    expect(readState(writeState(state, 0.8), 0.8)).toEqual(state);
    expect(writeState(readState("", 0.8), 0.8)).toBe("");
  });

  it("bounds what somebody else wrote", () => {
    expect(readState("#influence=9&edges=-4&errors=1", 0.8)).toMatchObject({ threshold: 1, numEdges: 0, showErrors: true });
    expect(readState("#influence=no", 0.8).threshold).toBe(0.8);
    const long = readState(`#pinned=${Array.from({ length: 5000 }, (_, i) => i).join(",")}&moved=a:1:x,b:2:3&group=|&group=n|a,a`, 0.8);
    expect(long.pinned).toHaveLength(MAX_PART);
    expect(long.moved).toEqual({ b: [2, 3] });
    expect(long.groups).toEqual([{ name: "n", ids: ["a"] }]);
  });
});

describe("pins and groups", () => {
  const start = (): PageState => ({ ...readState("", 0.8), pinned: ["a", "b"] });
  const apply = (state: PageState, part: Partial<PageState>): PageState => ({ ...state, ...part });

  it("keeps the same part through grouping and back", () => {
    const grouped = apply(start(), groupPins(start()));
    expect(grouped.groups).toEqual([{ name: "Group 1", ids: ["a", "b"] }]);
    expect(grouped.pinned).toEqual([]);
    expect(partOf(grouped)).toEqual(["a", "b"]);
    const back = apply(grouped, ungroup(grouped, 0));
    expect(back).toMatchObject({ groups: [], pinned: ["a", "b"] });
  });

  it("takes an unpinned node out of its group too, and the group with its last node", () => {
    const grouped = apply(start(), groupPins(start()));
    const one = apply(grouped, togglePin(grouped, "a"));
    expect(one.groups[0]!.ids).toEqual(["b"]);
    expect(apply(one, togglePin(one, "b")).groups).toEqual([]);
  });

  it("counts a feature's positions, and hides dense ones unless they are wanted", () => {
    const raw = small();
    raw.nodes.push(node("0_7_0", "0", 0, "cross layer transcoder", { influence: 0.5 }));
    const model = buildModel(raw);
    expect(model.byId.get("0_7_1")!.spread).toBe(2);
    expect(model.byId.get("1_9_1")!.spread).toBe(1);
    const filter = { threshold: 1, showErrors: true, maxPositions: 1 };
    const shown = (wanted: string[]) => [...visibleNodes(model, filter, new Set(wanted))].reduce((sum, flag) => sum + flag, 0);
    expect(shown([])).toBe(6);
    expect(shown(["0_7_0"])).toBe(7);
  });
});

describe("history", () => {
  it("undoes and does again what was set, and leaves the eye where it is", () => {
    let history = startHistory(readState("", 0.8));
    history = advance(history, { change: { pinned: ["a"] }, time: 0 });
    history = advance(history, { change: { selected: "x" }, time: 1 });
    history = advance(history, { change: (before) => ({ pinned: [...before.pinned, "b"] }), time: 2 });
    history = advance(history, "undo");
    expect(history.present).toMatchObject({ pinned: ["a"], selected: "x" });
    expect(advance(history, "undo").present.pinned).toEqual([]);
    expect(advance(history, "redo").present.pinned).toEqual(["a", "b"]);
    expect(advance(history, { change: { pinned: ["c"] }, time: 3 }).future).toEqual([]);
  });

  it("joins a slider's many changes into one step, and no others", () => {
    let history = startHistory(readState("", 0.8));
    for (let i = 0; i < 20; i++) history = advance(history, { change: { threshold: i / 40 }, time: 10 * i });
    expect(history.past).toHaveLength(1);
    history = advance(history, { change: { threshold: 0.6 }, time: 5000 });
    expect(history.past).toHaveLength(2);
    for (let i = 0; i < 3; i++) history = advance(history, { change: { pinned: [String(i)] }, time: 5001 + i });
    expect(history.past).toHaveLength(5);
    expect(advance(history, { change: { pinned: history.present.pinned }, time: 6000 })).toBe(history);
  });
});

describe("places that people choose", () => {
  it("move a node, stay through a new size, and go when they are taken back", () => {
    const model = buildModel(small());
    const geometry = new Geometry(model, layOut(model), 800, 500);
    const index = model.byId.get("0_7_1")!.index;
    const home = [geometry.px[index], geometry.py[index]];
    geometry.shift(index, 30, -12);
    expect([geometry.px[index]! - home[0]!, geometry.py[index]! - home[1]!].map((delta) => Math.round(delta * 1e6) / 1e6)).toEqual([30, -12]);
    const place = geometry.placeOf(index);
    geometry.setMoved({ "0_7_1": place, "9_9_9": [0, 0] });
    geometry.resize(400, 900);
    geometry.resize(800, 500);
    expect(geometry.px[index]).toBeCloseTo(home[0]! + 30, 9);
    geometry.shift(index, 1e6, 1e6);
    expect(geometry.placeOf(index)).toEqual([geometry.layout.width, geometry.layout.height]);
    geometry.setMoved({});
    expect([geometry.px[index], geometry.py[index]]).toEqual(home);
  });

  it("are wrapped by a convex outline", () => {
    const outline = hull([[0, 0], [4, 0], [4, 4], [0, 4], [2, 2], [1, 3], [2, 0]]);
    expect(outline).toHaveLength(4);
    expect(new Set(outline.map(String))).toEqual(new Set(["0,0", "4,0", "4,4", "0,4"]));
    expect(hull([[1, 1]])).toEqual([[1, 1]]);
  });
});

describe("groups of a summary", () => {
  const group = (kind: Supernode["kind"], first_layer = 0): Supernode => ({ kind, label: kind, node_ids: [], num_nodes: 1, influence: 0.1, first_layer, last_layer: first_layer, raised_tokens: [] });
  const summary: Summary = {
    supernodes: [...[0, 3, 9, 5, 7].map((layer) => group("features", layer)), ...Array.from({ length: 6 }, () => group("tokens")), group("errors"), group("logits"), group("others")],
    flows: [], influence_share: 1, flow_share: 1, whole: { replacement_score: 1, completeness_score: 1 }, summary: { replacement_score: 1, completeness_score: 1 },
  };

  it("stand within the width and apart from each other, deeper layers above", () => {
    for (const width of [320, 700, 1400]) {
      const { boxes, height } = placeGroups(summary, width);
      expect(boxes.map((box) => box.index)).toEqual(summary.supernodes.map((_, index) => index));
      for (const box of boxes) {
        expect(box.x).toBeGreaterThanOrEqual(0);
        expect(box.x + box.width).toBeLessThanOrEqual(width + 1e-9);
        expect(box.y + BOX_HEIGHT).toBeLessThanOrEqual(height);
        for (const other of boxes) {
          const apart = other === box || other.y !== box.y || other.x >= box.x + box.width || box.x >= other.x + other.width;
          expect(apart).toBe(true);
        }
      }
      expect(boxes[2]!.y).toBeLessThanOrEqual(boxes[0]!.y);
      expect(Math.max(...boxes.slice(5, 12).map((box) => box.y))).toBeGreaterThan(boxes[0]!.y);
    }
  });
});

describe("targets", () => {
  it("keep the spaces of tokens and number features", () => {
    expect(targetsOf([
      { kind: "token", first: " Paris", second: "" }, { kind: "difference", first: " a", second: "b" }, { kind: "feature", first: "3", second: "12" },
    ])).toEqual([{ text: " Paris" }, { plus: " a", minus: "b" }, { layer: 3, index: 12 }]);
  });
});

describe("shorten", () => {
  const ctx = { measureText: (text: string) => ({ width: [...text].length }) as TextMetrics };

  it("cuts between characters, however many units they have", () => {
    expect(["🦊🦊🦊", "🦊", "東京都", ""].map((text) => shorten(ctx, text, 3))).toEqual(["🦊🦊🦊", "🦊", "東京都", ""]);
    expect(["🦊🦊🦊🦊", "東京都庁"].map((text) => shorten(ctx, text, 3))).toEqual(["🦊🦊…", "東京…"]);
  });

  it("keeps one character where there is room for none", () => {
    expect(["🦊", "a🦊b"].map((text) => shorten(ctx, text, 0))).toEqual(["🦊", "a…"]);
  });
});
