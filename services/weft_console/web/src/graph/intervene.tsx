import { useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { percent, signed } from "../format";
import { idOf, type Graph, type InterventionResult } from "../types";
import { toApiError } from "../ui/load";
import { Problem } from "../ui/parts";
import { showToken, type GraphNode } from "./model";

const FACTORS = [[0, "Ablate"], [0.5, "Halve"], [2, "Double"], [-1, "Flip"]] as const;

/** Changes the feature in the model and puts what the graph said beside what was measured. */
export function Intervene({ graph, node, onMeasured }: { graph: Graph; node: GraphNode; onMeasured: (result: InterventionResult) => void }) {
  const [factor, setFactor] = useState(0);
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [result, setResult] = useState<InterventionResult | null>(null);
  const run = async () => {
    setBusy(true);
    setProblem(null);
    try {
      const measured = await post<InterventionResult>(`/api/graphs/${encodeURIComponent(idOf(graph.name))}/interventions`, {
        interventions: [{ node_id: node.id, factor }],
      });
      setResult(measured);
      onMeasured(measured);
    } catch (error) {
      setProblem(toApiError(error));
    }
    setBusy(false);
  };
  return (
    <section aria-label="Intervention" data-list="intervention">
      <h3>Intervene <small>change it in the model and measure</small></h3>
      <div class="row">
        <div class="segments" role="radiogroup" aria-label="Change">
          {FACTORS.map(([value, name]) => (
            <label key={name}>
              <input type="radio" name="factor" checked={factor === value} onChange={() => setFactor(value)} />
              <span>{name}</span>
            </label>
          ))}
        </div>
        <button type="button" class="button primary small" disabled={isBusy} onClick={() => void run()}>{isBusy ? "Measuring…" : "Measure"}</button>
      </div>
      {problem ? <Problem problem={problem} /> : null}
      {result ? <Effects result={result} /> : null}
    </section>
  );
}

/** Predicted and measured changes of each explained logit. */
export function Effects({ result }: { result: InterventionResult }) {
  return (
    <div class="scroll">
      <table class="compact effects">
        <caption class="visually-hidden">Change of the demeaned logit</caption>
        <thead>
          <tr><th rowSpan={2} scope="col">Logit</th><th colSpan={2} scope="colgroup">direct edges</th><th colSpan={2} scope="colgroup">all paths</th><th rowSpan={2} scope="col">Probability</th></tr>
          <tr><th scope="col" title="What the graph's direct edges say">predicted</th><th scope="col" title="Attention, norms and MLPs held">frozen</th><th scope="col" title="What all paths of the graph say together">predicted</th><th scope="col" title="The model left free">free</th></tr>
        </thead>
        <tbody>
          {result.effects.map((effect) => (
            <tr key={effect.token_id}>
              <th scope="row" class="mono">{showToken(effect.text)}</th>
              <td>{signed(effect.predicted)}</td>
              <td>{signed(effect.measured_frozen)}</td>
              <td>{signed(effect.predicted_total)}</td>
              <td>{signed(effect.measured)}</td>
              <td class="probability">{percent(effect.probability_before)} → {percent(effect.probability_after)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
