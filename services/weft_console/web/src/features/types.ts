// What the backend sends of features, with the field names of proto/weft/features/v1.
import type { FeatureLogit } from "../types";

export interface StandingLabel {
  text: string;
  is_human: boolean;
  scores: Record<string, number>;
}

export interface FeatureStatistics {
  num_active: number;
  density: number;
  max_activation: number;
  mean_activation: number;
  state: "active" | "dead" | "dense" | "unspecified";
  decoder_norm: number;
  first_layer: number;
  last_layer: number;
  histogram: number[];
}

/** A feature as lists have it. */
export interface FeatureRow {
  name: string;
  layer: number;
  index: number;
  statistics: FeatureStatistics | null;
  label: StandingLabel | null;
  /** Of its strongest stretches, how many are strongest on the token that was looked for. */
  num_stretches?: number;
}

export interface FeatureExample {
  sequence: number;
  start: number;
  tokens: string[];
  activations: number[];
  peak: number;
  peak_at: number;
  quantile: number;
}

export interface WholeFeature extends FeatureRow {
  decoder_norms: number[];
  encoder_bias: number;
  threshold: number | null;
  top_logits: FeatureLogit[];
  bottom_logits: FeatureLogit[];
  examples: FeatureExample[];
  neighbours: { index: number; cosine: number }[];
  partners: { index: number; count: number; share: number }[];
}

/** What is worked out only when it is asked for. */
export interface FeatureDetails {
  target_logits: { layer: number; top_logits: FeatureLogit[]; bottom_logits: FeatureLogit[] }[];
  quiet_examples: FeatureExample[];
}

export interface FeatureIndex {
  name: string;
  dataset: string;
  num_tokens: number;
  num_features: number[];
  num_dead: number;
  num_dense: number;
  coactivation_tokens: number;
  histogram_edges: number[];
  settings: { num_quantiles: number; dense_share: number } | null;
  create_time: string | null;
}

export interface FeaturePageAnswer {
  features: FeatureRow[];
  total_size: number;
  token_ids: number[];
}

export interface FeatureGraphs {
  graphs: { graph: string; prompt: string; positions: number[]; activations: number[]; create_time: string | null }[];
  next_page_token: string;
  num_read: number;
}

export interface LabelScore {
  kind: string;
  value: number;
  low: number;
  high: number;
  num_trials: number;
  num_unanswered: number;
  scorer: string;
  prompt: string;
}

export interface Label {
  text: string;
  origin: "human" | "model" | "unspecified";
  author: string;
  explainer: string;
  prompt: string;
  prompt_sha256: string;
  revision: number;
  create_time: string | null;
  scores: LabelScore[];
}

/** The label that stands, everything that was ever said, newest first, and the etag that a change is to follow. */
export interface LabelHistory {
  label: Label | null;
  revisions: Label[];
  has_more: boolean;
  etag: string;
}

/** `L3 · 14`, as people call a feature. */
export function shortName(layer: number, index: number): string {
  return `L${layer} · ${index}`;
}

export function featurePath(transcoder: string, layer: number, index: number): string {
  return `/transcoders/${encodeURIComponent(transcoder)}/features/${layer}/${index}`;
}

export function searchPath(transcoder: string): string {
  return `/transcoders/${encodeURIComponent(transcoder)}/features`;
}
