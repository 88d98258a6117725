/** One job, live: what it has spent, what came of its features, and what its labels are worth beside shuffled ones. */
import { useEffect, useState } from "preact/hooks";
import { follow, post, type ApiError } from "../api";
import { ago, count, figure } from "../format";
import { navigate } from "../routes";
import { idOf } from "../types";
import { useIsHere } from "../ui/here";
import { toApiError, useLoad } from "../ui/load";
import { Loading, PageHead, Problem, ProgressBar, Stat, StateBadge } from "../ui/parts";
import { useTabName } from "../ui/tab-name";
import { FeatureResults } from "./features";
import { Intervals } from "./intervals";
import { aboutScope } from "./list";
import { budgetLeft, isOver, NO_SPEND, numLeft, retries, scopeOf, titleOf } from "./model";
import type { Interpretation, Kind } from "./types";

export function InterpretationPage({ id }: { id: string }) {
  const path = `/api/interpretations/${encodeURIComponent(id)}`;
  const loaded = useLoad<Interpretation>(path);
  const [live, setLive] = useState<Interpretation | null>(null);
  const [streamProblem, setStreamProblem] = useState<string | null>(null);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [isAsked, setAsked] = useState(false);
  const [round, setRound] = useState(0);
  useEffect(() => {
    setStreamProblem(null);
    return follow(`${path}/events`, { interpretation: (data) => setLive(data as Interpretation) }, setStreamProblem);
  }, [path, round]);
  const job = live ?? loaded.data;
  useTabName(job ? `${titleOf(job)} · ${idOf(job.parent)}` : null);
  if (loaded.problem && !job) return <div class="page"><PageHead title="Job" note={<a href="/interpretation">All jobs</a>} /><Problem problem={loaded.problem} onRetry={loaded.reload} /></div>;
  if (!job) return <Loading what="the job" />;
  const transcoder = idOf(job.parent);
  const done = job.progress?.completed ?? 0;
  const total = job.progress?.total ?? 0;
  const over = isOver(job.state);
  const kinds: Kind[] = job.score ? (job.score.kinds.length > 0 ? job.score.kinds : ["detection", "fuzzing"]) : [];
  const isStopping = job.state === "cancelling" || isAsked;
  const cancel = () => {
    if (!confirm("Stop this job? What it has found stays, and going on later pays for nothing twice.")) return;
    setAsked(true);
    post(`${path}/cancel`).then(() => setProblem(null), (error: unknown) => { setAsked(false); setProblem(toApiError(error)); });
  };
  return (
    <div class="page">
      <PageHead title={titleOf(job)}
        note={<><StateBadge state={job.state} /> of <a href={`/transcoders/${encodeURIComponent(transcoder)}`}>{transcoder}</a>{aboutScope(job) ? `, ${aboutScope(job)}` : ""} · asked for {ago(job.create_time)} · <a href={`/interpretation?${new URLSearchParams({ transcoder })}`}>other jobs</a></>}>
        {over ? null : <button type="button" class="button quiet" disabled={isStopping} onClick={cancel}>{isStopping ? "Stopping…" : "Cancel"}</button>}
      </PageHead>
      {problem ? <Problem problem={problem} /> : null}
      {streamProblem ? <Problem problem={streamProblem} onRetry={() => setRound((n) => n + 1)} /> : null}
      {job.error_message && job.state === "failed" ? <Problem problem={job.error_message} /> : null}
      <div class="run-progress">
        <ProgressBar done={done} total={total} label="Features done" />
        <span class="note"><b data-stat="done">{count(done)}</b> of {count(total)} features{job.state === "waiting" ? " · waits for its turn: a replica does one such job at a time" : ""}{over && numLeft(job) > 0 ? ` · ${count(numLeft(job))} ${numLeft(job) === 1 ? "was" : "were"} not come to${job.state === "succeeded" ? ", the budget being spent" : ""}` : ""}</span>
      </div>
      <SpendTiles job={job} />
      <OutcomeTiles job={job} />
      {over ? <GoOn key={id} path={path} job={job} onProblem={setProblem} /> : null}
      {job.score ? <section class="job-tests" aria-label="Tests"><h2>What the labels are worth</h2>{job.reports.length > 0 ? <Intervals reports={job.reports} /> : <p class="note">The first scores come with the first features.</p>}</section> : null}
      <FeatureResults id={id} transcoder={transcoder} kinds={kinds} completed={done} isOver={over} />
      <h2>What was asked for</h2>
      <dl class="facts">
        {job.explained ? <><dt>Asked</dt><dd><span class="mono">{job.explained.explainer}</span> with the prompt <span class="mono">{job.explained.prompt}</span></dd></> : null}
        {job.explain && !job.explained ? <><dt>Prompt</dt><dd class="mono">{job.explain.prompt || "the newest"}</dd></> : null}
        {job.score ? <><dt>Tests</dt><dd>{kinds.join(", ")}{job.score.control ? "; shuffled labels beside" : ""}</dd></> : null}
        <dt>Graphs</dt><dd>{scopeOf(job).graphs.length === 0 ? "none" : scopeOf(job).graphs.map((graph, at) => <span key={graph}>{at > 0 ? ", " : ""}<a href={`/graphs/${encodeURIComponent(idOf(graph))}`}>{idOf(graph)}</a></span>)}</dd>
        <dt>Features by name</dt><dd>{count(job.num_named)}</dd>
        <dt>Most features</dt><dd>{scopeOf(job).max_features > 0 ? count(scopeOf(job).max_features) : "all that are named"}</dd>
        <dt>Examples</dt><dd>{(job.explain ?? job.score)?.num_examples || (job.explain ? "40 at most" : "20 at most")}</dd>
        <dt>Operation</dt><dd class="mono">{job.operation}</dd>
      </dl>
    </div>
  );
}

