import { describe, expect, it } from "vitest";
import { budgetLeft, callsToScore, firstMissing, isAtChance, merged, NO_SPEND, numLeft, readFeatures, readLayers, retries } from "../src/interpretation/model";
import type { Interpretation, InterpretedFeature } from "../src/interpretation/types";
import { parseRoute } from "../src/routes";
import { indexId, mean, numParameters } from "../src/transcoders/figures";

const row = (position: number, label = ""): InterpretedFeature => ({ name: "", layer: 0, index: position, position, outcome: "labelled", label, reason: "", scores: [], control_scores: [] });

const job = (more: Partial<Interpretation>): Interpretation => ({
  operation: "operations/a", parent: "transcoders/t", num_named: 0, state: "running", progress: null, spend: null, reports: [], error_message: "", create_time: null, end_time: null, ...more,
});

describe("spend", () => {
  it("counts calls beyond the first of each question as retries", () => {
    expect(retries({ ...NO_SPEND, calls: 12, num_answered: 6, num_refused: 1, num_rejected: 1, num_failed: 1 })).toBe(3);
    expect(retries({ ...NO_SPEND, calls: 1, num_answered: 2 })).toBe(0);
  });

  it("is told before: questions of five lines, control ones too, ten intruders, sixteen texts an embedding", () => {
    expect(callsToScore(["detection"], 20, false)).toBe(8);
    expect(callsToScore(["detection", "fuzzing"], 20, true)).toBe(32);
    expect(callsToScore(["intruder", "embedding"], 20, true)).toBe(10 + 4);
    expect(callsToScore(["detection", "intruder"], 4, false)).toBe(2 + 4);
    expect(callsToScore([], 20, true)).toBe(0);
  });

  it("tells what is left of a budget, which may have no limit of tokens", () => {
    const scope = { graphs: [], max_features: 0, max_calls: 10, max_tokens: 500 };
    const spend = { ...NO_SPEND, calls: 4, question_tokens: 300, answer_tokens: 250 };
    expect(budgetLeft(job({ explain: { scope, prompt: "", num_examples: 0 }, spend }))).toEqual({ calls: 6, tokens: 0 });
    expect(budgetLeft(job({ explain: { scope: { ...scope, max_tokens: 0 }, prompt: "", num_examples: 0 } }))).toEqual({ calls: 10, tokens: null });
  });

  it("counts what was not come to, also of work that was stopped", () => {
    const progress = { stage: "asking", completed: 3, total: 10, unit: "features", create_time: null, update_time: null };
    expect(numLeft(job({ state: "cancelled", progress }))).toBe(7);
    expect(numLeft(job({ progress, explained: { num_features: 10, num_labelled: 8, num_kept: 0, num_too_few: 0, num_unlabelled: 0, num_left: 2, explainer: "", prompt: "" } }))).toBe(2);
  });

  it("is at chance where the interval holds it", () => {
    const score = { value: 0.45, low: 0.4, high: 0.49, num_trials: 9, num_unanswered: 0 };
    expect(isAtChance("fuzzing", score)).toBe(false);
    expect(isAtChance("fuzzing", { ...score, high: 0.5 })).toBe(true);
    expect(isAtChance("intruder", { ...score, low: 0.1 })).toBe(true);
  });
});

describe("rows as they come", () => {
  it("keeps places in order and each once, the newer one", () => {
    const rows = merged([row(0), row(1), row(4)], [row(2), row(3), row(4, "new"), row(7)]);
    expect(rows.map((one) => one.position)).toEqual([0, 1, 2, 3, 4, 7]);
    expect(rows[4]!.label).toBe("new");
    expect(merged(rows, [])).toBe(rows);
  });

  it("finds the first gap", () => {
    expect(firstMissing([])).toBe(0);
    expect(firstMissing([row(1)])).toBe(0);
    expect(firstMissing([0, 1, 2, 4, 5, 9].map((at) => row(at)))).toBe(3);
    expect(firstMissing([0, 1, 2].map((at) => row(at)))).toBe(3);
  });
});

describe("what a person writes", () => {
  it("reads layers", () => {
    expect(readLayers("")).toEqual([]);
    expect(readLayers("7, 0-2,1")).toEqual([0, 1, 2, 7]);
    for (const wrong of ["a", "3-1", "1;2", "-1"]) expect(readLayers(wrong)).toBeNull();
  });

  it("reads features", () => {
    expect(readFeatures(" 3-14,3-15\n0-1  3-14")).toEqual(["3-14", "3-15", "0-1"]);
    expect(readFeatures("3-14 x")).toBeNull();
  });
});

describe("transcoders", () => {
  it("has pages of their own", () => {
    expect(parseRoute("/transcoders")).toMatchObject({ section: "transcoders", id: null });
    expect(parseRoute("/transcoders/a%20b")).toMatchObject({ section: "transcoders", id: "a b" });
    expect(parseRoute("/interpretation/attribution-explain-features.1f")).toMatchObject({ section: "interpretation", id: "attribution-explain-features.1f" });
    expect(parseRoute("/interpretation/a/b").section).toBe("unknown");
  });

  it("counts parameters of encoders, decoders and biases", () => {
    const shape = { num_layers: 3, num_features: 10, d_model: 4, window: 0 };
    // 3 encoders, 6 decoders, 3 x (10 + 4) biases.
    expect(numParameters(shape)).toBe(3 * 40 + 6 * 40 + 42);
    expect(numParameters({ ...shape, window: 1 })).toBe(3 * 40 + 3 * 40 + 42);
    expect(numParameters({ ...shape, window: 2 })).toBe(3 * 40 + 5 * 40 + 42);
  });

  it("names the next index", () => {
    expect(indexId("d", [])).toBe("d");
    expect(indexId("d", ["d", "d-2"])).toBe("d-3");
    expect(indexId("x".repeat(63), []).length).toBeLessThanOrEqual(63);
    expect(mean([1, 2, 6])).toBe(3);
    expect(mean([])).toBe(0);
  });
});
