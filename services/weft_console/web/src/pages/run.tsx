/** One run, live: what the trainer measures step by step, and how good it is on data it has not seen. */
import { useEffect, useReducer, useState } from "preact/hooks";
import { follow, post, type ApiError } from "../api";
import { ago, bytes, count, figure, percent } from "../format";
import { idOf, type Checkpoint, type Evaluation, type Metrics, type Run } from "../types";
import { EvaluationCharts, ReplacementPart } from "./evaluation";
import { LineChart } from "../ui/line-chart";
import { toApiError, useLoad } from "../ui/load";
import { Loading, PageHead, Problem, ProgressBar, Stat, StateBadge } from "../ui/parts";

interface History {
  run: Run | null;
  metrics: Metrics[];
  evaluations: Evaluation[];
}

type News = { kind: "batch"; metrics: Metrics[]; evaluations: Evaluation[]; run: Run | null };

/** Adds what is new; a step that comes twice replaces what it was, as after a resume. */
function addNews(history: History, news: News): History {
  return {
    run: news.run ?? history.run,
    metrics: merge(history.metrics, news.metrics),
    evaluations: merge(history.evaluations, news.evaluations),
  };
}

function merge<T extends { step: number }>(old: T[], fresh: T[]): T[] {
  const first = fresh[0];
  if (!first) return old;
  const last = old[old.length - 1];
  if (!last || first.step > last.step) return [...old, ...fresh];
  const byStep = new Map([...old, ...fresh].map((one) => [one.step, one]));
  return [...byStep.values()].sort((a, b) => a.step - b.step);
}

/** Follows a run and hands its news on ten times a second at most, however many steps it makes. */
function useRun(id: string, round: number): [History, string | null] {
  const [history, dispatch] = useReducer(addNews, { run: null, metrics: [], evaluations: [] });
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    let waiting: News = { kind: "batch", metrics: [], evaluations: [], run: null };
    let timer = 0;
    const queue = () => {
      if (timer) return;
      timer = window.setTimeout(() => {
        timer = 0;
        dispatch(waiting);
        waiting = { kind: "batch", metrics: [], evaluations: [], run: null };
      }, 100);
    };
    const stop = follow(`/api/runs/${encodeURIComponent(id)}/events`, {
      metrics: (data) => { waiting.metrics.push(data as Metrics); queue(); },
      evaluation: (data) => { waiting.evaluations.push(data as Evaluation); queue(); },
      run: (data) => { waiting.run = data as Run; queue(); },
    }, setProblem);
    return () => {
      stop();
      window.clearTimeout(timer);
    };
  }, [id, round]);
  return [history, problem];
}

