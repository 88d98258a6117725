/** Two prompts' graphs of one model and transcoder side by side. */
import { useMemo } from "preact/hooks";
import { percent, signedPercent } from "../format";
import { idOf, type ComparedNode, type Comparison, type Graph } from "../types";
import { useLoad } from "../ui/load";
import { Empty, Loading, Problem, Stat } from "../ui/parts";
import { nameOf, type GraphModel, type GraphNode } from "./model";
import { showToken } from "../ui/token-text";

interface Props {
  graph: Graph;
  model: GraphModel;
  other: string | null;
  onOther: (other: string) => void;
  onGo: (node: GraphNode) => void;
}

export function CompareView({ graph, model, other, onOther, onGo }: Props) {
  const id = idOf(graph.name);
  const list = useLoad<{ graphs: Graph[] }>("/api/graphs?page_size=1000");
  const others = useMemo(
    () => (list.data?.graphs ?? []).filter((one) => one.name !== graph.name && one.state === "succeeded"
      && one.spec?.model === graph.spec?.model && one.spec?.transcoder === graph.spec?.transcoder),
    [list.data, graph],
  );
  const chosen = others.find((one) => idOf(one.name) === other) ?? null;
  const path = other ? `/api/graphs/${encodeURIComponent(id)}/comparison/${encodeURIComponent(other)}` : null;
  const { data, problem, reload } = useLoad<Comparison>(path);
  return (
    <div class="compare" data-list="comparison">
      <div class="compare-inner">
        <label class="field">
          <span>Compare with</span>
          <select value={other ?? ""} disabled={others.length === 0} onChange={(event) => event.currentTarget.value && onOther(event.currentTarget.value)}>
            <option value="">{list.data && others.length === 0 ? "no other graph of this model and transcoder" : "choose a graph"}</option>
            {others.map((one) => <option key={one.name} value={idOf(one.name)}>{one.spec?.prompt} · {idOf(one.name)}</option>)}
            {other && list.data && !chosen ? <option value={other}>{other}</option> : null}
          </select>
        </label>
        {list.problem ? <Problem problem={list.problem} onRetry={list.reload} /> : null}
        {problem ? <Problem problem={problem} onRetry={reload} /> : null}
        {!other ? <Empty title="Two prompts side by side">Choose another graph above: the same features, errors and tokens are matched, and what differs most comes first.</Empty> : null}
        {other && !data && !problem ? <Loading what="the comparison" /> : null}
        {data && other ? <Both model={model} comparison={data} otherId={other} other={chosen} onGo={onGo} /> : null}
      </div>
    </div>
  );
}

interface BothProps {
  model: GraphModel;
  comparison: Comparison;
  otherId: string;
  other: Graph | null;
  onGo: (node: GraphNode) => void;
}

