/**
 * A graph in memory: nodes as objects, edges as typed arrays ordered by target and by source.
 *
 * Shares: an edge's share is its weight over the sum of absolute weights into its target, over every edge of the file,
 * so that it does not move with the pruning slider.
 */

import type { StandingLabel } from "../ui/origin";
import { showToken } from "../ui/token-text";

export type NodeKind = "feature" | "error" | "token" | "logit" | "bias";

export interface RawNode {
  node_id: string;
  feature: number | null;
  layer: string | number;
  ctx_idx: number;
  feature_type: string;
  clerp: string;
  influence?: number | null;
  activation?: number | null;
  token_prob?: number | null;
  is_target_logit?: boolean;
}

export interface RawGraph {
  metadata: {
    slug: string;
    scan: string;
    prompt: string;
    prompt_tokens: string[];
    node_threshold?: number;
  };
  nodes: RawNode[];
  links: { source: string; target: string; weight: number }[];
}

export interface GraphNode {
  index: number;
  id: string;
  kind: NodeKind;
  /** Row on the page: -1 for tokens, 0 to L-1 for layers, L for logits. */
  row: number;
  layer: number;
  position: number;
  /** Index of the feature within its layer; -1 for other kinds. */
  feature: number;
  /** What it is called: the label of its feature, or its name. */
  label: string;
  /** What it is called without a label. */
  name: string;
  /** The label that stands for its feature. */
  stands: StandingLabel | null;
  /** Cumulative share of influence at which the node comes in; low means important. */
  cumulative: number;
  /** Own influence on the logits, found from the file's edges. */
  influence: number;
  activation: number | null;
  probability: number;
  /** Whether `probability` is one, and not the weight of a target that is no token. */
  isLikely: boolean;
  /** Positions of the prompt at which this node's feature stands in the file; 1 for other kinds. */
  spread: number;
}

export interface GraphModel {
  nodes: GraphNode[];
  byId: Map<string, GraphNode>;
  tokens: string[];
  prompt: string;
  numLayers: number;
  edgeSource: Uint32Array;
  edgeTarget: Uint32Array;
  edgeWeight: Float64Array;
  edgeShare: Float64Array;
  /** Share of the edge times the influence of its target. */
  edgeScore: Float64Array;
  /** Edges by target, strongest first: those of node n stand at inStart[n] to inStart[n + 1]. */
  inEdges: Uint32Array;
  inStart: Uint32Array;
  /** Edges by source, strongest first. */
  outEdges: Uint32Array;
  outStart: Uint32Array;
  /** All edges, highest score first. */
  strongest: Uint32Array;
}

const KINDS: Record<string, NodeKind> = {
  "cross layer transcoder": "feature",
  "mlp reconstruction error": "error",
  embedding: "token",
  logit: "logit",
  bias: "bias",
};

function kindOf(raw: RawNode): NodeKind {
  const kind = KINDS[raw.feature_type];
  if (!kind) throw new Error(`Node ${raw.node_id} has the unknown type "${raw.feature_type}".`);
  return kind;
}

function labelOf(raw: RawNode, kind: NodeKind, layer: number, feature: number, tokens: string[]): string {
  const token = showToken(tokens[raw.ctx_idx] ?? "");
  if (kind === "token") return token;
  if (kind === "error") return `Error L${layer} at ${token}`;
  if (kind === "logit") {
    const quoted = /"(.*)"/s.exec(raw.clerp);
    return showToken(quoted?.[1] ?? raw.clerp.replace(/\s*\(p=[^)]*\)\s*$/, ""));
  }
  return raw.clerp || `L${layer} · ${feature}`;
}

