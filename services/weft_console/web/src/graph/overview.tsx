import type { ComponentChildren } from "preact";
import { useMemo } from "preact/hooks";
import { percent } from "../format";
import type { Graph, InterventionResult } from "../types";
import { nameOf, type GraphModel, type GraphNode } from "./model";
import { showToken } from "../ui/token-text";
import { NodeName } from "./node-name";
import { Effects } from "./steer";
import { ExplainOther } from "./targets";

interface Props {
  graph: Graph;
  model: GraphModel;
  visible: Uint8Array;
  interventions: InterventionResult[];
  onGo: (node: GraphNode) => void;
  /** What stands between predictions and features: the pinned part. */
  children: ComponentChildren;
}

/** What stands beside the drawing while nothing is selected. */
export function Overview({ graph, model, visible, interventions, onGo, children }: Props) {
  const logits = useMemo(() => model.nodes.filter((node) => node.kind === "logit").sort((a, b) => b.probability - a.probability), [model]);
  const strongest = useMemo(
    () => model.nodes.filter((node) => node.kind === "feature" && visible[node.index]).sort((a, b) => b.influence - a.influence).slice(0, 14),
    [model, visible],
  );
  return (
    <>
      <section aria-label="Predictions" data-list="predictions">
        <h3>{logits.every((node) => node.isLikely) ? "The model predicts" : "Explained as asked for"}</h3>
        <Bars model={model} nodes={logits} value={(node) => node.probability} onGo={onGo} />
        <ExplainOther graph={graph} logits={logits} />
      </section>
      {children}
      <section aria-label="Strongest features" data-list="strongest">
        <h3>Strongest features <small>share of influence</small></h3>
        <Bars model={model} nodes={strongest} value={(node) => node.influence} onGo={onGo} />
      </section>
      {interventions.length > 0 ? (
        <section aria-label="Interventions" data-list="interventions">
          <h3>Measured interventions <small>change of the demeaned logit</small></h3>
          {interventions.slice().reverse().map((result, i) => (
            <details key={interventions.length - i} open={i === 0}>
              <summary>
                {told(model, result)}
              </summary>
              <Effects result={result} />
            </details>
          ))}
        </section>
      ) : null}
      <p class="note keys">Hover traces edges, a click selects. <kbd>←↑↓→</kbd> move, <kbd>Enter</kbd> selects, <kbd>P</kbd> pins, <kbd>Shift</kbd> <kbd>←↑↓→</kbd> or a drag puts a node elsewhere, <kbd>Ctrl</kbd> <kbd>Z</kbd> undoes, <kbd>/</kbd> searches.</p>
    </>
  );
}

/** What was changed, the first few by name. */
function told(model: GraphModel, result: InterventionResult): string {
  const each = result.interventions.map((change) => {
    const done = change.value !== undefined ? `= ${change.value}` : change.factor ? `× ${change.factor}` : "ablated";
    return `${nameOf(model, change.node_id)} ${done}`;
  });
  return each.length > 3 ? `${each.slice(0, 2).join(", ")} and ${each.length - 2} more` : each.join(", ");
}

function Bars({ model, nodes, value, onGo }: { model: GraphModel; nodes: GraphNode[]; value: (node: GraphNode) => number; onGo: (node: GraphNode) => void }) {
  const most = Math.max(...nodes.map(value), 1e-12);
  return (
    <ol class="bars">
      {nodes.map((node) => (
        <li key={node.id}>
          <button type="button" class={`bar is-${node.kind}`} data-node={node.id} onClick={() => onGo(node)}>
            <i style={{ width: `${(100 * value(node)) / most}%` }} aria-hidden="true" />
            <span class="bar-name"><NodeName node={node} /></span>
            {node.kind === "feature" ? <span class="edge-at mono">{showToken(model.tokens[node.position] ?? "")}</span> : null}
            <span class="bar-value">{node.kind === "logit" && !node.isLikely ? "target" : percent(value(node))}</span>
          </button>
        </li>
      ))}
    </ol>
  );
}
