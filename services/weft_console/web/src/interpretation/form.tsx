/** Starts a job: which features, what is done with them, and what it may cost. */
import { useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { count } from "../format";
import type { IndexesAnswer } from "../transcoders/types";
import { idOf, type Graph, type Transcoder } from "../types";
import { useIsHere } from "../ui/here";
import { toApiError, useLoad } from "../ui/load";
import { Loading, Problem } from "../ui/parts";
import { CALLS_TO_EXPLAIN, callsToScore, readFeatures, readLayers } from "./model";
import type { Interpreter, Kind } from "./types";

/** Lines that a feature is scored on where none are asked for. */
const DEFAULT_LINES = 20;

type Work = "explain" | "score";
type Choice = "filter" | "list" | "graph";

const KINDS: [Kind, string][] = [["detection", "detection"], ["fuzzing", "fuzzing"], ["intruder", "intruder"], ["embedding", "embedding"]];
const ORDERS = [["max_activation desc", "strongest first"], ["density desc", "most often active first"], ["density", "rarest first"], ["layer", "by layer"]] as const;
const LABELS = [["", "any"], ["unlabelled", "without a label"], ["labelled", "with a label"], ["model", "with a model’s label"], ["human", "with a person’s label"]] as const;

/** What an address says of the job that shall be started, so that other pages can link here. */
function fromAddress() {
  const asked = new URLSearchParams(location.search);
  const features = (asked.get("features") ?? "").replace(/,/g, " ");
  const graph = asked.get("graph") ?? "";
  return { transcoder: asked.get("transcoder") ?? "", work: (asked.get("work") === "score" ? "score" : "explain") as Work, features, graph, choice: (features ? "list" : graph ? "graph" : "filter") as Choice };
}

export function StartForm(props: { interpreter: Interpreter; onStarted: (id: string) => void }) {
  const { data, problem, reload } = useLoad<{ transcoders: Transcoder[] }>("/api/transcoders?page_size=1000");
  const [given] = useState(fromAddress);
  const isHere = useIsHere();
  const [work, setWork] = useState<Work>(given.work);
  const [choice, setChoice] = useState<Choice>(given.choice);
  const [chosen, setChosen] = useState(given.transcoder);
  const [layers, setLayers] = useState("");
  const [state, setState] = useState("active");
  const [label, setLabel] = useState<string | null>(null);
  const [least, setLeast] = useState("");
  const [most, setMost] = useState("");
  const [order, setOrder] = useState<string>(ORDERS[0][0]);
  const [features, setFeatures] = useState(given.features);
  const [graphs, setGraphs] = useState<string[]>(given.graph ? [given.graph] : []);
  const [maxFeatures, setMaxFeatures] = useState("50");
  const [maxCalls, setMaxCalls] = useState("");
  const [maxTokens, setMaxTokens] = useState("");
  const [prompt, setPrompt] = useState("");
  const [numExamples, setNumExamples] = useState("");
  const [kinds, setKinds] = useState<Kind[]>(["detection", "fuzzing"]);
  const [hasControl, setControl] = useState(true);
  const [isBusy, setBusy] = useState(false);
  const [refusal, setRefusal] = useState<ApiError | string | null>(null);
  const transcoders = data?.transcoders ?? [];
  const transcoder = transcoders.some((one) => idOf(one.name) === chosen) ? chosen : idOf(transcoders[0]?.name ?? "");
  const indexes = useLoad<IndexesAnswer>(transcoder ? `/api/transcoders/${encodeURIComponent(transcoder)}/indexes` : null);
  const index = indexes.data?.indexes[0];
  const numNamed = choice === "list" ? readFeatures(features)?.length ?? 0 : Infinity;
  const numFeatures = Math.min(numNamed, Number(maxFeatures) || Infinity);
  const mostCalls = numFeatures * (work === "explain" ? CALLS_TO_EXPLAIN : callsToScore(kinds, Number(numExamples) || DEFAULT_LINES, hasControl));
  const labelState = label ?? (work === "explain" ? "unlabelled" : "labelled");

  const submit = async (event: Event) => {
    event.preventDefault();
    const asked = { transcoder, work, max_features: Number(maxFeatures), max_calls: Number(maxCalls), max_tokens: Number(maxTokens), num_examples: Number(numExamples) };
    const wantedLayers = readLayers(layers);
    const named = readFeatures(features);
    if (choice === "filter" && !wantedLayers) return setRefusal("Layers are numbers and ranges, such as 0-3, 7.");
    if (choice === "list" && (!named || named.length === 0)) return setRefusal("Features are layer-index, such as 3-14, with spaces or commas between them.");
    if (choice === "graph" && graphs.length === 0) return setRefusal("Choose a graph at least.");
    const density = { ...(least === "" ? {} : { min: Number(least) / 100 }), ...(most === "" ? {} : { max: Number(most) / 100 }) };
    const which = choice === "list" ? { features: named } : choice === "graph" ? { graphs }
      : { filter: { layers: wantedLayers, states: state ? [state] : [], label_state: labelState, order_by: order, ...(Object.keys(density).length > 0 ? { density } : {}) } };
    const how = work === "explain" ? { prompt } : { kinds, control: hasControl };
    setBusy(true);
    setRefusal(null);
    try {
      const { id } = await post<{ id: string }>("/api/interpretations", { ...asked, ...which, ...how });
      if (isHere()) props.onStarted(id);
    } catch (error) {
      setRefusal(toApiError(error));
    }
    setBusy(false);
  };
  if (problem) return <Problem problem={problem} onRetry={reload} />;
  if (!data) return <Loading what="transcoders" />;
  return (
    <form class="card job-form" aria-label="Start a job" onSubmit={(event) => void submit(event)}>
      <div class="job-form-row">
        <Segments name="work" legend="Work" value={work} options={[["explain", "Explain"], ["score", "Score"]]} onChange={setWork} />
        <label class="field">
          <span>Transcoder</span>
          <select required value={transcoder} disabled={transcoders.length === 0} onChange={(event) => setChosen(event.currentTarget.value)}>
            {transcoders.map((one) => <option key={one.name} value={idOf(one.name)}>{idOf(one.name)}</option>)}
            {transcoders.length === 0 ? <option value="">none yet: export one from a run</option> : null}
          </select>
        </label>
        <p class="note job-form-index" data-stat="index">
          {indexes.problem ? indexes.problem.message : null}
          {index ? <>Examples come from its newest index, <b>{idOf(index.name)}</b>: {count(index.num_tokens)} {index.held_out ? "held-out" : "training"} tokens of <a href={`/datasets/${encodeURIComponent(idOf(index.dataset))}`}>{idOf(index.dataset)}</a>.</> : null}
          {indexes.data && !index ? <>It has no whole index, which examples come from. <a href={`/transcoders/${encodeURIComponent(transcoder)}`}>Make one on its page</a>.</> : null}
        </p>
      </div>
      <div class="job-form-row">
        <Segments name="which" legend="Features" value={choice} options={[["filter", "By figures"], ["list", "List"], ["graph", "Of graphs"]]} onChange={setChoice} />
        {choice === "filter" ? (
          <>
            <label class="field short"><span>Layers</span><input class="mono" placeholder="all" value={layers} onInput={(event) => setLayers(event.currentTarget.value)} /></label>
            <Choose name="Activity" value={state} options={[["active", "active"], ["dense", "dense"], ["", "any"]]} onChange={setState} />
            <Choose name="Label" value={labelState} options={LABELS} onChange={setLabel} />
            <label class="field short"><span>Active, % from</span><input type="number" min={0} max={100} step="any" placeholder="0" value={least} onInput={(event) => setLeast(event.currentTarget.value)} /></label>
            <label class="field short"><span>to, % of tokens</span><input type="number" min={0} max={100} step="any" placeholder="100" value={most} onInput={(event) => setMost(event.currentTarget.value)} /></label>
            <Choose name="Order" value={order} options={ORDERS} onChange={setOrder} />
          </>
        ) : null}
        {choice === "list" ? (
          <label class="field grow"><span>Features, layer-index</span><textarea class="mono" rows={2} placeholder="3-14 3-15 12-345" value={features} onInput={(event) => setFeatures(event.currentTarget.value)} /></label>
        ) : null}
        {choice === "graph" ? <GraphChoice transcoder={transcoder} chosen={graphs} onChange={setGraphs} /> : null}
      </div>
      <div class="job-form-row">
        <label class="field short"><span>Most features</span><input type="number" min={1} max={100000} required={choice !== "list"} value={maxFeatures} onInput={(event) => setMaxFeatures(event.currentTarget.value)} /></label>
        <label class="field short"><span>Most calls</span><input type="number" min={1} max={10000000} required value={maxCalls} onInput={(event) => setMaxCalls(event.currentTarget.value)} /></label>
        <label class="field short"><span>Most tokens</span><input type="number" min={1} placeholder="no limit" value={maxTokens} onInput={(event) => setMaxTokens(event.currentTarget.value)} /></label>
        <label class="field short"><span>Examples</span><input type="number" min={4} max={100} placeholder={work === "explain" ? "40" : `${DEFAULT_LINES}`} value={numExamples} onInput={(event) => setNumExamples(event.currentTarget.value)} /></label>
        {work === "explain" ? <Choose name="Prompt" value={prompt} options={[["", `newest (${props.interpreter.explain_prompts[0] ?? "none"})`], ...props.interpreter.explain_prompts.map((name): [string, string] => [name, name])]} onChange={setPrompt} /> : (
          <fieldset class="job-form-tests">
            <legend>Tests</legend>
            {KINDS.map(([kind, name]) => {
              const isMissing = kind === "embedding" && !props.interpreter.embedding_model;
              return <label key={kind} title={isMissing ? "No model that embeds is set up" : ""}><input type="checkbox" disabled={isMissing} checked={kinds.includes(kind)} onChange={(event) => setKinds(event.currentTarget.checked ? [...kinds, kind] : kinds.filter((one) => one !== kind))} /> {name}</label>;
            })}
            <label title="Every feature is tested with another one's label too, on the same lines: what chance scores"><input type="checkbox" checked={hasControl} onChange={(event) => setControl(event.currentTarget.checked)} /> shuffled labels beside</label>
          </fieldset>
        )}
        <button type="submit" class="button primary" disabled={isBusy || !index || (work === "score" && kinds.length === 0)}>{isBusy ? "Asking…" : work === "explain" ? "Explain" : "Score"}</button>
      </div>
      {Number.isFinite(mostCalls) && mostCalls > 0 ? (
        <p class="note" data-stat="most-calls">{count(numFeatures)} {numFeatures === 1 ? "feature takes" : "features take"} {count(mostCalls)} {mostCalls === 1 ? "call" : "calls"} at most, and more where an answer is asked for again; what is spent never goes beyond the budget.</p>
      ) : null}
      {refusal ? <Problem problem={refusal} /> : null}
    </form>
  );
}

function Segments<T extends string>(props: { name: string; legend: string; value: T; options: [T, string][]; onChange: (value: T) => void }) {
  return (
    <div class="field">
      <span aria-hidden="true">{props.legend}</span>
      <fieldset class="segments">
        <legend class="visually-hidden">{props.legend}</legend>
        {props.options.map(([value, name]) => <label key={value}><input type="radio" name={props.name} value={value} checked={props.value === value} onChange={() => props.onChange(value)} /><span>{name}</span></label>)}
      </fieldset>
    </div>
  );
}

function Choose(props: { name: string; value: string; options: readonly (readonly [string, string])[]; onChange: (value: string) => void }) {
  return (
    <label class="field">
      <span>{props.name}</span>
      <select value={props.value} onChange={(event) => props.onChange(event.currentTarget.value)}>
        {props.options.map(([value, name]) => <option key={value} value={value}>{name}</option>)}
      </select>
    </label>
  );
}

function GraphChoice(props: { transcoder: string; chosen: string[]; onChange: (graphs: string[]) => void }) {
  const { data, problem, reload } = useLoad<{ graphs: Graph[] }>("/api/graphs");
  if (problem) return <Problem problem={problem} onRetry={reload} />;
  const graphs = (data?.graphs ?? []).filter((graph) => graph.state === "succeeded" && idOf(graph.spec?.transcoder ?? "") === props.transcoder);
  return (
    <fieldset class="job-form-graphs grow" tabIndex={0}>
      <legend>Graphs; the most influential features of each come first</legend>
      {!data ? <span class="note">Loading…</span> : null}
      {data && graphs.length === 0 ? <span class="note">No whole graph was made with this transcoder.</span> : null}
      {graphs.map((graph) => {
        const id = idOf(graph.name);
        return <label key={id}><input type="checkbox" checked={props.chosen.includes(id)} onChange={(event) => props.onChange(event.currentTarget.checked ? [...props.chosen, id] : props.chosen.filter((one) => one !== id))} /> <span class="mono">{graph.spec?.prompt ?? id}</span></label>;
      })}
    </fieldset>
  );
}