/** Reads the graph file; `hasTargets` where a person said what to explain. Throws an Error that names what is wrong. */
export function buildModel(raw: RawGraph, hasTargets = false): GraphModel {
  const tokens = raw.metadata.prompt_tokens;
  const kinds = raw.nodes.map(kindOf);
  let numLayers = 0;
  raw.nodes.forEach((node, i) => {
    if (kinds[i] === "feature" || kinds[i] === "error") numLayers = Math.max(numLayers, Number(node.layer) + 1);
    if (kinds[i] === "logit") numLayers = Math.max(numLayers, Number(node.layer) - 1);
  });
  const byId = new Map<string, GraphNode>();
  const nodes = raw.nodes.map((node, index): GraphNode => {
    const kind = kinds[index]!;
    const layer = kind === "token" ? -1 : kind === "logit" ? numLayers : Number(node.layer);
    const feature = kind === "feature" ? Number(node.node_id.split("_")[1]) : -1;
    const name = labelOf(node, kind, layer, feature, tokens);
    const built: GraphNode = {
      index,
      id: node.node_id,
      kind,
      row: layer,
      layer,
      position: node.ctx_idx,
      feature,
      label: name,
      name,
      stands: null,
      cumulative: node.influence ?? (kind === "feature" || kind === "error" ? 1 : 0),
      influence: 0,
      activation: node.activation ?? null,
      probability: node.token_prob ?? 0,
      isLikely: kind === "logit" && !(hasTargets && node.token_prob === 1),
      spread: 1,
    };
    if (byId.has(built.id)) throw new Error(`Node ${built.id} stands twice in the graph.`);
    byId.set(built.id, built);
    return built;
  });
  setSpread(nodes);

  const links = raw.links;
  const numEdges = links.length;
  const edgeSource = new Uint32Array(numEdges);
  const edgeTarget = new Uint32Array(numEdges);
  const edgeWeight = new Float64Array(numEdges);
  const rowSum = new Float64Array(nodes.length);
  links.forEach((link, e) => {
    const source = byId.get(link.source);
    const target = byId.get(link.target);
    if (!source || !target) throw new Error(`An edge names the unknown node ${source ? link.target : link.source}.`);
    edgeSource[e] = source.index;
    edgeTarget[e] = target.index;
    edgeWeight[e] = link.weight;
    rowSum[target.index]! += Math.abs(link.weight);
  });
  const edgeShare = edgeWeight.map((weight, e) => weight / (rowSum[edgeTarget[e]!]! || 1));
  const [inEdges, inStart] = group(edgeTarget, edgeShare, nodes.length);
  const [outEdges, outStart] = group(edgeSource, edgeShare, nodes.length);

  const arrived = influenceOf(nodes, inEdges, inStart, edgeSource, edgeShare);
  const edgeScore = edgeShare.map((share, e) => Math.abs(share) * arrived[edgeTarget[e]!]!);
  const strongest = new Uint32Array(numEdges).map((_, e) => e).sort((a, b) => edgeScore[b]! - edgeScore[a]!);
  return {
    nodes, byId, tokens, prompt: raw.metadata.prompt, numLayers,
    edgeSource, edgeTarget, edgeWeight, edgeShare, edgeScore,
    inEdges, inStart, outEdges, outStart, strongest,
  };
}

function setSpread(nodes: GraphNode[]): void {
  const positions = new Map<string, number>();
  const key = (node: GraphNode) => `${node.layer}_${node.feature}`;
  const features = nodes.filter((node) => node.kind === "feature");
  for (const node of features) positions.set(key(node), (positions.get(key(node)) ?? 0) + 1);
  for (const node of features) node.spread = positions.get(key(node))!;
}

/** Edge indices by one end, in order of falling share within each node. */
function group(end: Uint32Array, share: Float64Array, numNodes: number): [Uint32Array, Uint32Array] {
  const start = new Uint32Array(numNodes + 1);
  for (const node of end) start[node + 1]!++;
  for (let n = 0; n < numNodes; n++) start[n + 1]! += start[n]!;
  const next = start.slice(0, numNodes);
  const edges = new Uint32Array(end.length);
  end.forEach((node, e) => { edges[next[node]!++] = e; });
  for (let n = 0; n < numNodes; n++) {
    edges.subarray(start[n]!, start[n + 1]!).sort((a, b) => Math.abs(share[b]!) - Math.abs(share[a]!));
  }
  return [edges, start];
}

/**
 * Walks from the logits down and hands every node's influence to its sources in proportion to their absolute share.
 * Sets `influence` of each node and returns it with the logits' own probability added.
 */
