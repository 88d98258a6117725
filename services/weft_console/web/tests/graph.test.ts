import { describe, expect, it } from "vitest";
import { Geometry } from "../src/graph/geometry";
import { layOut } from "../src/graph/layout";
import { buildModel, fullThreshold, inputsOf, outputsOf, searchNodes, showToken, visibleNodes, type RawGraph, type RawNode } from "../src/graph/model";
import { edgesOf, strongestVisible } from "../src/graph/paint";
import { readState, writeState } from "../src/graph/state";

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
    expect(showToken("\n")).toBe("⏎");
  });

  it("keeps tokens, logits and what a person wants at every threshold", () => {
    const model = buildModel(small());
    const kept = (threshold: number, errors: boolean, wanted: string[] = []) => {
      const visible = visibleNodes(model, threshold, errors, new Set(wanted));
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
    expect(visibleNodes(model, fullThreshold(model, 0.8), true, new Set())).not.toContain(0);
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
    const visible = visibleNodes(model, 0.8, false, new Set());
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
    const state = { selected: "1_9_1", pinned: ["0_7_1", "E_1_0"], threshold: 0.5, showErrors: false, numEdges: 50 };
    expect(readState(writeState(state, 0.8), 0.8)).toEqual(state);
    expect(writeState(readState("", 0.8), 0.8)).toBe("");
  });

  it("bounds what somebody else wrote", () => {
    expect(readState("#influence=9&edges=-4&errors=1", 0.8)).toMatchObject({ threshold: 1, numEdges: 0, showErrors: true });
    expect(readState("#influence=no", 0.8).threshold).toBe(0.8);
  });
});
