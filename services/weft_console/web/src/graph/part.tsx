/** The part that a person works on: pins and groups, how well they stand for the whole, and what happens without them. */
import { percent } from "../format";
import type { Graph, InterventionResult } from "../types";
import { Problem } from "../ui/parts";
import type { Scored } from "./ask";
import { proposeFor, type Labels } from "./labels";
import { NodeName } from "./node-name";
import { ProposedMark } from "./proposed";
import { nameOf, type GraphModel, type GraphNode } from "./model";
import { groupPins, partOf, renameGroup, togglePin, ungroup, type Group, type PageState } from "./state";
import { Steer } from "./steer";

interface Props {
  graph: Graph;
  model: GraphModel;
  labels: Labels;
  state: PageState;
  scored: Scored;
  isPartial: boolean;
  onChange: (part: (before: PageState) => Partial<PageState>) => void;
  onGo: (node: GraphNode) => void;
  onMeasured: (result: InterventionResult) => void;
}

export function Part({ graph, model, labels, state, scored, isPartial, onChange, onGo, onMeasured }: Props) {
  const ids = partOf(state);
  const nodes = ids.map((id) => model.byId.get(id)).filter((node): node is GraphNode => node !== undefined);
  const missing = ids.length - nodes.length;
  return (
    <>
      <section aria-label="Pinned" data-list="pinned">
        <h3>Pinned part <span class="count">{ids.length}</span></h3>
        {scored.problem ? <Problem problem={scored.problem} /> : null}
        {isPartial ? null : <Scores scored={scored} />}
        {state.groups.map((group, place) => (
          <div class="group" key={place} data-group={group.name}>
            <p class="group-head">
              <input type="text" class="group-name" aria-label={`Name of group ${place + 1}`} value={group.name}
                onInput={(event) => { const name = event.currentTarget.value; onChange((before) => renameGroup(before, place, name)); }} />
              <NameOfGroup model={model} labels={labels} group={group} onName={(name) => onChange((before) => renameGroup(before, place, name, true))} />
              <button type="button" class="button quiet small" onClick={() => onChange((before) => ungroup(before, place))}>Ungroup</button>
            </p>
            <Chips ids={group.ids} model={model} onGo={onGo} onPin={(id) => onChange((before) => togglePin(before, id))} />
          </div>
        ))}
        <Chips ids={state.pinned} model={model} onGo={onGo} onPin={(id) => onChange((before) => togglePin(before, id))} />
        {missing > 0 ? <p class="note">{missing} of these are pruned from this file; they count in the scores.</p> : null}
        <div class="row wrap part-actions">
          <button type="button" class="button small" disabled={state.pinned.length === 0} onClick={() => onChange((before) => groupPins(before, proposeFor(model, labels, before.pinned)?.name ?? null))}>Group the pins</button>
          <button type="button" class="button small" onClick={() => onChange(() => ({ pinned: [], groups: [] }))}>Clear</button>
        </div>
      </section>
      {isPartial ? null : <Steer graph={graph} model={model} nodes={nodes} title="Steer the part" note="all of its features at once" onMeasured={onMeasured} onGo={onGo} />}
    </>
  );
}

/** Says that a name is proposed, or proposes one where the labels of the group's members give another. */
function NameOfGroup({ model, labels, group, onName }: { model: GraphModel; labels: Labels; group: Group; onName: (name: string) => void }) {
  const proposal = proposeFor(model, labels, group.ids);
  const isOther = proposal !== null && proposal.name !== group.name;
  return (
    <>
      {group.isProposed ? <ProposedMark proposal={proposal} /> : null}
      {isOther ? <button type="button" class="button quiet small" title={`“${proposal.name}”, from the labels of ${proposal.numLabelled} of ${proposal.numMembers} features`} onClick={() => onName(proposal.name)}>Name by labels</button> : null}
    </>
  );
}

/** Scores of the part beside the whole graph's. */
function Scores({ scored }: { scored: Scored }) {
  const { score, isStale } = scored;
  const row = (name: string, part: number | undefined, whole: number | undefined, id: string) => (
    <tr>
      <th scope="row">{name}</th>
      <td data-stat={id}>{part === undefined ? "–" : part.toFixed(3)}</td>
      <td>{whole === undefined ? "–" : whole.toFixed(3)}</td>
    </tr>
  );
  return (
    <table class={`compact part-scores${isStale ? " is-stale" : ""}`} aria-busy={isStale} aria-live="polite">
      <caption>As if every other feature were an error{score ? `; ${percent(score.influence_share)} of the features' influence` : ""}</caption>
      <thead><tr><th scope="col">score</th><th scope="col">part</th><th scope="col">whole</th></tr></thead>
      <tbody>
        {row("replacement", score?.subgraph.replacement_score, score?.whole.replacement_score, "part-replacement")}
        {row("completeness", score?.subgraph.completeness_score, score?.whole.completeness_score, "part-completeness")}
      </tbody>
    </table>
  );
}

/** Most chips that are shown; the rest is counted. */
const MAX_CHIPS = 60;

function Chips({ ids, model, onGo, onPin }: { ids: string[]; model: GraphModel; onGo: (node: GraphNode) => void; onPin: (id: string) => void }) {
  if (ids.length === 0) return null;
  return (
    <ul class="chips">
      {ids.slice(0, MAX_CHIPS).map((id) => {
        const node = model.byId.get(id);
        const name = nameOf(model, id);
        return (
          <li key={id}>
            <button type="button" class="chip" disabled={!node} onClick={() => node && onGo(node)}><i class={`mark is-${node?.kind ?? "feature"}`} aria-hidden="true" />{node ? <NodeName node={node} /> : name}</button>
            <button type="button" class="chip-end" aria-label={`Unpin ${name}`} onClick={() => onPin(id)}>✕</button>
          </li>
        );
      })}
      {ids.length > MAX_CHIPS ? <li class="chips-more">and {ids.length - MAX_CHIPS} more</li> : null}
    </ul>
  );
}