function SpendTiles({ job }: { job: Interpretation }) {
  const spend = job.spend ?? NO_SPEND;
  const left = budgetLeft(job);
  const scope = scopeOf(job);
  return (
    <>
      <dl class="stats tiles" data-part="spend">
        <Stat label="calls" id="calls" value={count(spend.calls)} title="Requests that were sent, repeated ones too" />
        <Stat label="calls left" id="calls-left" value={count(left.calls)} title={`Of ${count(scope.max_calls)}`} />
        <Stat label="tokens in" id="tokens-in" value={count(spend.question_tokens)} title="Tokens of questions that were paid for" />
        <Stat label="tokens out" id="tokens-out" value={count(spend.answer_tokens)} title="Tokens of answers that were paid for" />
        <Stat label="tokens left" id="tokens-left" value={left.tokens === null ? "no limit" : count(left.tokens)} title={scope.max_tokens > 0 ? `Of ${count(scope.max_tokens)}` : "Only calls are limited"} />
        <Stat label="tokens a feature" value={(job.progress?.completed ?? 0) > 0 ? figure((spend.question_tokens + spend.answer_tokens) / job.progress!.completed) : "–"} />
        <Stat label="retries" id="retries" value={count(retries(spend))} title="Calls beyond the first of each question" />
        <Stat label="found again" id="reused" value={count(spend.num_reused)} title="Questions whose answer lay in the bucket, paid for by other work" />
      </dl>
      <dl class="stats" data-part="questions">
        <Stat label="questions answered" id="answered" value={count(spend.num_answered)} title="Questions that were answered, well or badly" />
        <Stat label="refused" id="refused" value={count(spend.num_refused)} title="Questions that the model or its filter would not answer" />
        <Stat label="broken answers" id="broken" value={count(spend.num_broken)} title="Answers that were not what was asked for" />
        <Stat label="rejected" id="rejected" value={count(spend.num_rejected)} title="Questions that the endpoint took for wrong" />
        <Stat label="without answer" id="failed" value={count(spend.num_failed)} title="Questions that were not answered, however often they were sent" />
      </dl>
    </>
  );
}

function OutcomeTiles({ job }: { job: Interpretation }) {
  const rows: [string, number][] = job.explained
    ? [["labelled", job.explained.num_labelled], ["label kept", job.explained.num_kept], ["too few examples", job.explained.num_too_few], ["no usable answer", job.explained.num_unlabelled], ["not come to", job.explained.num_left]]
    : job.scored
      ? [["scored", job.scored.num_scored], ["no label", job.scored.num_unlabelled], ["too few examples", job.scored.num_too_few], ["no usable answer", job.scored.num_unanswered], ["not come to", job.scored.num_left]]
      : [];
  if (rows.length === 0) return null;
  return <dl class="stats" data-part="outcome">{rows.map(([label, value]) => <Stat key={label} label={label} id={label.replace(/ /g, "-")} value={count(value)} />)}</dl>;
}

/** Asks for the same again with a budget of its own. */
function GoOn({ path, job, onProblem }: { path: string; job: Interpretation; onProblem: (problem: ApiError | null) => void }) {
  const scope = scopeOf(job);
  const [maxCalls, setMaxCalls] = useState(`${scope.max_calls}`);
  const [maxTokens, setMaxTokens] = useState(scope.max_tokens > 0 ? `${scope.max_tokens}` : "");
  const [isBusy, setBusy] = useState(false);
  const isHere = useIsHere();
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const started = await post<{ id: string }>(`${path}/resume`, { max_calls: Number(maxCalls), max_tokens: Number(maxTokens) });
      onProblem(null);
      if (isHere()) navigate(`/interpretation/${encodeURIComponent(started.id)}`);
    } catch (error) {
      onProblem(toApiError(error));
    }
    setBusy(false);
  };
  return (
    <form class="card create job-again" aria-label="Go on" onSubmit={(event) => void submit(event)}>
      <label class="field short"><span>Most calls</span><input type="number" required min={1} max={10000000} value={maxCalls} onInput={(event) => setMaxCalls(event.currentTarget.value)} /></label>
      <label class="field short"><span>Most tokens</span><input type="number" min={1} placeholder={scope.max_tokens > 0 ? "as before" : "no limit"} value={maxTokens} onInput={(event) => setMaxTokens(event.currentTarget.value)} /></label>
      <button type="submit" class="button" disabled={isBusy}>{isBusy ? "Asking…" : numLeft(job) > 0 ? "Go on" : "Run again"}</button>
      <p class="note grow">The same features with a budget of their own, as a new job. Answers that are there are found again and cost nothing.</p>
    </form>
  );
}
