/** Labels of a graph's features: they come after the graph, and change while one looks at it. */
import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { useLoad } from "../ui/load";
import type { ApiError } from "../api";
import { count } from "../format";
import type { StandingLabel } from "../ui/origin";
import type { GraphModel } from "./model";
import { proposeName, type Proposal } from "./naming";

/** By `layer-index`. */
export type Labels = ReadonlyMap<string, StandingLabel>;

interface Answer {
  labels: { layer: number; index: number; label: StandingLabel }[];
  num_looked_at: number;
  num_features: number;
}

export interface GraphLabels {
  /** Another map whenever one of them changes. */
  labels: Labels;
  problem: ApiError | null;
  /** What is said where a graph has more features than labels were looked up for. */
  note: string | null;
  reload: () => void;
  /** Takes what was said just now; null where a label was withdrawn. */
  put: (layer: number, index: number, label: StandingLabel | null) => void;
}

/** Null asks for none: a graph in the making has none yet. */
export function useGraphLabels(graphId: string | null, model: GraphModel): GraphLabels {
  const { data, problem, reload } = useLoad<Answer>(graphId === null ? null : `/api/graphs/${encodeURIComponent(graphId)}/labels`);
  const [said, setSaid] = useState<Labels>(new Map());
  useEffect(() => {
    if (data) setSaid(new Map(data.labels.map((each) => [`${each.layer}-${each.index}`, each.label])));
  }, [data]);
  // Before anything below is drawn: nodes are read by everything that shows one.
  const labels = useMemo(() => {
    nameNodes(model, said);
    return said;
  }, [model, said]);
  const put = useCallback((layer: number, index: number, label: StandingLabel | null) => setSaid((before) => {
    const key = `${layer}-${index}`;
    if (JSON.stringify(before.get(key) ?? null) === JSON.stringify(label)) return before;
    const after = new Map(before);
    if (label) after.set(key, label);
    else after.delete(key);
    return after;
  }), []);
  return { labels, problem, note: data ? labelNote(data.num_looked_at, data.num_features) : null, reload, put };
}

/** Null where labels of all features were looked up. */
export function labelNote(numLookedAt: number, numFeatures: number): string | null {
  if (numLookedAt >= numFeatures) return null;
  return `Labels were looked up for the ${count(numLookedAt)} most influential of ${count(numFeatures)} features; the others are called by layer and number.`;
}

/** Lets features be called by their labels, and by their places where they have none. */
export function nameNodes(model: GraphModel, labels: Labels): void {
  for (const node of model.nodes) {
    if (node.kind !== "feature") continue;
    node.stands = labels.get(`${node.layer}-${node.feature}`) ?? null;
    node.label = node.stands?.text ?? node.name;
  }
}

/** The feature that a node's id names, as `layer-index`; null for errors, tokens and logits. */
export function featureOf(id: string): string | null {
  const parts = /^(\d+)_(\d+)_(\d+)$/.exec(id);
  return parts ? `${parts[1]}-${parts[2]}` : null;
}

/** A name for nodes from the labels of their features, each once; also of those that the file leaves out. */
export function proposeFor(model: GraphModel, labels: Labels, ids: string[]): Proposal | null {
  const weights = new Map<string, number>();
  for (const id of ids) {
    const node = model.byId.get(id);
    const feature = node && node.kind !== "feature" ? null : featureOf(id);
    if (feature !== null) weights.set(feature, (weights.get(feature) ?? 0) + (node?.influence ?? 0));
  }
  return proposeName([...weights].map(([feature, weight]) => {
    const label = labels.get(feature);
    return label ? { text: label.text, weight } : null;
  }));
}
