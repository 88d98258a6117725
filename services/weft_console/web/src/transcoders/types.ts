// Indexes of features as the console's backend sends them.
import type { JobState } from "../interpretation/types";
import type { Progress } from "../types";

export interface IndexSettings {
  num_top: number;
  num_sampled: number;
  num_quantiles: number;
  window_tokens: number;
  dense_share: number;
  num_neighbours: number;
  coactivation_tokens: number;
}

export interface FeatureIndex {
  name: string;
  dataset: string;
  held_out: boolean;
  settings: IndexSettings | null;
  num_tokens: number;
  num_sequences: number;
  /** Of each layer. */
  num_features: number[];
  num_dead: number;
  num_dense: number;
  /** By what a feature was taken for active; unspecified where an index is of before that was told. */
  activity_rule: "unspecified" | "threshold" | "threshold_for_count";
  create_time: string | null;
}

/** Work on an index that is not whole. */
export interface IndexJob {
  index: string;
  operation: string;
  request: { dataset: string; held_out: boolean; max_tokens: number } | null;
  state: JobState;
  progress: Progress | null;
  error_message: string;
  create_time: string | null;
}

export interface IndexesAnswer {
  indexes: FeatureIndex[];
  jobs: IndexJob[];
}
