/** Every job that explains or scores features: how far it is, and what it has cost. */
import { useEffect, useState } from "preact/hooks";
import { ago, count } from "../format";
import { navigate } from "../routes";
import { idOf } from "../types";
import { useLoad } from "../ui/load";
import { useMore } from "../ui/more";
import { Empty, Loading, PageHead, Problem, ProgressBar, ShowMore, StateBadge } from "../ui/parts";
import { StartForm } from "./form";
import { budgetLeft, isOver, NO_SPEND, retries, scopeOf, titleOf } from "./model";
import type { Interpretation, Interpreter } from "./types";

interface Answer { interpretations: Interpretation[]; next_page_token: string }

const LOOK_MS = 2500;

export function InterpretationsPage() {
  const transcoder = new URLSearchParams(location.search).get("transcoder") ?? "";
  const asked = new URLSearchParams(transcoder ? { transcoder } : {});
  const first = useLoad<Answer>(`/api/interpretations?${asked}`);
  const interpreter = useLoad<Interpreter>("/api/interpreter");
  // What was there stays on the page while it is asked for again.
  const [last, setLast] = useState<Answer | null>(null);
  useEffect(() => { if (first.data) setLast(first.data); }, [first.data]);
  const more = useMore(last, (token) => `/api/interpretations?${new URLSearchParams({ ...Object.fromEntries(asked), page_token: token })}`);
  // A job that is asked for meanwhile moves others from page to page.
  const jobs = [...new Map(more.pages.flatMap((page) => page.interpretations).map((job) => [job.operation, job])).values()];
  const isBusy = jobs.some((job) => !isOver(job.state));
  useEffect(() => {
    if (!isBusy) return undefined;
    const timer = window.setInterval(() => { if (!document.hidden) first.reload(); }, LOOK_MS);
    return () => window.clearInterval(timer);
  }, [isBusy, first.reload]);
  return (
    <div class="page">
      <PageHead title="Labels by a language model" note={interpreter.data?.is_set_up ? <>A model reads examples of features and says what they have in common; another round tests what it said. <b class="mono">{interpreter.data.model}</b> is asked.</> : "A model reads examples of features and says what they have in common; another round tests what it said."} />
      {interpreter.problem ? <Problem problem={interpreter.problem} onRetry={interpreter.reload} /> : null}
      {interpreter.data && !interpreter.data.is_set_up ? (
        <Empty title="No language model is set up">Set <code>WEFT_ATTRIBUTION_INTERPRETER_URL</code> and <code>WEFT_ATTRIBUTION_INTERPRETER_MODEL</code> of the attribution service to an endpoint that speaks OpenAI&rsquo;s protocol. Text of your corpora is sent there, so choose one that may read it.</Empty>
      ) : null}
      {interpreter.data?.is_set_up ? <StartForm interpreter={interpreter.data} onStarted={(id) => navigate(`/interpretation/${encodeURIComponent(id)}`)} /> : null}
      {more.problem ? <Problem problem={more.problem} /> : null}
      {first.problem ? <Problem problem={first.problem} onRetry={first.reload} /> : null}
      {!last && !first.problem ? <Loading what="jobs" /> : null}
      {transcoder ? <p class="note">Jobs of {transcoder} only. <a href="/interpretation">Show all</a></p> : null}
      {last && jobs.length === 0 && interpreter.data?.is_set_up ? <Empty title="No jobs yet">Choose features above and say what may be spent; labels show up feature by feature.</Empty> : null}
      {jobs.length > 0 ? (
        <div class="scroll" role="region" aria-label="Jobs, table" tabIndex={0}>
          <table class="table" data-list="jobs">
            <thead>
              <tr>
                <th scope="col">Job</th><th scope="col">State</th><th scope="col">Features</th><th scope="col" class="num">Calls</th><th scope="col" class="num">Tokens in</th><th scope="col" class="num">Tokens out</th>
                <th scope="col" class="num">Refused</th><th scope="col" class="num">Broken</th><th scope="col" class="num">Retries</th><th scope="col" class="num">Budget left</th><th scope="col">Asked for</th>
              </tr>
            </thead>
            <tbody>{jobs.map((job) => <JobRow key={job.operation} job={job} />)}</tbody>
          </table>
        </div>
      ) : null}
      <ShowMore more={more} />
    </div>
  );
}

function JobRow({ job }: { job: Interpretation }) {
  const spend = job.spend ?? NO_SPEND;
  const left = budgetLeft(job);
  const done = job.progress?.completed ?? 0;
  const total = job.progress?.total ?? 0;
  return (
    <tr>
      <td class="main-cell"><a href={`/interpretation/${encodeURIComponent(idOf(job.operation))}`}>{titleOf(job)}</a><small>{idOf(job.parent)} · {aboutScope(job)}</small></td>
      <td title={job.error_message}><StateBadge state={job.state} /></td>
      <td class="progress-cell"><ProgressBar done={done} total={total} label="Features done" /><small>{count(done)} of {count(total)}</small></td>
      <td class="num">{count(spend.calls)}</td>
      <td class="num">{count(spend.question_tokens)}</td>
      <td class="num">{count(spend.answer_tokens)}</td>
      <td class="num">{count(spend.num_refused)}</td>
      <td class="num">{count(spend.num_broken)}</td>
      <td class="num">{count(retries(spend))}</td>
      <td class="num">{count(left.calls)} calls{left.tokens === null ? null : <small>{count(left.tokens)} tokens</small>}</td>
      <td class="nowrap">{ago(job.create_time)}</td>
    </tr>
  );
}

/** Where its features come from, in a few words. */
export function aboutScope(job: Interpretation): string {
  const scope = scopeOf(job);
  const parts = [];
  if (scope.graphs.length > 0) parts.push(scope.graphs.length === 1 ? `of the graph ${idOf(scope.graphs[0]!)}` : `of ${scope.graphs.length} graphs`);
  if (job.num_named > 0) parts.push(`${count(job.num_named)} by name`);
  return parts.join(", ");
}
