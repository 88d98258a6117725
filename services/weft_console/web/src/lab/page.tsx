/** The lab: a text, what fires where, and what the model says when some of it is changed. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { count } from "../format";
import { navigate } from "../routes";
import { idOf, type Transcoder } from "../types";
import { toApiError, useLoad } from "../ui/load";
import { useIsHere } from "../ui/here";
import { Empty, Loading, PageHead, Problem } from "../ui/parts";
import { PromptField } from "../ui/prompt-field";
import { useTabName } from "../ui/tab-name";
import { useAsked, useRun, type Asked } from "./ask";
import { buildGrid, type Firing, type FiringFeature } from "./firing";
import { FiringGrid } from "./grid";
import { FiringList } from "./list";
import { Pins } from "./pins";
import { Result } from "./result";
import { changePin, changesOf, MAX_NEW_TOKENS, MAX_PER_CELL, MAX_PINS, parseLayers, pinKey, readLab, togglePin, writeLab, type LabState, type Pin } from "./state";

export function LabPage() {
  const { data, problem, reload } = useLoad<{ transcoders: Transcoder[] }>("/api/transcoders?page_size=1000");
  const transcoders = data?.transcoders ?? [];
  return (
    <div class="page lab">
      <PageHead title="Lab" note="What fires on a text, and what the model says when it is changed." />
      {problem ? <Problem problem={problem} onRetry={reload} /> : null}
      {!data && !problem ? <Loading what="transcoders" /> : null}
      {data && transcoders.length === 0 ? <Empty title="No transcoders yet">Export one from a run (<code>weft transcoders create</code>) or import one, and its features can be looked at here.</Empty> : null}
      {transcoders.length > 0 ? <Bench transcoders={transcoders} /> : null}
    </div>
  );
}

type Part = Partial<LabState> | ((before: LabState) => Partial<LabState>);
type OnChange = (part: Part) => void;

/** The state of the page and its address; a step is one that the browser goes back over. */
function useLab(): { state: LabState; change: OnChange; step: OnChange } {
  const [state, setState] = useState(() => readLab(location.search));
  useEffect(() => {
    const address = location.pathname + writeLab(state);
    if (address === location.pathname + location.search) return undefined;
    // Browsers allow few changes of the address a second; letters of a filter come faster.
    const timer = window.setTimeout(() => history.replaceState(history.state, "", address), 200);
    return () => window.clearTimeout(timer);
  }, [state]);
  useEffect(() => {
    const onPop = () => { if (location.pathname === "/lab") setState(readLab(location.search)); };
    window.addEventListener("popstate", onPop);
    return () => window.removeEventListener("popstate", onPop);
  }, []);
  const next = (before: LabState, part: Part): LabState => ({ ...before, ...(typeof part === "function" ? part(before) : part) });
  const step: OnChange = (part) => {
    const after = next(state, part);
    if (writeLab(after) !== writeLab(state)) history.pushState(null, "", location.pathname + writeLab(after));
    setState(after);
  };
  return { state, change: (part) => setState((before) => next(before, part)), step };
}

