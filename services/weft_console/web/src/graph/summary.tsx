/** The graph in a dozen groups and what flows between them. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { percent, signedPercent } from "../format";
import type { Flow, Summary, Supernode } from "../types";
import { useLoad } from "../ui/load";
import { Loading, Problem, Stat } from "../ui/parts";
import { BOX_HEIGHT, placeGroups, type Box } from "./groups-layout";
import { proposeFor, type Labels } from "./labels";
import type { Proposal } from "./naming";
import { ProposedMark } from "./proposed";
import { nameOf, type GraphModel, type GraphNode } from "./model";
import { showToken } from "../ui/token-text";
import type { Group } from "./state";

const LIKENESS = [["both", "both"], ["decoder", "what they write"], ["graph", "where they stand"]] as const;
/** Flows that are drawn at rest, strongest first. */
const DRAWN = 40;
const MEMBERS = 40;

/** A summary whose groups of features have the name that their members' labels give, where there are labels. */
interface Named extends Omit<Summary, "supernodes"> {
  supernodes: (Supernode & { proposal: Proposal | null })[];
}

interface Props {
  graphId: string;
  model: GraphModel;
  labels: Labels;
  onGo: (node: GraphNode) => void;
  /** Makes the page's own groups of these. */
  onTake: (groups: Group[]) => void;
}

export function SummaryView({ graphId, model, labels, onGo, onTake }: Props) {
  const [most, setMost] = useState(12);
  const [likeness, setLikeness] = useState("both");
  const [chosen, setChosen] = useState<number | null>(null);
  const { data, problem, reload } = useLoad<Summary>(`/api/graphs/${encodeURIComponent(graphId)}/summary?max_supernodes=${most}&likeness=${likeness}`);
  useEffect(() => setChosen(null), [data]);
  const named = useMemo((): Named | null => data && {
    ...data,
    supernodes: data.supernodes.map((group) => ({ ...group, proposal: group.kind === "features" ? proposeFor(model, labels, group.node_ids) : null })),
  }, [data, model, labels]);
  const take = () => {
    if (!named) return;
    const groups = named.supernodes.map((group, index) => ({ group, name: fullName(named, index) })).filter(({ group }) => group.kind === "features");
    onTake(groups.map(({ group, name }) => ({ name, ids: group.node_ids, ...(group.proposal ? { isProposed: true } : {}) })));
  };
  return (
    <div class="explorer-body" data-list="summary">
      <div class="summary-main">
        <div class="summary-head">
          <label class="field-inline"><span>Groups at most</span>
            <select value={most} onChange={(event) => setMost(Number(event.currentTarget.value))}>
              {Array.from({ length: 12 }, (_, i) => <option key={i} value={i + 1}>{i + 1}</option>)}
            </select>
          </label>
          <label class="field-inline"><span>Features are alike by</span>
            <select value={likeness} onChange={(event) => setLikeness(event.currentTarget.value)}>
              {LIKENESS.map(([value, name]) => <option key={value} value={value}>{name}</option>)}
            </select>
          </label>
          <button type="button" class="button small" disabled={!named} onClick={take}>Show these groups in the graph</button>
        </div>
        {problem ? <Problem problem={problem} onRetry={reload} /> : named ? <Drawing summary={named} chosen={chosen} onChoose={setChosen} /> : <Loading what="the summary" />}
      </div>
      <aside class="panel" aria-label={chosen === null ? "Summary" : "Chosen group"}>
        {named ? (chosen === null || !named.supernodes[chosen] ? <Whole summary={named} onChoose={setChosen} /> : <One summary={named} index={chosen} model={model} onGo={onGo} onChoose={setChosen} />) : null}
      </aside>
    </div>
  );
}

