import { useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { figure, percent } from "../format";
import { idOf, type Hearing, type Lens, type Model, type Pattern, type Sweep } from "../types";
import { FrameMap } from "../ui/frame-map";
import { HeatTable, visible } from "../ui/heat-table";
import { toApiError, useLoad } from "../ui/load";
import { Empty, Loading, PageHead, Problem } from "../ui/parts";

const KINDS = [["lens", "Logit lens"], ["patterns", "Attention"], ["patches", "Patching"]] as const;
type Kind = (typeof KINDS)[number][0];

/** One prediction of the base model, taken apart: what each depth predicts, where heads look, what matters. */
export function InsidePage() {
  const { data, problem, reload } = useLoad<{ models: Model[] }>("/api/models");
  const [kind, setKind] = useState<Kind>("lens");
  const [chosen, setChosen] = useState("");
  const [prompt, setPrompt] = useState("");
  const models = data?.models ?? [];
  const model = models.find((one) => one.name === chosen) ?? models[0];
  return (
    <div class="page">
      <PageHead title="Inside" note="One prediction of the base model, taken apart by layer and position." />
      {problem ? <Problem problem={problem} onRetry={reload} /> : null}
      {!data && !problem ? <Loading what="models" /> : null}
      {data && !model ? <Empty title="No models yet">Put a Hugging Face folder into the activations service's folder of models.</Empty> : null}
      {model ? (
        <>
          <div class="row">
            <fieldset class="segments">
              <legend class="visually-hidden">Analysis</legend>
              {KINDS.map(([value, name]) => (
                <label key={value}><input type="radio" name="analysis" value={value} checked={kind === value} onChange={() => setKind(value)} /><span>{name}</span></label>
              ))}
            </fieldset>
            <label class="field">
              <span>Model</span>
              <select value={model.name} onChange={(event) => setChosen(event.currentTarget.value)}>
                {models.map((one) => <option key={one.name} value={one.name}>{idOf(one.name)}</option>)}
              </select>
            </label>
          </div>
          {kind === "lens" ? <LensPart key={model.name} model={model} prompt={prompt} setPrompt={setPrompt} /> : null}
          {kind === "patterns" && model.kind === "speech" ? <HearingPart key={model.name} model={model} prompt={prompt} setPrompt={setPrompt} /> : null}
          {kind === "patterns" && model.kind !== "speech" ? <PatternPart key={model.name} model={model} prompt={prompt} setPrompt={setPrompt} /> : null}
          {kind === "patches" ? <PatchPart key={model.name} model={model} prompt={prompt} setPrompt={setPrompt} /> : null}
        </>
      ) : null}
    </div>
  );
}

/** The prompt stays where another analysis is chosen. */
interface PartProps {
  model: Model;
  prompt: string;
  setPrompt: (value: string) => void;
}

/** Asks once at a time; what was found stays until the next answer. */
function useAsk<T>(model: Model) {
  const [found, setFound] = useState<T | null>(null);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [isBusy, setBusy] = useState(false);
  const ask = async (event: Event, what: string, body: unknown) => {
    event.preventDefault();
    setBusy(true);
    setProblem(null);
    try {
      setFound(await post<T>(`/api/models/${encodeURIComponent(idOf(model.name))}/${what}`, body));
    } catch (error) {
      setProblem(toApiError(error));
    }
    setBusy(false);
  };
  return { found, problem, isBusy, ask };
}

function Text(props: { name: string; value: string; placeholder: string; isRequired?: boolean; onInput: (value: string) => void }) {
  return (
    <label class="field grow">
      <span>{props.name}</span>
      <input class="mono" required={props.isRequired ?? true} maxLength={4000} placeholder={props.placeholder} value={props.value} onInput={(event) => props.onInput(event.currentTarget.value)} />
    </label>
  );
}

function Index(props: { name: string; count: number; value: number; onInput: (value: number) => void }) {
  return (
    <label class="field short">
      <span>{props.name}</span>
      <input type="number" required min={0} max={props.count - 1} value={props.value} onInput={(event) => props.onInput(Number(event.currentTarget.value))} />
    </label>
  );
}

function LensPart({ model, prompt, setPrompt }: PartProps) {
  const { found, problem, isBusy, ask } = useAsk<Lens>(model);
  return (
    <>
      <form class="card create" aria-label="Logit lens" onSubmit={(event) => void ask(event, "lens", { prompt })}>
        <Text name="Prompt" value={prompt} placeholder="The capital of France is" onInput={setPrompt} />
        <button type="submit" class="button primary" disabled={isBusy}>{isBusy ? "Reading…" : "Look"}</button>
      </form>
      {problem ? <Problem problem={problem} /> : null}
      {found ? (
        <HeatTable caption="What each depth predicts" corner="depth" columns={found.tokens} note="Most likely next token; the stronger, the more likely. The last row is the model's own."
          rows={found.depths.map((depth, row) => ({
            name: `${depth}`,
            cells: found.top[row]!.map((tops, at) => ({
              text: visible(tops[0]!.text),
              heat: tops[0]!.probability,
              title: `${tops.map((one) => `${one.text} ${percent(one.probability)}`).join(", ")}; KL ${figure(found.kl[row]![at]!)}`,
            })),
          }))} />
      ) : null}
    </>
  );
}

function PatternPart({ model, prompt, setPrompt }: PartProps) {
  const { found, problem, isBusy, ask } = useAsk<Pattern>(model);
  const [layer, setLayer] = useState(0);
  const [head, setHead] = useState(0);
  return (
    <>
      <form class="card create" aria-label="Attention" onSubmit={(event) => void ask(event, "patterns", { prompt, layer, head })}>
        <Text name="Prompt" value={prompt} placeholder="The capital of France is" onInput={setPrompt} />
        <Index name="Layer" count={model.num_layers} value={layer} onInput={setLayer} />
        <Index name="Head" count={model.num_heads} value={head} onInput={setHead} />
        <button type="submit" class="button primary" disabled={isBusy}>{isBusy ? "Reading…" : "Look"}</button>
      </form>
      {problem ? <Problem problem={problem} /> : null}
      {found ? (
        <HeatTable caption="Where each token looks" corner="from" columns={found.tokens} note="A row adds up to one."
          rows={found.pattern.map((weights, from) => ({
            name: `${from} ${visible(found.tokens[from]!)}`,
            cells: weights.map((weight, to) => ({ text: to > from ? "" : weight.toFixed(2), heat: weight, title: `${found.tokens[from]} to ${found.tokens[to]}: ${figure(weight)}` })),
          }))} />
      ) : null}
    </>
  );
}

/** A model of speech: which frames of a recording each token looks at. */
function HearingPart({ model, prompt, setPrompt }: PartProps) {
  const { found, problem, isBusy, ask } = useAsk<Hearing>(model);
  const [recording, setRecording] = useState<File | null>(null);
  const [layer, setLayer] = useState(0);
  const [head, setHead] = useState(0);
  const hear = (event: Event) => {
    const asked = new URLSearchParams({ said: prompt, layer: `${layer}`, head: `${head}` });
    // Browsers call such a file by several names.
    void ask(event, `hearing?${asked}`, new Blob(recording ? [recording] : [], { type: "audio/wav" }));
  };
  return (
    <>
      <form class="card create" aria-label="Attention" onSubmit={hear}>
        <label class="field">
          <span>Recording</span>
          <input type="file" required accept=".wav,audio/wav" onChange={(event) => setRecording(event.currentTarget.files?.[0] ?? null)} />
        </label>
        <Text name="Said so far" value={prompt} placeholder="Good morning" onInput={setPrompt} />
        <Index name="Layer" count={model.num_layers} value={layer} onInput={setLayer} />
        <Index name="Head" count={model.num_heads} value={head} onInput={setHead} />
        <button type="submit" class="button primary" disabled={isBusy}>{isBusy ? "Hearing…" : "Look"}</button>
      </form>
      {problem ? <Problem problem={problem} /> : null}
      {found ? (
        <FrameMap caption="Where each token looks" note="A row adds up to one; its darkest frame is where it looks most."
          spectrogram={found.spectrogram} frameS={found.frame_s}
          rows={found.pattern.map((weights, at) => ({ name: `${at} ${found.tokens[at]}`, weights }))} />
      ) : null}
    </>
  );
}

function PatchPart({ model, prompt, setPrompt }: PartProps) {
  const { found, problem, isBusy, ask } = useAsk<Sweep>(model);
  const [corrupted, setCorrupted] = useState("");
  const [token, setToken] = useState("");
  const [other, setOther] = useState("");
  const [component, setComponent] = useState("resid_pre");
  return (
    <>
      <form class="card create" aria-label="Patching" onSubmit={(event) => void ask(event, "patches", { clean: prompt, corrupted, token, other, component })}>
        <Text name="Clean prompt" value={prompt} placeholder="The capital of France is" onInput={setPrompt} />
        <Text name="Corrupted prompt" value={corrupted} placeholder="The capital of Italy is" onInput={setCorrupted} />
        <Text name="Token" value={token} placeholder=" Paris" onInput={setToken} />
        <Text name="Against" value={other} placeholder=" Rome" isRequired={false} onInput={setOther} />
        <label class="field">
          <span>Component</span>
          <select value={component} onChange={(event) => setComponent(event.currentTarget.value)}>
            {["resid_pre", "attn_out", "mlp_out"].map((name) => <option key={name}>{name}</option>)}
          </select>
        </label>
        <button type="submit" class="button primary" disabled={isBusy}>{isBusy ? "Patching…" : "Patch"}</button>
      </form>
      {problem ? <Problem problem={problem} /> : null}
      {found ? (
        <HeatTable caption="What brings the clean prediction back" corner="layer"
          columns={found.corrupted_tokens.map((text, at) => (text === found.clean_tokens[at] ? text : `${visible(found.clean_tokens[at]!)}→${visible(text)}`))}
          note={`1 is the clean prompt's metric, ${figure(found.clean_metric)}; 0 the corrupted one's, ${figure(found.corrupted_metric)}.`}
          rows={found.restored.map((shares, row) => ({
            name: `${found.layers[row]}`,
            cells: shares.map((share, at) => ({ text: share === null ? "–" : share.toFixed(2), heat: share ?? 0, title: `layer ${found.layers[row]}, ${found.corrupted_tokens[at]}: ${share === null ? "no difference to bring back" : figure(share)}` })),
          }))} />
      ) : null}
    </>
  );
}