export function RunPage({ id }: { id: string }) {
  const loaded = useLoad<Run>(`/api/runs/${encodeURIComponent(id)}`);
  const checkpoints = useLoad<{ checkpoints: Checkpoint[] }>(`/api/runs/${encodeURIComponent(id)}/checkpoints`);
  const [round, setRound] = useState(0);
  const [history, streamProblem] = useRun(id, round);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const run = history.run ?? loaded.data;
  if (loaded.problem) return <div class="page"><Problem problem={loaded.problem} onRetry={loaded.reload} /></div>;
  if (!run) return <Loading what="the run" />;
  const act = (verb: string) => {
    if (verb === "cancel" && !confirm("Stop this run for good?")) return;
    post<Run>(`/api/runs/${encodeURIComponent(id)}/${verb}`).then(() => { setProblem(null); loaded.reload(); setRound((n) => n + 1); }, (error: unknown) => setProblem(toApiError(error)));
  };
  // Newest first: the last checkpoint that somebody had the replacement model measured of.
  const measured = checkpoints.data?.checkpoints.find((one) => one.evaluation?.replacement);
  const { metrics } = history;
  const last = metrics[metrics.length - 1] ?? run.metrics;
  const evaluation = history.evaluations[history.evaluations.length - 1] ?? run.evaluation;
  const step = Math.max(last?.step ?? 0, run.step);
  const total = run.spec?.num_steps ?? 0;
  const isOver = run.state === "succeeded" || run.state === "failed" || run.state === "cancelled";
  const points = (value: (one: Metrics) => number): [number, number][] => metrics.map((one) => [one.step, value(one)]);
  return (
    <div class="page">
      <PageHead title={id} note={<><StateBadge state={run.state} /> {count(run.spec?.num_features ?? 0)} features a layer, {run.spec?.activation.replace("_", " ")}, on <a href={`/datasets/${idOf(run.spec?.dataset ?? "")}`}>{idOf(run.spec?.dataset ?? "")}</a> · made {ago(run.create_time)}</>}>
        <div class="row">
          {run.state === "running" ? <button type="button" class="button" onClick={() => act("pause")}>Pause</button> : null}
          {run.state === "paused" || run.state === "failed" ? <button type="button" class="button" onClick={() => act("resume")}>Resume</button> : null}
          {isOver ? null : <button type="button" class="button quiet" onClick={() => act("cancel")}>Cancel run</button>}
        </div>
      </PageHead>
      {problem ? <Problem problem={problem} /> : null}
      {streamProblem ? <Problem problem={streamProblem} onRetry={() => setRound((n) => n + 1)} /> : null}
      {run.error_message ? <Problem problem={run.error_message} /> : null}
      <div class="run-progress">
        <ProgressBar done={step} total={total} label="Steps done" />
        <span class="note"><b data-stat="step">{count(step)}</b> of {count(total)} steps{last && !isOver && last.tokens_per_s > 0 ? ` · about ${eta(total - step, run, last)} left` : ""}</span>
      </div>
      <dl class="stats tiles">
        <Stat label="loss" id="loss" value={last ? last.loss.toFixed(4) : "–"} />
        <Stat label="EV, held out" title="Explained variance on tokens that it was not trained on, mean over layers" id="held-out" value={evaluation ? evaluation.explained_variance.toFixed(4) : "–"} />
        <Stat label="EV, this step" title="Explained variance on this step's tokens, mean over layers" value={last ? last.explained_variance.toFixed(4) : "–"} />
        <Stat label="L0 a layer" id="l0" value={last ? last.l0.toFixed(1) : "–"} />
        <Stat label="dead features" value={last ? percent(last.dead_share) : "–"} />
        <Stat label="tokens/s" id="tokens-per-s" value={last ? count(last.tokens_per_s) : "–"} />
        <Stat label="gradient norm" value={last ? figure(last.gradient_norm) : "–"} />
        <Stat label="sent a token" id="sent" title={last ? `Bytes that a rank sent to others; ${bytes(Math.round(last.entry_bytes_per_token))} of them for active features` : "Bytes that a rank sent to others"} value={last ? bytes(Math.round(last.sent_bytes_per_token)) : "–"} />
        <Stat label="peak memory" value={run.peak_memory_bytes > 0 ? bytes(run.peak_memory_bytes) : "–"} />
      </dl>
      <div class="charts">
        <LineChart title="Loss" series={[{ name: "whole", points: points((one) => one.loss) }, { name: "reconstruction", points: points((one) => one.reconstruction_loss) }]} log />
        {metrics.some((one) => one.aux_loss > 0) ? <LineChart title="AuxK's part of the loss" series={[{ name: "AuxK", points: points((one) => one.aux_loss) }]} log /> : null}
        <LineChart title="Explained variance" series={[{ name: "step", points: points((one) => one.explained_variance) }, { name: "held out", points: history.evaluations.map((one) => [one.step, one.explained_variance]), dots: true }]} />
        <LineChart title="L0, mean over layers" series={[{ name: "L0", points: points((one) => one.l0) }]} />
        <LineChart title="Dead share" series={[{ name: "dead", points: points((one) => one.dead_share) }]} format={(value) => percent(value)} />
        <LineChart title="Tokens per second" series={[{ name: "tokens/s", points: points((one) => one.tokens_per_s) }]} format={count} />
        <LineChart title="Gradient norm before clipping" series={[{ name: "norm", points: points((one) => one.gradient_norm) }]} log />
        {evaluation ? <EvaluationCharts evaluation={evaluation} history={history.evaluations} /> : null}
      </div>
      {measured?.evaluation?.replacement ? <ReplacementPart replacement={measured.evaluation.replacement} step={measured.step} /> : null}
      <h2>History</h2>
      <ol class="timeline">
        {run.transitions.map((one, i) => <li key={i}><StateBadge state={one.state} /> <time>{one.time ? new Date(one.time).toLocaleTimeString("en-GB") : ""}</time> <span class="note">{one.reason}</span></li>)}
      </ol>
    </div>
  );
}

function eta(steps: number, run: Run, last: Metrics): string {
  const left = (steps * (run.spec?.step_tokens ?? 0)) / last.tokens_per_s;
  return left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`;
}