function Both({ model, comparison, otherId, other, onGo }: BothProps) {
  const theirs = other?.prompt_tokens ?? [];
  const most = Math.max(1e-12, ...comparison.nodes.flatMap((node) => [node.influence, node.other_influence]));
  const total = comparison.num_common + comparison.num_first_only + comparison.num_other_only;
  const name = (node: ComparedNode) => nodeName(model, theirs, node);
  return (
    <>
      <Alignment mine={model.tokens} theirs={theirs} positions={comparison.positions} />
      <dl class="stats">
        <Stat label="influence in common" id="overlap" value={percent(comparison.overlap)} title="Sum over all nodes of the smaller share of influence over that of the larger" />
        <Stat label="features in both" value={`${comparison.num_common} of ${total}`} />
        <Stat label="only here" value={String(comparison.num_first_only)} />
        <Stat label="only there" value={String(comparison.num_other_only)} />
      </dl>
      <section aria-label="Nodes that differ most">
        <h3>Nodes that differ most <small>share of each graph's influence</small></h3>
        <ol class="butterfly">
          <li class="butterfly-head" aria-hidden="true"><span>this prompt</span><span /><span>the other</span></li>
          {comparison.nodes.map((node, i) => {
            const here = model.byId.get(node.node_id);
            return (
              <li key={i}>
                <button type="button" disabled={!here} title={`${node.node_id || "not here"} · ${node.other_node_id || "not there"}`} onClick={() => here && onGo(here)}>
                  <span class="wing is-left"><b>{node.node_id ? percent(node.influence) : "–"}</b><i style={{ width: `${(70 * node.influence) / most}%` }} /></span>
                  <span class="butterfly-name"><i class={`mark is-${kindOfId(node)}`} aria-hidden="true" />{name(node)}</span>
                  <span class="wing is-right"><i style={{ width: `${(70 * node.other_influence) / most}%` }} /><b>{node.other_node_id ? percent(node.other_influence) : "–"}</b></span>
                </button>
              </li>
            );
          })}
        </ol>
      </section>
      {comparison.edges.length > 0 ? (
        <section aria-label="Edges that differ most">
          <h3>Edges that differ most <small>among these nodes, share of each graph's influence</small></h3>
          <div class="scroll" tabIndex={0} role="region" aria-label="Edges">
            <table class="table compare-edges">
              <thead><tr><th>From</th><th>To</th><th class="num">this prompt</th><th class="num">the other</th><th class="num">difference</th></tr></thead>
              <tbody>
                {comparison.edges.map((edge, i) => (
                  <tr key={i}>
                    <td>{name(comparison.nodes[edge.source]!)}</td><td>{name(comparison.nodes[edge.target]!)}</td>
                    <td class="num">{percent(edge.influence, 2)}</td><td class="num">{percent(edge.other_influence, 2)}</td>
                    <td class="num">{signedPercent(edge.other_influence - edge.influence)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </section>
      ) : null}
      <p><a class="button small" href={`/graphs/${encodeURIComponent(otherId)}`}>Open the other graph</a></p>
    </>
  );
}

/** The two prompts, tokens that belong together under each other. */
function Alignment({ mine, theirs, positions }: { mine: string[]; theirs: string[]; positions: number[] }) {
  const columns: [string | null, string | null][] = [];
  let next = 0;
  mine.forEach((token, i) => {
    const at = positions[i] ?? -1;
    if (at >= 0) {
      for (; next < at; next++) columns.push([null, theirs[next] ?? ""]);
      columns.push([token, theirs[at] ?? ""]);
      next = at + 1;
    } else columns.push([token, null]);
  });
  for (; next < theirs.length; next++) columns.push([null, theirs[next]!]);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Both prompts">
      <table class="alignment">
        <tbody>
          {[0, 1].map((row) => (
            <tr key={row}>
              <th scope="row">{row === 0 ? "this prompt" : "the other"}</th>
              {columns.map((pair, i) => {
                const token = pair[row as 0 | 1];
                return <td key={i} class={token === null ? "is-none" : pair[0] === pair[1] ? "" : "is-different"}>{token === null ? "" : showToken(token)}</td>;
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function kindOfId(node: ComparedNode): string {
  const [first = "", second = ""] = (node.node_id || node.other_node_id).split("_");
  return first === "E" ? "token" : second === "error" ? "error" : "feature";
}

/** A node by its name and where it stands, in this prompt where it is there. */
function nodeName(model: GraphModel, theirs: string[], node: ComparedNode): string {
  const id = node.node_id || node.other_node_id;
  const parts = id.split("_");
  const position = Number(parts[parts.length - 1]);
  const token = (node.node_id ? model.tokens : theirs)[position];
  const at = token === undefined ? "" : ` at ${showToken(token)}`;
  if (parts[0] === "E") return `token ${showToken(token ?? id)}`;
  if (node.node_id && model.byId.has(node.node_id)) {
    const { kind, label } = model.byId.get(node.node_id)!;
    return kind === "feature" ? `${label}${at}` : label;
  }
  return `${nameOf(model, id)}${at}`;
}
