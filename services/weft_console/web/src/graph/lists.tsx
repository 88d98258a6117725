import { useMemo, useState } from "preact/hooks";
import { figure, signedPercent } from "../format";
import { Heads } from "./heads";
import { NodeName } from "./node-name";
import { inputsOf, outputsOf, type GraphModel, type GraphNode, type ListedEdge } from "./model";
import { showToken } from "../ui/token-text";

const SHORT = 12;

interface Props {
  /** Null while the graph is being made: then its edges cannot be split. */
  graphId: string | null;
  model: GraphModel;
  node: GraphNode;
  visible: Uint8Array;
  onGo: (node: GraphNode) => void;
}

/** What flows in and out of a node, signed, in percent of the target's input. */
export function EdgeLists({ graphId, model, node, visible, onGo }: Props) {
  const inputs = useMemo(() => inputsOf(model, node), [model, node]);
  const outputs = useMemo(() => outputsOf(model, node), [model, node]);
  return (
    <div class="lists">
      {node.kind === "token" || node.kind === "error" ? null : <EdgeList name="Inputs" note="% of this node's input" edges={inputs} node={node} isInput graphId={graphId} model={model} visible={visible} onGo={onGo} />}
      {node.kind === "logit" ? null : <EdgeList name="Outputs" note="% of each target's input" edges={outputs} node={node} isInput={false} graphId={graphId} model={model} visible={visible} onGo={onGo} />}
    </div>
  );
}

interface ListProps extends Props {
  name: string;
  note: string;
  edges: ListedEdge[];
  /** Whether the edges come into the node. */
  isInput: boolean;
}

function EdgeList(props: ListProps) {
  const [isLong, setLong] = useState(false);
  const [split, setSplit] = useState<number | null>(null);
  const { edges, name } = props;
  const shown = isLong ? edges : edges.slice(0, SHORT);
  const scale = Math.max(...edges.slice(0, 1).map((edge) => Math.abs(edge.share)), 1e-9);
  return (
    <section class="edge-list" aria-label={name} data-list={name.toLowerCase()}>
      <h3>{name} <span class="count">{edges.length}</span><small>{props.note}</small></h3>
      {edges.length === 0 ? <p class="note">None in this graph.</p> : null}
      <ol>
        {shown.map((edge) => (
          <li key={edge.edge} class="edge-row">
            <button type="button" class={`edge${props.visible[edge.other.index] ? "" : " is-hidden"}`} data-node={edge.other.id}
              title={`weight ${figure(edge.weight)}${props.visible[edge.other.index] ? "" : "; pruned from the drawing"}`} onClick={() => props.onGo(edge.other)}>
              <span class="edge-bar" aria-hidden="true">
                <i class={edge.share < 0 ? "is-negative" : "is-positive"} style={{ width: `${(100 * Math.abs(edge.share)) / scale}%` }} />
              </span>
              <span class={`edge-share ${edge.share < 0 ? "is-negative" : "is-positive"}`}>{signedPercent(edge.share)}</span>
              <i class={`mark is-${edge.other.kind}`} aria-hidden="true" />
              <span class="edge-name"><NodeName node={edge.other} /></span>
              {edge.other.kind === "feature" ? <span class="edge-at mono">{showToken(props.model.tokens[edge.other.position] ?? "")}</span> : null}
            </button>
            {props.graphId ? (
              <button type="button" class="edge-split" aria-expanded={split === edge.edge} title="Split over attention heads"
                aria-label={`Heads of the edge ${props.isInput ? "from" : "to"} ${edge.other.label}`} onClick={() => setSplit(split === edge.edge ? null : edge.edge)}>{split === edge.edge ? "−" : "+"}</button>
            ) : null}
            {props.graphId && split === edge.edge ? (
              <Heads graphId={props.graphId} model={props.model} source={props.isInput ? edge.other.id : props.node.id} target={props.isInput ? props.node.id : edge.other.id} onGo={props.onGo} />
            ) : null}
          </li>
        ))}
      </ol>
      {edges.length > SHORT ? (
        <button type="button" class="button quiet small" onClick={() => setLong(!isLong)}>{isLong ? "Show fewer" : `Show all ${edges.length}`}</button>
      ) : null}
    </section>
  );
}
