/** The label that stands for a feature, and who said it. */

export interface StandingLabel {
  text: string;
  is_human: boolean;
  /** By kind of test, 0 to 1. */
  scores: Record<string, number>;
  explainer: string;
  /** A model's label that was not made here. */
  is_imported: boolean;
}

/** The score that is shown where there is room for one: the first of these that there is. */
const KINDS = ["detection", "fuzzing", "intruder", "embedding"];

export interface Origin {
  kind: "human" | "model" | "imported";
  /** As short as can be. */
  name: string;
  /** All that is known. */
  told: string;
}

export function originOf(label: StandingLabel): Origin {
  if (label.is_human) return { kind: "human", name: "person", told: "A person's label" };
  const scores = Object.entries(label.scores).map(([kind, value]) => `${kind} ${value.toFixed(2)}`).join(", ");
  const by = label.explainer ? ` by ${label.explainer}` : "";
  const kind = KINDS.find((one) => label.scores[one] !== undefined);
  const best = kind === undefined ? "" : ` ${label.scores[kind]!.toFixed(2)}`;
  if (label.is_imported) return { kind: "imported", name: `imported${best}`, told: `A model's label from elsewhere${by}; ${scores || "not scored here"}` };
  return { kind: "model", name: `model${best}`, told: `A model's label${by}; ${scores || "not scored yet"}` };
}

export function OriginMark({ label }: { label: StandingLabel }) {
  const { kind, name, told } = originOf(label);
  return <span class={`label-origin is-${kind}`} data-origin={kind} title={told}>{name}</span>;
}
