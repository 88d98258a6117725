/** Why a head attends from one position to another: what the stream holds at both, pair by pair. */
import { percent, signed } from "../format";
import type { ExplainedAttention } from "../types";
import { useLoad } from "../ui/load";
import { Loading, Problem } from "../ui/parts";
import { nameOf, type GraphModel, type GraphNode } from "./model";

interface Props {
  graphId: string;
  model: GraphModel;
  layer: number;
  head: number;
  /** The position that attends. */
  query: number;
  /** The position that is looked at. */
  keyed: number;
  onGo: (node: GraphNode) => void;
}

export function Attention({ graphId, model, layer, head, query, keyed, onGo }: Props) {
  const asked = new URLSearchParams({ layer: String(layer), head: String(head), query: String(query), key: String(keyed) });
  const { data, problem, reload } = useLoad<ExplainedAttention>(`/api/graphs/${encodeURIComponent(graphId)}/attention?${asked.toString()}`);
  if (problem) return <Problem problem={problem} onRetry={reload} />;
  if (!data) return <Loading what="the pairs" />;
  const side = (id: string) => {
    const node = model.byId.get(id);
    const name = id === "constant" ? "constants" : nameOf(model, id);
    return node ? <button type="button" class="chip" data-node={id} onClick={() => onGo(node)}>{name}</button> : <span class="chip is-plain">{name}</span>;
  };
  return (
    <div class="why" data-list="attention">
      <p class="note">Attends with {percent(data.pattern)}; score {signed(data.score)}, as a sum of what the attending position (left) and the other (right) hold:</p>
      <ol>
        {data.pairs.map((pair) => (
          <li key={`${pair.query_node_id} ${pair.key_node_id}`}>
            <span class={`head-share ${pair.value < 0 ? "is-negative" : "is-positive"}`}>{signed(pair.value)}</span>
            {side(pair.query_node_id)}<span aria-hidden="true">·</span>{side(pair.key_node_id)}
          </li>
        ))}
        <li><span class={`head-share ${data.rest < 0 ? "is-negative" : "is-positive"}`}>{signed(data.rest)}</span>other pairs</li>
      </ol>
    </div>
  );
}