function Drawing({ summary, chosen, onChoose }: { summary: Named; chosen: number | null; onChoose: (index: number | null) => void }) {
  const host = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(900);
  const [over, setOver] = useState<number | null>(null);
  useEffect(() => {
    let frame = 0;
    const measure = () => { if (host.current) setWidth(host.current.clientWidth); };
    // The new width changes the height: a frame later, so that the observer does not see its own work.
    const observer = new ResizeObserver(() => { frame = requestAnimationFrame(measure); });
    observer.observe(host.current!);
    measure();
    return () => {
      observer.disconnect();
      cancelAnimationFrame(frame);
    };
  }, []);
  const { boxes, height } = useMemo(() => placeGroups(summary, width), [summary, width]);
  const most = Math.max(1e-12, ...summary.flows.map((flow) => flow.influence));
  const largest = Math.max(1e-12, ...summary.supernodes.map((group) => group.influence));
  const focus = over ?? chosen;
  const flows = summary.flows.filter((flow) => flow.source !== flow.target && (focus === null || flow.source === focus || flow.target === focus));
  return (
    <div class="summary-scroll">
      <div class="summary-drawing" ref={host} style={{ height: `${height}px` }}>
        <svg width={width} height={height} aria-hidden="true">
          {flows.slice(0, DRAWN).reverse().map((flow) => (
            <path key={`${flow.source} ${flow.target}`} d={curve(boxes[flow.source]!, boxes[flow.target]!)} class={focus === null ? "is-rest" : flow.net < 0 ? "is-negative" : "is-positive"}
              style={{ strokeWidth: `${1 + 9 * Math.sqrt(flow.influence / most)}px`, strokeOpacity: String((focus === null ? 0.12 : 0.3) + 0.45 * Math.sqrt(flow.influence / most)) }} />
          ))}
        </svg>
        {boxes.map((box) => {
          const group = summary.supernodes[box.index]!;
          return (
            <button type="button" key={box.index} class={`supernode is-${group.kind}`} data-group={box.index} aria-pressed={chosen === box.index}
              style={{ left: `${box.x}px`, top: `${box.y}px`, width: `${box.width}px`, height: `${BOX_HEIGHT}px` }}
              onClick={() => onChoose(chosen === box.index ? null : box.index)}
              onPointerEnter={() => setOver(box.index)} onPointerLeave={() => setOver(null)} onFocus={() => setOver(box.index)} onBlur={() => setOver(null)}>
              <b>{labelOf(summary, box.index)}</b>
              {group.proposal ? <span>{placeOf(summary, box.index)} <ProposedMark proposal={group.proposal} /></span>
                : group.raised_tokens.length > 0 ? <span class="mono">{group.raised_tokens.map(showToken).join(" ")}</span> : null}
              <span>{percent(group.influence)}{group.num_nodes > 1 ? ` · ${group.num_nodes} nodes` : ""}</span>
              <i aria-hidden="true" style={{ width: `${(100 * group.influence) / largest}%` }} />
            </button>
          );
        })}
      </div>
    </div>
  );
}

/** A curve from the top of one box to the bottom of another; along the side where both stand in one row. */
function curve(from: Box, to: Box): string {
  const x1 = from.x + from.width / 2;
  const x2 = to.x + to.width / 2;
  const up = to.y <= from.y;
  const y1 = up ? from.y : from.y + BOX_HEIGHT;
  const y2 = to.y === from.y ? to.y : up ? to.y + BOX_HEIGHT : to.y;
  const bend = to.y === from.y ? -30 : (y2 - y1) / 2;
  return `M ${x1} ${y1} C ${x1} ${y1 + bend}, ${x2} ${to.y === from.y ? y2 + bend : y2 - bend}, ${x2} ${y2}`;
}

/** How much the summary keeps, and its largest flows. */
function Whole({ summary, onChoose }: { summary: Named; onChoose: (index: number) => void }) {
  return (
    <>
      <section aria-label="What the summary keeps">
        <h3>What the summary keeps</h3>
        <dl class="stats">
          <Stat label="of features' influence" id="summary-influence" value={percent(summary.influence_share)} title="Share of all features' influence that stands in groups" />
          <Stat label="of all flow" id="summary-flow" value={percent(summary.flow_share)} title="Share of flow that neither begins nor ends among features in no group" />
        </dl>
        <table class="compact part-scores">
          <thead><tr><th scope="col">score</th><th scope="col">groups</th><th scope="col">whole</th></tr></thead>
          <tbody>
            <tr><th scope="row">replacement</th><td>{summary.summary.replacement_score.toFixed(3)}</td><td>{summary.whole.replacement_score.toFixed(3)}</td></tr>
            <tr><th scope="row">completeness</th><td>{summary.summary.completeness_score.toFixed(3)}</td><td>{summary.whole.completeness_score.toFixed(3)}</td></tr>
          </tbody>
        </table>
      </section>
      <Flows summary={summary} name="Largest flows" flows={summary.flows.filter((flow) => flow.source !== flow.target).slice(0, 14)} onChoose={onChoose}
        label={(flow) => `${labelOf(summary, flow.source)} → ${labelOf(summary, flow.target)}`} to={(flow) => flow.source} />
    </>
  );
}