function influenceOf(
  nodes: GraphNode[], inEdges: Uint32Array, inStart: Uint32Array, edgeSource: Uint32Array, edgeShare: Float64Array,
): Float64Array {
  const arrived = new Float64Array(nodes.length);
  const logits = nodes.filter((node) => node.kind === "logit");
  const total = logits.reduce((sum, node) => sum + node.probability, 0);
  for (const node of logits) arrived[node.index] = total > 0 ? node.probability / total : 1 / logits.length;
  const downwards = nodes.slice().sort((a, b) => b.row - a.row);
  for (const node of downwards) {
    const mass = arrived[node.index]!;
    if (node.kind !== "logit") node.influence = mass;
    if (mass === 0) continue;
    for (let i = inStart[node.index]!; i < inStart[node.index + 1]!; i++) {
      const e = inEdges[i]!;
      arrived[edgeSource[e]!]! += mass * Math.abs(edgeShare[e]!);
    }
  }
  for (const node of logits) node.influence = arrived[node.index]!;
  return arrived;
}

/** Which nodes are on the page. */
export interface Filter {
  threshold: number;
  showErrors: boolean;
  /** Features at more positions of the prompt are dense here and hidden; 0 hides none. */
  maxPositions: number;
}

/** Whether a node is on the page: tokens and logits always are. */
export function isKept(node: GraphNode, { threshold, showErrors, maxPositions }: Filter): boolean {
  if (node.kind === "token" || node.kind === "logit") return true;
  if (node.kind === "error" && !showErrors) return false;
  if (maxPositions > 0 && node.spread > maxPositions) return false;
  return node.cumulative <= threshold + 1e-9;
}

/** The threshold at which everything in the file is on the page: the node that crosses the file's own one is in it too. */
export function fullThreshold(model: GraphModel, asked: number): number {
  return model.nodes.reduce((most, node) => (node.kind === "feature" || node.kind === "error" ? Math.max(most, node.cumulative) : most), asked);
}

/** One flag a node: kept by the filter, or wanted by the person. */
export function visibleNodes(model: GraphModel, filter: Filter, wanted: ReadonlySet<string>): Uint8Array {
  return Uint8Array.from(model.nodes, (node) => (isKept(node, filter) || wanted.has(node.id) ? 1 : 0));
}

/** What a node is called, also one that the file leaves out: ids say layer, index and position. */
export function nameOf(model: GraphModel, id: string): string {
  const node = model.byId.get(id);
  if (node) return node.label;
  const [first = "", second = "", third = ""] = id.split("_");
  if (second === "error") return `Error L${first}`;
  if (first === "E") return showToken(model.tokens[Number(third)] ?? id);
  return `L${first} · ${second}`;
}

export interface ListedEdge {
  edge: number;
  other: GraphNode;
  weight: number;
  /** Signed share of the input of the edge's target. */
  share: number;
}

/** What flows into a node, strongest first. */
export function inputsOf(model: GraphModel, node: GraphNode): ListedEdge[] {
  return listed(model, model.inEdges.subarray(model.inStart[node.index], model.inStart[node.index + 1]), model.edgeSource);
}

/** What a node flows into, by share of each target's input, strongest first. */
export function outputsOf(model: GraphModel, node: GraphNode): ListedEdge[] {
  return listed(model, model.outEdges.subarray(model.outStart[node.index], model.outStart[node.index + 1]), model.edgeTarget);
}

function listed(model: GraphModel, edges: Uint32Array, end: Uint32Array): ListedEdge[] {
  return Array.from(edges, (edge) => ({
    edge,
    other: model.nodes[end[edge]!]!,
    weight: model.edgeWeight[edge]!,
    share: model.edgeShare[edge]!,
  }));
}

/** Nodes whose id, name, label or position's token contain every word asked for. */
export function searchNodes(model: GraphModel, query: string, limit: number): GraphNode[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [];
  const hits = model.nodes.filter((node) => {
    const text = `${node.id} ${node.kind} l${node.layer} ${node.name} ${node.label} ${model.tokens[node.position] ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  return hits.sort((a, b) => b.influence - a.influence).slice(0, limit);
}
