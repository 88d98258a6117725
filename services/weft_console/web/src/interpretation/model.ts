/** What the figures of interpretation mean. */
import { count } from "../format";
import type { Interpretation, InterpretedFeature, JobState, Kind, Outcome, Pooled, Scope, Spend } from "./types";

export const NO_SPEND: Spend = {
  calls: 0, question_tokens: 0, answer_tokens: 0, num_answered: 0, num_refused: 0, num_rejected: 0, num_broken: 0, num_failed: 0, num_reused: 0,
};

/** What a label scores that says nothing; intruder picks one line of five. */
export const CHANCE: Record<Kind, number> = { detection: 0.5, fuzzing: 0.5, intruder: 0.2, embedding: 0.5 };

export const OUTCOME_NAMES: Record<Outcome, string> = {
  labelled: "labelled",
  kept: "label kept",
  scored: "scored",
  too_few: "too few examples",
  unlabelled: "no label to score",
  refused: "refused",
  rejected: "rejected",
  broken: "broken answer",
  unanswered: "no answer",
  changed: "label changed",
};

export const FAILURES: Outcome[] = ["refused", "rejected", "broken", "unanswered", "changed"];

export function isOver(state: JobState): boolean {
  return state === "succeeded" || state === "failed" || state === "cancelled";
}

export function scopeOf(job: Interpretation): Scope {
  return (job.explain ?? job.score)?.scope ?? { graphs: [], max_features: 0, max_calls: 0, max_tokens: 0 };
}

/** `Explain 12 features`. */
export function titleOf(job: Interpretation): string {
  const total = job.progress?.total ?? 0;
  return `${job.explain ? "Explain" : "Score"} ${count(total)} ${total === 1 ? "feature" : "features"}`;
}

/** Calls beyond the first of each question. */
export function retries(spend: Spend): number {
  return Math.max(0, spend.calls - spend.num_answered - spend.num_refused - spend.num_rejected - spend.num_failed);
}

export function tokens(spend: Spend): number {
  return spend.question_tokens + spend.answer_tokens;
}

/** Calls and tokens that may still be paid for; null where there is no limit. */
export function budgetLeft(job: Interpretation): { calls: number; tokens: number | null } {
  const scope = scopeOf(job);
  const spend = job.spend ?? NO_SPEND;
  return { calls: Math.max(0, scope.max_calls - spend.calls), tokens: scope.max_tokens > 0 ? Math.max(0, scope.max_tokens - tokens(spend)) : null };
}

/** Features that were not come to, once the work is over. */
export function numLeft(job: Interpretation): number {
  const response = job.explained ?? job.scored;
  if (response) return response.num_left;
  return Math.max(0, (job.progress?.total ?? 0) - (job.progress?.completed ?? 0));
}

export function isAtChance(kind: Kind, score: Pooled): boolean {
  return score.low <= CHANCE[kind] && CHANCE[kind] <= score.high;
}

/** Lines that a question of detection or fuzzing has, texts of one call that embeds, and questions after intruders. */
const LINES_A_QUESTION = 5;
const TEXTS_AN_EMBEDDING = 16;
const INTRUDER_QUESTIONS = 10;

/** Calls that explaining a feature takes, where nothing is asked for again. */
export const CALLS_TO_EXPLAIN = 1;

/** Calls that scoring a feature takes at most, with so many of its lines and as many silent ones. */
export function callsToScore(kinds: Kind[], numLines: number, hasControl: boolean): number {
  const byFlags = Math.ceil((2 * numLines) / LINES_A_QUESTION) * (hasControl ? 2 : 1);
  const calls: Record<Kind, number> = {
    detection: byFlags, fuzzing: byFlags, intruder: Math.min(numLines, INTRUDER_QUESTIONS), embedding: Math.ceil((2 * numLines) / TEXTS_AN_EMBEDDING) + 1,
  };
  return kinds.reduce((sum, kind) => sum + calls[kind], 0);
}

/** Rows by place, each once, what is newer in place of what is older. */
export function merged(rows: InterpretedFeature[], fresh: InterpretedFeature[]): InterpretedFeature[] {
  const first = fresh[0];
  if (!first) return rows;
  const last = rows[rows.length - 1];
  if (!last || first.position > last.position) return [...rows, ...fresh];
  const byPlace = new Map([...rows, ...fresh].map((one) => [one.position, one]));
  return [...byPlace.values()].sort((a, b) => a.position - b.position);
}

/** The first place that is not among the rows, which begin at 0: several are worked on at once, so that there may be gaps. */
export function firstMissing(rows: InterpretedFeature[]): number {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle]!.position === middle) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** `0-3, 7` as layers; null where it is no such list. */
export function readLayers(text: string): number[] | null {
  const found = new Set<number>();
  for (const part of text.split(",").map((one) => one.trim()).filter(Boolean)) {
    const match = /^(\d{1,4})(?:\s*-\s*(\d{1,4}))?$/.exec(part);
    if (!match) return null;
    const first = Number(match[1]);
    const last = Number(match[2] ?? match[1]);
    if (last < first) return null;
    for (let layer = first; layer <= last; layer++) found.add(layer);
  }
  return [...found].sort((a, b) => a - b);
}

/** `0-5 3-14` as features; null where something else is among them. */
export function readFeatures(text: string): string[] | null {
  const parts = text.split(/[\s,;]+/).filter(Boolean);
  return parts.every((part) => /^\d{1,4}-\d{1,9}$/.test(part)) ? [...new Set(parts)] : null;
}