function Bench({ transcoders }: { transcoders: Transcoder[] }) {
  const { state, change, step } = useLab();
  useTabName(state.prompt ? `${state.prompt} · Lab` : "Lab");
  const named = transcoders.find((one) => idOf(one.name) === state.transcoder);
  const transcoder = named ?? transcoders[0]!;
  const id = idOf(transcoder.name);
  const isMissing = state.transcoder !== "" && !named;
  const layers = parseLayers(state.layers, transcoder.num_layers);
  // While layers are being written, those stay that could be read last.
  const readable = useRef<number[]>([]);
  if (layers) readable.current = layers;
  const isAsked = state.prompt !== "" && !isMissing;
  const firing = useAsked<Firing>("/api/lab/activations", isAsked ? { transcoder: id, prompt: state.prompt, layers: readable.current } : null);
  const found = firing.data && isOf(firing.key, id, state.prompt) ? firing.data : null;
  const grid = useMemo(() => (found ? buildGrid(found) : null), [found]);
  const told = useMemo(() => new Map((found?.features ?? []).map((feature): [string, FiringFeature] => [pinKey(feature), feature])), [found]);
  // What is pinned may be silent here, or not among what is told.
  const others = found ? state.pins.map(pinKey).filter((key) => !told.has(key)) : [];
  const silent = useAsked<Firing>("/api/lab/activations", isAsked && others.length > 0 ? { transcoder: id, prompt: state.prompt, features: others } : null);
  const known = useMemo(() => {
    const all = new Map<string, FiringFeature>(told);
    if (isOf(silent.key, id, state.prompt)) for (const feature of silent.data?.features ?? []) all.set(pinKey(feature), feature);
    return all;
  }, [told, silent.data]);
  const pinned = useMemo(() => new Set(state.pins.map(pinKey)), [state.pins]);
  // A link may name a token that this text does not have.
  const token = found && state.token !== null && state.token < found.tokens.length ? state.token : null;
  const pin = (place: { layer: number; index: number }) => change((before) => togglePin(before, place));
  const ask = (name: string, prompt: string) => {
    if (name === id && prompt === state.prompt) firing.reload();
    // What is pinned stays on another text, though not where: its tokens are others.
    else step((before) => ({ transcoder: name, prompt, token: null, isRun: false, pins: name === id ? before.pins.map((one) => ({ ...one, positions: [] })) : [] }));
  };
  return (
    <>
      <Ask prompt={state.prompt} transcoders={transcoders} chosen={id} isBusy={firing.isBusy} onAsk={ask} />
      {isMissing ? <Problem problem={`There is no transcoder “${state.transcoder}” here. Choose another one above.`} /> : null}
      {firing.problem ? <Problem problem={firing.problem} onRetry={firing.reload} /> : null}
      {isAsked && !found && firing.isBusy ? <Loading what="what fires" /> : null}
      {!isAsked && !isMissing ? <Empty title="Nothing is looked at yet">Write a text above. Each of its tokens then shows the features that fire on it, layer by layer.</Empty> : null}
      {isAsked ? <Filters state={state} numLayers={transcoder.num_layers} isWrong={layers === null} firing={found} onChange={change} /> : null}
      {grid && found ? (
        <div class={`lab-fires${firing.isBusy ? " is-stale" : ""}`} aria-busy={firing.isBusy}>
          {grid.layers.length === 0 ? <Empty title="Nothing fires">No feature of these layers is active on this text.</Empty> : (
            <>
              <section class="card lab-where" aria-label="What fires where">
                <p class="note lab-caption">{grid.isIndexed ? "Shaded by the share of each feature's largest activation in its index." : "Shaded by the share of its layer's largest activation on this text; with an index, features are held against their own largest (weft features index)."} Click a feature to pin it.</p>
                <FiringGrid grid={grid} tokens={found.tokens} perCell={state.perCell} token={token} pinned={pinned} onToken={(token) => change({ token })} onPin={pin} />
              </section>
              <FiringList grid={grid} tokens={found.tokens} token={token} transcoder={id} pinned={pinned} onPin={pin} />
            </>
          )}
        </div>
      ) : null}
      {isAsked && found ? (
        <Changes key={`${id} ${state.prompt}`} state={state} tokens={found.tokens} transcoder={transcoder} known={known} silent={silent} onChange={change} onPin={pin} />
      ) : null}
    </>
  );
}

/** Whether an answer is of this text, and not of the one before. */
function isOf(key: string, transcoder: string, prompt: string): boolean {
  if (!key) return false;
  const asked = JSON.parse(key) as { transcoder: string; prompt: string };
  return asked.transcoder === transcoder && asked.prompt === prompt;
}

interface AskProps {
  prompt: string;
  transcoders: Transcoder[];
  chosen: string;
  isBusy: boolean;
  onAsk: (transcoder: string, prompt: string) => void;
}

function Ask({ prompt: asked, transcoders, chosen, isBusy, onAsk }: AskProps) {
  const [prompt, setPrompt] = useState(asked);
  const [name, setName] = useState(chosen);
  // The way back leads to another text; whoever is in the field stays there.
  useEffect(() => { setPrompt(asked); setName(chosen); }, [asked, chosen]);
  return (
    <form class="card create" aria-label="Text to look at" onSubmit={(event) => { event.preventDefault(); onAsk(name, prompt); }}>
      <PromptField name="Text" value={prompt} onInput={setPrompt} />
      <label class="field">
        <span>Transcoder</span>
        <select value={name} onChange={(event) => setName(event.currentTarget.value)}>
          {transcoders.map((one) => <option key={one.name} value={idOf(one.name)}>{idOf(one.name)}</option>)}
        </select>
      </label>
      <button type="submit" class="button primary">{isBusy ? "Looking…" : "Look"}</button>
    </form>
  );
}

interface FilterProps {
  state: LabState;
  numLayers: number;
  isWrong: boolean;
  firing: Firing | null;
  onChange: OnChange;
}

function Filters({ state, numLayers, isWrong, firing, onChange }: FilterProps) {
  const isCut = firing !== null && firing.num_active_features > firing.features.length;
  return (
    <div class="row lab-filters">
      <label class="field-inline">
        <span>Layers</span>
        <input type="text" class="mono" placeholder={`0-${numLayers - 1}`} aria-invalid={isWrong} aria-describedby="lab-layers-note" value={state.layers} onInput={(event) => onChange({ layers: event.currentTarget.value })} />
      </label>
      <label class="field-inline">
        <span>Features a cell</span>
        <select value={state.perCell} onChange={(event) => onChange({ perCell: Number(event.currentTarget.value) })}>
          {Array.from({ length: MAX_PER_CELL }, (_, i) => <option key={i} value={i + 1}>{i + 1}</option>)}
        </select>
      </label>
      {state.token !== null ? <button type="button" class="button small" onClick={() => onChange({ token: null })}>All tokens</button> : null}
      <p class="note" id="lab-layers-note" role="status">
        {isWrong ? `Layers are written like 3-8, 12 and go from 0 to ${numLayers - 1}.` : firing ? (
          <><b data-stat="active">{count(firing.num_active_features)}</b> features are active{isCut ? `; these are the ${count(firing.features.length)} strongest. Choose fewer layers to see the others.` : "."}</>
        ) : ""}
      </p>
    </div>
  );
}

