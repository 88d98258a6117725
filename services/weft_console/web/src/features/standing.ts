import type { StandingLabel } from "../ui/origin";
import type { Label } from "./types";

/** What a list would show of a label; null where there is none. */
export function standingOf(label: Label | null): StandingLabel | null {
  if (!label) return null;
  const isHuman = label.origin === "human";
  return {
    text: label.text,
    is_human: isHuman,
    scores: Object.fromEntries(label.scores.map((score) => [score.kind, score.value])),
    explainer: label.explainer,
    is_imported: !isHuman && label.prompt_sha256 === "",
  };
}
