import type { Proposal } from "./naming";

/** Marks a name that was made of labels, which nobody has looked over yet. */
export function ProposedMark({ proposal }: { proposal: Proposal | null }) {
  const from = proposal ? `from the labels of ${proposal.numLabelled} of ${proposal.numMembers} features` : "from labels that are there no longer";
  return <span class="label-origin is-proposed" title={`Proposed ${from}; write another name to change it`}>proposed</span>;
}
