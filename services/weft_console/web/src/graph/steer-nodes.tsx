/** What a change does to every node that the graph shows: predicted beside measured. */
import { useState } from "preact/hooks";
import { figure, signed } from "../format";
import type { SteerResult } from "../types";
import { nameOf, type GraphModel, type GraphNode } from "./model";
import { showToken } from "../ui/token-text";
import { NodeName } from "./node-name";
import { Pair } from "./steer-pair";

const SHORT = 12;

interface Props {
  model: GraphModel;
  result: SteerResult;
  onGo: (node: GraphNode) => void;
}

export function NodeEffects({ model, result, onGo }: Props) {
  const [isLong, setLong] = useState(false);
  const rows = [
    ...result.logits.map((logit) => ({ key: `logit ${logit.token_id}`, name: showToken(logit.text), node: undefined, predicted: logit.predicted, measured: logit.measured, after: null })),
    ...result.nodes
      .map((effect) => ({ key: effect.node_id, name: nameOf(model, effect.node_id), node: model.byId.get(effect.node_id), predicted: effect.predicted, measured: effect.measured, after: effect.activation_after }))
      .sort((one, other) => Math.abs(other.measured) - Math.abs(one.measured)),
  ];
  const most = Math.max(1e-12, ...rows.flatMap((row) => [row.predicted, row.measured].map(Math.abs)));
  const shown = isLong ? rows : rows.slice(0, result.logits.length + SHORT);
  return (
    <div data-list="node-effects">
      <p class="note">
        {result.rank_agreement === null ? "Nothing varies, so there is no rank agreement." : <>Rank agreement of predicted and measured: <b data-stat="rank-agreement">{result.rank_agreement.toFixed(3)}</b></>}
      </p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Predicted and measured by node">
        <table class="compact effects">
          <caption class="visually-hidden">Change of each demeaned logit and of each feature's pre-activation</caption>
          <thead><tr><th scope="col">Node</th><th scope="col">predicted</th><th scope="col">measured</th><th scope="col" title="Activation in the model after the change">then</th></tr></thead>
          <tbody>
            {shown.map((row) => (
              <tr key={row.key}>
                <th scope="row">{row.node ? <NodeLink node={row.node} onGo={onGo} /> : <span class="mono">{row.name}</span>}</th>
                <td>{signed(row.predicted)}</td>
                <td>{signed(row.measured)}<Pair predicted={row.predicted} measured={row.measured} most={most} /></td>
                <td>{row.after === null ? "–" : figure(row.after)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rows.length > shown.length || isLong ? (
        <button type="button" class="button quiet small" onClick={() => setLong(!isLong)}>{isLong ? "Show fewer" : `Show all ${rows.length}`}</button>
      ) : null}
    </div>
  );
}

function NodeLink({ node, onGo }: { node: GraphNode; onGo: (node: GraphNode) => void }) {
  return <button type="button" class="chip" data-node={node.id} onClick={() => onGo(node)}><NodeName node={node} /></button>;
}
