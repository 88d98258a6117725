// What the console's backend sends: the protobuf messages with their own field names, enums in lower case, times in ISO 8601.

export type GraphState = "running" | "succeeded" | "failed" | "cancelled" | "unspecified";
export type RunState = "pending" | "running" | "paused" | "succeeded" | "failed" | "cancelled" | "unspecified";

export interface Progress {
  stage: string;
  completed: number;
  total: number;
  unit: string;
  create_time: string | null;
  update_time: string | null;
}

export interface GraphSpec {
  model: string;
  transcoder: string;
  prompt: string;
  max_logits: number;
  node_threshold: number;
  edge_threshold: number;
  targets: unknown[];
  target_token_ids: number[];
  position: number | null;
}

/** A target as the backend takes it: a token, a difference of two, or a feature. Tokens are texts or ids. */
export type NewTarget = { text: string } | { token_id: number } | { plus: string | number; minus: string | number } | { layer: number; index: number };

export interface GraphStatistics {
  num_features: number;
  num_nodes: number;
  num_edges: number;
  num_nodes_kept: number;
  num_edges_kept: number;
  replacement_score: number;
  completeness_score: number;
  conservation_error: number;
  seconds: number;
  stage_seconds: { stage: string; seconds: number }[];
}

export interface FeatureIntervention {
  node_id: string;
  factor?: number;
  value?: number;
}

export interface LogitEffect {
  token_id: number;
  text: string;
  predicted: number;
  predicted_total: number;
  measured_frozen: number;
  measured: number;
  probability_before: number;
  probability_after: number;
}

export interface InterventionResult {
  interventions: FeatureIntervention[];
  effects: LogitEffect[];
  create_time: string | null;
}

export interface Graph {
  name: string;
  spec: GraphSpec | null;
  state: GraphState;
  prompt_tokens: string[];
  statistics: GraphStatistics | null;
  create_time: string | null;
  error_message: string;
  interventions: InterventionResult[];
}

export interface GraphScores {
  replacement_score: number;
  completeness_score: number;
}

export interface PartScore {
  whole: GraphScores;
  subgraph: GraphScores;
  influence_share: number;
  num_features: number;
}

export interface GraphPath {
  node_ids: string[];
  weights: number[];
  strength: number;
}

export interface FoundPaths {
  paths: GraphPath[];
  total_strength: number;
}

/** An edge in parts: `direct`, the parts and `rest` add up to `total`. */
export interface SplitEdge {
  weight: number;
  total: number;
  direct: number;
  parts: { layer: number; head: number; position: number; value: number }[];
  rest: number;
}

/** A head's score between two positions as a sum over pairs of what they hold; pairs and `rest` add up to `total`. */
export interface ExplainedAttention {
  score: number;
  pattern: number;
  total: number;
  pairs: { query_node_id: string; key_node_id: string; value: number }[];
  rest: number;
}

/** What a change does to every node: changes of pre-activations and demeaned logits. */
export interface SteerResult {
  nodes: { node_id: string; before: number; predicted: number; measured: number; activation_after: number }[];
  logits: { token_id: number; text: string; predicted: number; measured: number; probability_before: number; probability_after: number }[];
  rank_agreement: number | null;
}

export interface Supernode {
  kind: "features" | "tokens" | "errors" | "logits" | "others";
  label: string;
  node_ids: string[];
  num_nodes: number;
  influence: number;
  first_layer: number;
  last_layer: number;
  raised_tokens: string[];
}

export interface Flow {
  source: number;
  target: number;
  influence: number;
  net: number;
}

export interface Summary {
  supernodes: Supernode[];
  flows: Flow[];
  influence_share: number;
  flow_share: number;
  whole: GraphScores;
  summary: GraphScores;
}

export interface ComparedNode {
  node_id: string;
  other_node_id: string;
  influence: number;
  other_influence: number;
  activation: number;
  other_activation: number;
}

export interface ComparedEdge {
  source: number;
  target: number;
  weight: number;
  other_weight: number;
  influence: number;
  other_influence: number;
}

export interface Comparison {
  positions: number[];
  overlap: number;
  num_common: number;
  num_first_only: number;
  num_other_only: number;
  nodes: ComparedNode[];
  edges: ComparedEdge[];
}

