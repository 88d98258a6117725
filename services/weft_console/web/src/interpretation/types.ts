// Interpretation as the console's backend sends it.
import type { Progress } from "../types";

export type JobState = "waiting" | "running" | "cancelling" | "succeeded" | "failed" | "cancelled" | "unspecified";
export type Kind = "detection" | "fuzzing" | "intruder" | "embedding";
export type Outcome = "labelled" | "kept" | "scored" | "too_few" | "unlabelled" | "refused" | "rejected" | "broken" | "unanswered" | "changed";

export interface Spend {
  calls: number;
  question_tokens: number;
  answer_tokens: number;
  num_answered: number;
  num_refused: number;
  num_rejected: number;
  num_broken: number;
  num_failed: number;
  num_reused: number;
}

export interface Pooled {
  value: number;
  low: number;
  high: number;
  num_trials: number;
  num_unanswered: number;
}

export interface Report {
  kind: Kind;
  num_features: number;
  mean: number;
  pooled: Pooled | null;
  control: Pooled | null;
}

export interface Scope {
  graphs: string[];
  max_features: number;
  max_calls: number;
  max_tokens: number;
}

export interface Explained {
  num_features: number;
  num_labelled: number;
  num_kept: number;
  num_too_few: number;
  num_unlabelled: number;
  num_left: number;
  explainer: string;
  prompt: string;
}

export interface Scored {
  num_features: number;
  num_scored: number;
  num_unlabelled: number;
  num_too_few: number;
  num_unanswered: number;
  num_left: number;
}

export interface Interpretation {
  operation: string;
  parent: string;
  explain?: { scope: Scope | null; prompt: string; num_examples: number };
  score?: { scope: Scope | null; kinds: Kind[]; num_examples: number; control: boolean };
  num_named: number;
  state: JobState;
  progress: Progress | null;
  spend: Spend | null;
  reports: Report[];
  explained?: Explained;
  scored?: Scored;
  error_message: string;
  create_time: string | null;
  end_time: string | null;
}

export interface LabelScore extends Pooled {
  kind: Kind;
}

/** What came of one feature. Its label and its reason are somebody's text. */
export interface InterpretedFeature {
  name: string;
  layer: number;
  index: number;
  position: number;
  outcome: Outcome;
  label: string;
  reason: string;
  scores: LabelScore[];
  control_scores: LabelScore[];
}

export interface Interpreter {
  is_set_up: boolean;
  model: string;
  embedding_model: string;
  explain_prompts: string[];
}
