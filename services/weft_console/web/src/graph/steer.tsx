import { useId, useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { percent, signed } from "../format";
import { idOf, type Graph, type InterventionResult, type SteerResult } from "../types";
import { toApiError } from "../ui/load";
import { Problem } from "../ui/parts";
import type { GraphModel, GraphNode } from "./model";
import { showToken } from "../ui/token-text";
import { NodeEffects } from "./steer-nodes";
import { Pair } from "./steer-pair";

const FACTORS = [[0, "Ablate"], [0.5, "Halve"], [2, "Double"], [-1, "Flip"]] as const;
/** Nodes that one intervention changes at once. */
const MAX_NODES = 500;

type Change = { factor: number } | { value: number };

/** What stays as it is without the change, while every node is measured. */
const HELD = [["nothing", "all answer"], ["attention", "attention held"], ["everything", "attention and MLPs held"]] as const;

interface Props {
  graph: Graph;
  model: GraphModel;
  /** Features to change together. */
  nodes: GraphNode[];
  title: string;
  note: string;
  onMeasured: (result: InterventionResult) => void;
  onGo: (node: GraphNode) => void;
}

/** Changes features in the model and puts what the graph said beside what was measured. */
export function Steer({ graph, model, nodes, title, note, onMeasured, onGo }: Props) {
  const name = useId();
  const [change, setChange] = useState<Change>({ factor: 0 });
  const [isOwn, setOwn] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [result, setResult] = useState<InterventionResult | null>(null);
  const [steered, setSteered] = useState<SteerResult | null>(null);
  const [held, setHeld] = useState<string>("nothing");
  const features = nodes.filter((node) => node.kind === "feature");
  const number = "factor" in change ? change.factor : change.value;
  const base = `/api/graphs/${encodeURIComponent(idOf(graph.name))}`;
  const measure = async () => {
    const measured = await post<InterventionResult>(`${base}/interventions`, {
      interventions: features.map((node) => ({ node_id: node.id, ...change })),
    });
    setResult(measured);
    onMeasured(measured);
  };
  const steer = async () => {
    setSteered(await post<SteerResult>(`${base}/steering`, {
      changes: [{ node_ids: features.map((node) => node.id), ...change }],
      freeze_attention: held !== "nothing",
      ...(held === "everything" ? { held: { first: 0, last: model.numLayers - 1 } } : {}),
    }));
  };
  const run = async (ask: () => Promise<void>) => {
    setBusy(true);
    setProblem(null);
    try {
      await ask();
    } catch (error) {
      setProblem(toApiError(error));
    }
    setBusy(false);
  };
  const isOff = isBusy || features.length === 0 || features.length > MAX_NODES;
  return (
    <section aria-label={title} data-list="intervention">
      <h3>{title} <small>{note}</small></h3>
      <div class="row wrap">
        <div class="segments" role="radiogroup" aria-label="Change">
          {FACTORS.map(([value, text]) => (
            <label key={text}>
              <input type="radio" name={name} checked={!isOwn && number === value} onChange={() => { setOwn(false); setChange({ factor: value }); }} />
              <span>{text}</span>
            </label>
          ))}
          <label>
            <input type="radio" name={name} checked={isOwn} onChange={() => setOwn(true)} />
            <span>Own</span>
          </label>
        </div>
        {isOwn ? (
          <div class="own">
            <select aria-label="Kind of change" value={"factor" in change ? "factor" : "value"}
              onChange={(event) => setChange(event.currentTarget.value === "factor" ? { factor: number } : { value: number })}>
              <option value="factor">times</option>
              <option value="value">set to</option>
            </select>
            <input type="number" step="any" aria-label="Amount" value={number}
              onInput={(event) => {
                const amount = event.currentTarget.valueAsNumber;
                if (Number.isFinite(amount)) setChange("factor" in change ? { factor: amount } : { value: amount });
              }} />
          </div>
        ) : null}
        <button type="button" class="button primary small" disabled={isOff} onClick={() => void run(measure)}>{isBusy ? "Measuring…" : "Measure"}</button>
      </div>
      {features.length > MAX_NODES ? <p class="note">At most {MAX_NODES} features are changed at once; these are {features.length}.</p> : null}
      {problem ? <Problem problem={problem} /> : null}
      {result ? <Effects result={result} /> : null}
      <div class="row wrap steer-nodes">
        <button type="button" class="button small" disabled={isOff} onClick={() => void run(steer)}>Every node</button>
        <select aria-label="What is held" value={held} onChange={(event) => setHeld(event.currentTarget.value)}>
          {HELD.map(([value, text]) => <option key={value} value={value}>{text}</option>)}
        </select>
      </div>
      {steered ? <NodeEffects model={model} result={steered} onGo={onGo} /> : null}
    </section>
  );
}

/** Predicted and measured changes of each explained logit. */
export function Effects({ result }: { result: InterventionResult }) {
  const most = Math.max(1e-12, ...result.effects.flatMap((effect) => [effect.predicted_total, effect.measured].map(Math.abs)));
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Predicted and measured">
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
              <td>{signed(effect.measured)}<Pair predicted={effect.predicted_total} measured={effect.measured} most={most} /></td>
              <td class="probability">{percent(effect.probability_before)} → {percent(effect.probability_after)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