interface ChangesProps {
  state: LabState;
  tokens: string[];
  transcoder: Transcoder;
  known: ReadonlyMap<string, FiringFeature>;
  /** The question after pinned features that were not told. */
  silent: Asked<Firing>;
  onChange: OnChange;
  onPin: (place: { layer: number; index: number }) => void;
}

/** Pinned features, what is done to them, and both runs. */
function Changes({ state, tokens, transcoder, known, silent, onChange, onPin }: ChangesProps) {
  const id = idOf(transcoder.name);
  const { run, stop, data, key, problem: refusal, isBusy } = useRun();
  const changes = changesOf(state.pins);
  const body = { transcoder: id, prompt: state.prompt, changes, max_new_tokens: state.newTokens };
  const wanted = JSON.stringify(body);
  const heading = useRef<HTMLHeadingElement>(null);
  const start = () => { onChange({ isRun: true }); run(body); };
  // The button that had the focus goes with its pin.
  const unpin = (pin: Pin) => { onPin(pin); heading.current?.focus({ preventScroll: true }); };
  // A link that was made after a run runs it again.
  useEffect(() => { if (state.isRun && changes.length > 0 && key !== wanted) run(body); }, []);
  return (
    <section class="lab-steer" aria-label="Pinned features">
      <div class="row">
        <h2 tabIndex={-1} ref={heading}>Pinned features <small class="note">{state.pins.length === 0 ? "" : state.pins.length}</small></h2>
        <GraphLink transcoder={transcoder} prompt={state.prompt} />
      </div>
      {silent.problem ? <Problem problem={silent.problem} onRetry={silent.reload} /> : null}
      {state.pins.length === 0 ? <p class="note">Click a feature above to pin it. What is pinned can be ablated, multiplied, set or added to, at all tokens or at some.</p> : (
        <Pins pins={state.pins} tokens={tokens} transcoder={id} known={known}
          onChange={(pin, part) => onChange((before) => changePin(before, pin, part))} onUnpin={unpin} />
      )}
      {state.pins.length > 0 ? (
        <div class="row lab-run">
          <label class="field-inline">
            <span>Tokens to go on for</span>
            <input type="number" min={1} max={MAX_NEW_TOKENS} value={state.newTokens}
              onInput={(event) => { const value = event.currentTarget.valueAsNumber; if (value >= 1 && value <= MAX_NEW_TOKENS) onChange({ newTokens: Math.round(value) }); }}
              onBlur={(event) => { event.currentTarget.value = String(state.newTokens); }} />
          </label>
          <button type="button" class={`button${isBusy ? "" : " primary"}`} disabled={changes.length === 0 && !isBusy} onClick={isBusy ? stop : start}>{isBusy ? "Stop" : "Run both"}</button>
          <span class="note" role="status">{isBusy ? "Running both, undisturbed and changed…" : changes.length === 0 ? "Choose a change of at least one feature." : `${changes.length} of ${state.pins.length} changed; ${MAX_PINS} at most. The text goes on with the most likely token each time.`}</span>
        </div>
      ) : null}
      {refusal ? <Problem problem={refusal} /> : null}
      {data ? <Result result={data} prompt={state.prompt} isStale={key !== wanted} /> : null}
    </section>
  );
}

/** The same text as a graph: there a change is predicted, and measured beside it. */
function GraphLink({ transcoder, prompt }: { transcoder: Transcoder; prompt: string }) {
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [isBusy, setBusy] = useState(false);
  const isHere = useIsHere();
  const make = async () => {
    setBusy(true);
    setProblem(null);
    try {
      const graph = await post<{ graph_id: string }>("/api/graphs", { prompt, transcoder: transcoder.name, model: transcoder.model });
      if (isHere()) navigate(`/graphs/${encodeURIComponent(graph.graph_id)}`);
    } catch (error) {
      setProblem(toApiError(error));
      setBusy(false);
    }
  };
  return (
    <>
      <button type="button" class="button small" disabled={isBusy} title="Steps from token to token; changes are predicted there, and measured beside it" onClick={() => void make()}>{isBusy ? "Asking…" : "Explain as a graph"}</button>
      {problem ? <Problem problem={problem} /> : null}
    </>
  );
}