function One(props: { summary: Named; index: number; model: GraphModel; onGo: (node: GraphNode) => void; onChoose: (index: number | null) => void }) {
  const { summary, index, model, onGo, onChoose } = props;
  const group = summary.supernodes[index]!;
  return (
    <>
      <header class="panel-head">
        <p class="eyebrow">Group of {group.kind}</p>
        <div class="panel-actions"><button type="button" class="button small quiet" aria-label="Close the panel" onClick={() => onChoose(null)}>✕</button></div>
        <h2>{labelOf(summary, index)}</h2>
        {group.proposal ? <p class="node-feature"><span class="note">{placeOf(summary, index)}</span> <ProposedMark proposal={group.proposal} /></p> : null}
        <dl class="stats">
          <Stat label="nodes" value={String(group.num_nodes)} />
          <Stat label="influence" value={percent(group.influence)} />
          {group.kind === "features" ? <Stat label="layers" value={group.first_layer === group.last_layer ? String(group.first_layer) : `${group.first_layer} to ${group.last_layer}`} /> : null}
        </dl>
      </header>
      {group.raised_tokens.length > 0 ? <section aria-label="Raised tokens"><h3>It raises <small>through the unembedding alone</small></h3><p class="mono">{group.raised_tokens.map(showToken).join("  ")}</p></section> : null}
      <Flows summary={summary} name="Flows in" flows={summary.flows.filter((flow) => flow.target === index)} onChoose={onChoose} label={(flow) => labelOf(summary, flow.source)} to={(flow) => flow.source} />
      <Flows summary={summary} name="Flows out" flows={summary.flows.filter((flow) => flow.source === index)} onChoose={onChoose} label={(flow) => labelOf(summary, flow.target)} to={(flow) => flow.target} />
      {group.node_ids.length > 0 ? (
        <section aria-label="Nodes of the group">
          <h3>Nodes <span class="count">{group.node_ids.length}</span></h3>
          <ul class="chips">
            {group.node_ids.slice(0, MEMBERS).map((id) => {
              const node = model.byId.get(id);
              return <li key={id}><button type="button" class="chip" disabled={!node} title={node ? undefined : "pruned from this file"} onClick={() => node && onGo(node)}>{nameOf(model, id)}</button></li>;
            })}
          </ul>
          {group.node_ids.length > MEMBERS ? <p class="note">and {group.node_ids.length - MEMBERS} more</p> : null}
        </section>
      ) : null}
    </>
  );
}

interface FlowsProps {
  summary: Named;
  name: string;
  flows: Flow[];
  label: (flow: Flow) => string;
  to: (flow: Flow) => number;
  onChoose: (index: number) => void;
}

function Flows({ name, flows, label, to, onChoose }: FlowsProps) {
  if (flows.length === 0) return null;
  const most = Math.max(1e-12, ...flows.map((flow) => flow.influence));
  return (
    <section aria-label={name} class="edge-list">
      <h3>{name} <small>share of all influence; its sign and net</small></h3>
      <ol>
        {flows.slice(0, 14).map((flow) => (
          <li key={`${flow.source} ${flow.target}`}>
            <button type="button" class="edge" title={label(flow)} onClick={() => onChoose(to(flow))}>
              <span class="edge-bar" aria-hidden="true"><i class={flow.net < 0 ? "is-negative" : "is-positive"} style={{ width: `${(100 * flow.influence) / most}%` }} /></span>
              <span class="edge-share">{percent(flow.influence)}</span>
              <span class="edge-name">{label(flow)}</span>
              <span class={`edge-at ${flow.net < 0 ? "is-negative" : "is-positive"}`}>{signedPercent(flow.net)}</span>
            </button>
          </li>
        ))}
      </ol>
    </section>
  );
}

/** A token in quotes, as the service writes it. */
const QUOTED = /'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"/g;

/** What a group is called: what its members' labels share, or where it stands. */
function labelOf(summary: Named, index: number): string {
  return summary.supernodes[index]?.proposal?.name ?? placeOf(summary, index);
}

/** Layers and token of a group, with tokens as the page shows them; the tokens that features raise stand apart. */
function placeOf(summary: Named, index: number): string {
  const group = summary.supernodes[index];
  if (!group) return "";
  const first = group.kind === "features" ? new RegExp(QUOTED.source).exec(group.label) : null;
  const name = first ? group.label.slice(0, first.index + first[0].length) : group.label;
  return name.replace(QUOTED, (_, one?: string, two?: string) => showToken(one ?? two ?? ""));
}

/** The same for the page's own groups, where nothing stands beside the name. */
function fullName(summary: Named, index: number): string {
  const group = summary.supernodes[index]!;
  const raised = group.raised_tokens.map(showToken).join(" ");
  return raised && !group.proposal ? `${labelOf(summary, index)}: ${raised}` : labelOf(summary, index);
}
