import { useMemo } from "preact/hooks";
import { percent } from "../format";
import type { InterventionResult } from "../types";
import { Effects } from "./intervene";
import { showToken, type GraphModel, type GraphNode } from "./model";

interface Props {
  model: GraphModel;
  visible: Uint8Array;
  pinned: GraphNode[];
  interventions: InterventionResult[];
  onGo: (node: GraphNode) => void;
  onPin: (node: GraphNode) => void;
}

/** What stands beside the drawing while nothing is selected. */
export function Overview({ model, visible, pinned, interventions, onGo, onPin }: Props) {
  const logits = useMemo(() => model.nodes.filter((node) => node.kind === "logit").sort((a, b) => b.probability - a.probability), [model]);
  const strongest = useMemo(
    () => model.nodes.filter((node) => node.kind === "feature" && visible[node.index]).sort((a, b) => b.influence - a.influence).slice(0, 14),
    [model, visible],
  );
  return (
    <>
      <section aria-label="Predictions" data-list="predictions">
        <h3>The model predicts</h3>
        <Bars model={model} nodes={logits} value={(node) => node.probability} onGo={onGo} />
      </section>
      {pinned.length > 0 ? (
        <section aria-label="Pinned" data-list="pinned">
          <h3>Pinned <span class="count">{pinned.length}</span></h3>
          <ul class="chips">
            {pinned.map((node) => (
              <li key={node.id}>
                <button type="button" class="chip" onClick={() => onGo(node)}><i class={`mark is-${node.kind}`} aria-hidden="true" />{node.label}</button>
                <button type="button" class="chip-end" aria-label={`Unpin ${node.label}`} onClick={() => onPin(node)}>✕</button>
              </li>
            ))}
          </ul>
        </section>
      ) : null}
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
                {result.interventions.map((change) => `${model.byId.get(change.node_id)?.label ?? change.node_id} ${change.value !== undefined ? `= ${change.value}` : change.factor ? `× ${change.factor}` : "ablated"}`).join(", ")}
              </summary>
              <Effects result={result} />
            </details>
          ))}
        </section>
      ) : null}
      <p class="note keys">Hover traces edges, a click selects. <kbd>←↑↓→</kbd> move, <kbd>Enter</kbd> selects, <kbd>P</kbd> pins, <kbd>/</kbd> searches.</p>
    </>
  );
}

function Bars({ model, nodes, value, onGo }: { model: GraphModel; nodes: GraphNode[]; value: (node: GraphNode) => number; onGo: (node: GraphNode) => void }) {
  const most = Math.max(...nodes.map(value), 1e-12);
  return (
    <ol class="bars">
      {nodes.map((node) => (
        <li key={node.id}>
          <button type="button" class={`bar is-${node.kind}`} data-node={node.id} onClick={() => onGo(node)}>
            <i style={{ width: `${(100 * value(node)) / most}%` }} aria-hidden="true" />
            <span class="bar-name">{node.label}</span>
            {node.kind === "feature" ? <span class="edge-at mono">{showToken(model.tokens[node.position] ?? "")}</span> : null}
            <span class="bar-value">{percent(value(node))}</span>
          </button>
        </li>
      ))}
    </ol>
  );
}
