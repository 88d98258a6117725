/** Indexes of a transcoder's features: whole ones, those that are only partly there, and the form that makes one. */
import { useEffect, useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { isOver } from "../interpretation/model";
import { ago, count, percent } from "../format";
import { idOf, type Dataset, type Transcoder } from "../types";
import { toApiError, useLoad, type Loaded } from "../ui/load";
import { Empty, Loading, Problem, ProgressBar, StateBadge } from "../ui/parts";
import { indexId } from "./figures";
import type { FeatureIndex, IndexesAnswer, IndexJob } from "./types";

const LOOK_MS = 1200;

export function Indexes({ transcoder, indexes }: { transcoder: Transcoder; indexes: Loaded<IndexesAnswer> }) {
  const id = idOf(transcoder.name);
  const path = `/api/transcoders/${encodeURIComponent(id)}/indexes`;
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [last, setLast] = useState<IndexesAnswer | null>(null);
  useEffect(() => { if (indexes.data) setLast(indexes.data); }, [indexes.data]);
  const isBusy = last?.jobs.some((job) => !isOver(job.state)) ?? false;
  useEffect(() => {
    if (!isBusy) return undefined;
    const timer = window.setInterval(() => { if (!document.hidden) indexes.reload(); }, LOOK_MS);
    return () => window.clearInterval(timer);
  }, [isBusy, indexes.reload]);
  // One at a time: a second click asks for nothing more.
  const [acting, setActing] = useState<string | null>(null);
  const act = (job: IndexJob, verb: "cancel" | "resume") => {
    if (acting !== null) return;
    setActing(job.index);
    post(`${path}/${encodeURIComponent(idOf(job.index))}/${verb}`)
      .then(() => { setProblem(null); indexes.reload(); }, (error: unknown) => setProblem(toApiError(error)))
      .finally(() => setActing(null));
  };
  return (
    <section class="job-tests" aria-label="Indexes">
      <h2>Indexes of its features</h2>
      {problem ? <Problem problem={problem} /> : null}
      {indexes.problem ? <Problem problem={indexes.problem} onRetry={indexes.reload} /> : null}
      {!last && !indexes.problem ? <Loading what="indexes" /> : null}
      {last && last.indexes.length === 0 && last.jobs.length === 0 ? <Empty title="No index yet">An index says where every feature is active, and on which text. Choose a dataset below, or run <code>weft features index {id} --dataset …</code>.</Empty> : null}
      {last && last.indexes.length + last.jobs.length > 0 ? (
        <div class="scroll" role="region" aria-label="Indexes, table" tabIndex={0}>
          <table class="table" data-list="indexes">
            <thead><tr><th scope="col">Index</th><th scope="col">State</th><th scope="col" class="num">Tokens</th><th scope="col" class="num">Features</th><th scope="col" class="num">Dead</th><th scope="col" class="num">Dense</th><th scope="col">Asked for</th><th scope="col"><span class="visually-hidden">Actions</span></th></tr></thead>
            <tbody>
              {last.jobs.map((job) => <JobRow key={job.operation} job={job} onAct={(verb) => act(job, verb)} />)}
              {last.indexes.map((index, at) => <IndexRow key={index.name} index={index} isAnswering={at === 0} />)}
            </tbody>
          </table>
        </div>
      ) : null}
      {last?.indexes.some((one) => one.activity_rule === "threshold_for_count") ? (
        <p class="note" data-note="counted">This transcoder keeps the largest features of a token. An index takes a feature for active above a threshold instead, by which it fires as often: on a single token graphs and the lab, which count, may show others.</p>
      ) : null}
      {last ? <IndexForm transcoder={transcoder} taken={[...last.indexes.map((one) => idOf(one.name)), ...last.jobs.map((one) => idOf(one.index))]} path={path} onStarted={indexes.reload} /> : null}
    </section>
  );
}

function IndexRow({ index, isAnswering }: { index: FeatureIndex; isAnswering: boolean }) {
  const features = index.num_features.reduce((sum, one) => sum + one, 0);
  return (
    <tr>
      <td class="main-cell"><b>{idOf(index.name)}</b><small>{index.held_out ? "held-out" : "training"} split of <a href={`/datasets/${encodeURIComponent(idOf(index.dataset))}`}>{idOf(index.dataset)}</a></small></td>
      <td><StateBadge state="whole" />{isAnswering ? <small title="The newest whole index is the one that pages and calls answer from">answers now</small> : null}</td>
      <td class="num">{count(index.num_tokens)}</td>
      <td class="num">{count(features)}</td>
      <td class="num">{percent(features > 0 ? index.num_dead / features : 0)}</td>
      <td class="num">{percent(features > 0 ? index.num_dense / features : 0)}</td>
      <td class="nowrap">{ago(index.create_time)}</td>
      <td />
    </tr>
  );
}

function JobRow({ job, onAct }: { job: IndexJob; onAct: (verb: "cancel" | "resume") => void }) {
  const done = job.progress?.completed ?? 0;
  const total = job.progress?.total ?? 0;
  const name = idOf(job.index);
  return (
    <tr data-index={name}>
      <td class="main-cell"><b>{name}</b><small>{job.request?.held_out ? "held-out" : "training"} split of {idOf(job.request?.dataset ?? "")}</small>{job.error_message && job.state === "failed" ? <small class="is-bad">{job.error_message}</small> : null}</td>
      <td><StateBadge state={job.state} /></td>
      <td class="progress-cell" colSpan={4}><ProgressBar done={done} total={total} label={`Tokens of ${name} done`} /><small>partly there, and not asked yet: {count(done)} of {count(total)} {job.progress?.unit || "tokens of a layer"}</small></td>
      <td class="nowrap">{ago(job.create_time)}</td>
      <td>
        <div class="row-actions">
          {isOver(job.state)
            ? <button type="button" class="button small" aria-label={`Go on with ${name}`} onClick={() => onAct("resume")}>Go on</button>
            : <button type="button" class="button quiet small" aria-label={`Cancel ${name}`} disabled={job.state === "cancelling"} onClick={() => onAct("cancel")}>{job.state === "cancelling" ? "Stopping…" : "Cancel"}</button>}
        </div>
      </td>
    </tr>
  );
}

function IndexForm(props: { transcoder: Transcoder; taken: string[]; path: string; onStarted: () => void }) {
  const { data, problem, reload } = useLoad<{ datasets: Dataset[] }>("/api/datasets?page_size=1000");
  const [chosen, setChosen] = useState("");
  const [name, setName] = useState<string | null>(null);
  const [isHeldOut, setHeldOut] = useState(false);
  const [maxTokens, setMaxTokens] = useState("");
  const [numTop, setNumTop] = useState("");
  const [numSampled, setNumSampled] = useState("");
  const [windowTokens, setWindowTokens] = useState("");
  const [densePercent, setDensePercent] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [refusal, setRefusal] = useState<ApiError | null>(null);
  const { transcoder } = props;
  const datasets = (data?.datasets ?? []).filter((one) => one.state === "sealed" && one.spec?.model === transcoder.model && one.spec.input_hook === transcoder.input_hook);
  const names = datasets.map((one) => idOf(one.name));
  const own = idOf(transcoder.dataset);
  const dataset = names.includes(chosen) ? chosen : names.includes(own) ? own : names[0] ?? "";
  const usual = indexId(dataset, props.taken);
  const id = name ?? usual;
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setRefusal(null);
    try {
      await post(props.path, {
        index_id: id, dataset, held_out: isHeldOut, max_tokens: Number(maxTokens), num_top: Number(numTop), num_sampled: Number(numSampled),
        window_tokens: Number(windowTokens), dense_share: Number(densePercent) / 100,
      });
      setName(null);
      props.onStarted();
    } catch (error) {
      setRefusal(toApiError(error));
    }
    setBusy(false);
  };
  if (problem) return <Problem problem={problem} onRetry={reload} />;
  return (
    <form class="card index-form" aria-label="Make an index" onSubmit={(event) => void submit(event)}>
      <div class="create">
        <label class="field">
          <span>Dataset</span>
          <select required value={dataset} disabled={names.length === 0} onChange={(event) => setChosen(event.currentTarget.value)}>
            {names.map((one) => <option key={one} value={one}>{one}</option>)}
            {names.length === 0 ? <option value="">{data ? "none is sealed that fits" : "loading…"}</option> : null}
          </select>
        </label>
        <label class="field"><span>Index</span><input class="mono" required maxLength={63} pattern="[A-Za-z0-9][A-Za-z0-9_.\-]*" value={id}
          // What comes while somebody is in the field does not get between what he types.
          onFocus={() => setName(id)} onBlur={() => { if (!id || id === usual) setName(null); }} onInput={(event) => setName(event.currentTarget.value)} /></label>
        <label class="field"><span>Split</span><select value={isHeldOut ? "held-out" : "training"} onChange={(event) => setHeldOut(event.currentTarget.value === "held-out")}><option>training</option><option>held-out</option></select></label>
        <label class="field"><span>Most tokens</span><input type="number" min={1} max={100000000} placeholder="the whole split" value={maxTokens} onInput={(event) => setMaxTokens(event.currentTarget.value)} /></label>
        <button type="submit" class="button primary" disabled={isBusy || !dataset}>{isBusy ? "Asking…" : "Make an index"}</button>
      </div>
      <details class="create-more">
        <summary>What is kept of a feature</summary>
        <div class="create index-more">
          <label class="field"><span>Strongest windows</span><input type="number" min={1} max={100} placeholder="20" value={numTop} onInput={(event) => setNumTop(event.currentTarget.value)} /></label>
          <label class="field"><span>Drawn windows</span><input type="number" min={1} max={200} placeholder="40" value={numSampled} onInput={(event) => setNumSampled(event.currentTarget.value)} /></label>
          <label class="field"><span>Tokens a window</span><input type="number" min={4} max={256} placeholder="32" value={windowTokens} onInput={(event) => setWindowTokens(event.currentTarget.value)} /></label>
          <label class="field"><span>Dense above, % of tokens</span><input type="number" min={0} max={100} step="any" placeholder="10" value={densePercent} onInput={(event) => setDensePercent(event.currentTarget.value)} /></label>
        </div>
      </details>
      {data && names.length === 0 ? <p class="note">An index needs a sealed dataset of {idOf(transcoder.model)} that holds {transcoder.input_hook}; <code>weft harvests create</code> makes one.</p> : null}
      {refusal ? <Problem problem={refusal} /> : null}
    </form>
  );
}