export interface Metrics {
  step: number;
  tokens: number;
  loss: number;
  reconstruction_loss: number;
  sparsity_loss: number;
  preact_loss: number;
  aux_loss: number;
  l0: number;
  explained_variance: number;
  dead_share: number;
  gradient_norm: number;
  learning_rate: number;
  tokens_per_s: number;
  data_wait_share: number;
  sent_bytes_per_token: number;
  entry_bytes_per_token: number;
}

export interface Evaluation {
  step: number;
  tokens: number;
  explained_variance: number;
  explained_variance_by_layer: number[];
  l0_by_layer: number[];
  silent_share: number;
  reconstruction_loss: number;
  silent_share_by_layer: number[];
  dense_share: number;
  dense_share_by_layer: number[];
  density_edges_log10: number[];
  /** Row-major, a row of bins a layer. */
  density_counts_by_layer: number[];
  replacement: Replacement | null;
}

export interface ReplacementScore {
  cross_entropy: number;
  kl_divergence: number;
  top1_agreement: number;
  ablated_cross_entropy: number;
  recovered: number | null;
}

export interface Replacement {
  tokens: number;
  sequences: number;
  cross_entropy: number;
  all: ReplacementScore | null;
  by_layer: ReplacementScore[];
}

export interface Checkpoint {
  name: string;
  step: number;
  evaluation: Evaluation | null;
}

export interface TrainingSpec {
  dataset: string;
  num_features: number;
  activation: string;
  top_k: number;
  num_steps: number;
  step_tokens: number;
  feature_ranks: number;
  data_ranks: number;
  learning_rate: number;
}

export interface Run {
  name: string;
  spec: TrainingSpec | null;
  state: RunState;
  transitions: { state: RunState; time: string | null; reason: string }[];
  step: number;
  attempt: number;
  metrics: Metrics | null;
  evaluation: Evaluation | null;
  create_time: string | null;
  error_message: string;
  peak_memory_bytes: number;
}

export interface Transcoder {
  name: string;
  model: string;
  model_revision: string;
  /** Empty where it was imported. */
  dataset: string;
  run: string;
  num_layers: number;
  num_features: number;
  d_model: number;
  input_hook: string;
  output_hook: string;
  activation: string;
  evaluation: Evaluation | null;
  size_bytes: number;
  create_time: string | null;
  prefix: string;
  /** Layers that a feature writes to; 0 means all from its own on. */
  window: number;
}

export interface Dataset {
  name: string;
  spec: {
    model: string;
    num_layers: number;
    d_model: number;
    input_hook: string;
    output_hook: string;
    codec: string;
    target_fvu: number;
    corpus: string;
  } | null;
  state: "open" | "sealed" | "unspecified";
  num_shards: number;
  num_train_tokens: number;
  num_held_out_tokens: number;
  size_bytes: number;
  create_time: string | null;
  seal_time: string | null;
}

export interface CompressionStats {
  layer: number;
  stream: "input" | "output";
  bits_per_value: number;
  entropy_bits: number;
  fvu: number;
}

export interface DatasetStats {
  stats: CompressionStats[];
  bits_per_value: number;
  bytes_per_token: number;
  fvu_max: number;
}

export interface FeatureLogit {
  token_id: number;
  text: string;
  weight: number;
}

export interface Feature {
  name: string;
  layer: number;
  index: number;
  decoder_norms: number[];
  encoder_bias: number;
  threshold: number | null;
  top_logits: FeatureLogit[];
  bottom_logits: FeatureLogit[];
}

export interface Model {
  name: string;
  num_layers: number;
  num_heads: number;
  /** What it reads: `speech` hears a recording besides. */
  kind: string;
}

/** By depth and position: the most likely tokens, and how far the prediction is from the model's own, in nats. */
export interface Lens {
  tokens: string[];
  depths: number[];
  top: { text: string; probability: number }[][][];
  kl: number[][];
}

export interface Pattern {
  tokens: string[];
  pattern: number[][];
}

/** Where tokens look in a recording: weights by token and frame, and the spectrogram from 0 to 255 by mel bin and frame. */
export interface Hearing {
  tokens: string[];
  /** Seconds that a frame lasts. */
  frame_s: number;
  pattern: number[][];
  spectrogram: number[][];
}

/** By layer and position: the share of the metric that comes back. */
export interface Sweep {
  clean_tokens: string[];
  corrupted_tokens: string[];
  layers: number[];
  clean_metric: number;
  corrupted_metric: number;
  restored: (number | null)[][];
}

/** The last part of a resource name: `graphs/x` gives `x`. */
export function idOf(name: string): string {
  return name.slice(name.lastIndexOf("/") + 1);
}
