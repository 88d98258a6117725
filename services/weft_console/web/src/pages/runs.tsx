import { ago, count, percent } from "../format";
import { idOf, type Run } from "../types";
import { useLoad } from "../ui/load";
import { Empty, Loading, PageHead, Problem, ProgressBar, StateBadge } from "../ui/parts";

export function RunsPage() {
  const { data, problem, reload } = useLoad<{ runs: Run[] }>("/api/runs");
  return (
    <div class="page">
      <PageHead title="Runs" note="Transcoders in training, and those that were trained." />
      {problem ? <Problem problem={problem} onRetry={reload} /> : null}
      {!data && !problem ? <Loading what="runs" /> : null}
      {data?.runs.length === 0 ? <Empty title="No runs yet">Start one with <code>weft runs create --dataset …</code>; it shows up here and can be watched live.</Empty> : null}
      {data && data.runs.length > 0 ? (
        <div class="scroll">
          <table class="table">
            <thead><tr><th>Run</th><th>State</th><th>Progress</th><th class="num">Loss</th><th class="num">Explained variance, held out</th><th class="num">L0</th><th class="num">Dead</th><th class="num">Tokens/s</th><th>Made</th></tr></thead>
            <tbody>
              {data.runs.map((run) => (
                <tr key={run.name}>
                  <td class="main-cell"><a href={`/runs/${encodeURIComponent(idOf(run.name))}`}>{idOf(run.name)}</a><small>{count(run.spec?.num_features ?? 0)} features a layer · {idOf(run.spec?.dataset ?? "")}</small></td>
                  <td title={run.error_message}><StateBadge state={run.state} /></td>
                  <td class="progress-cell"><ProgressBar done={run.step} total={run.spec?.num_steps ?? 0} label="Steps done" /><small>{count(run.step)} of {count(run.spec?.num_steps ?? 0)}</small></td>
                  <td class="num">{run.metrics ? run.metrics.loss.toFixed(4) : "–"}</td>
                  <td class="num">{run.evaluation ? run.evaluation.explained_variance.toFixed(3) : "–"}</td>
                  <td class="num">{run.metrics ? run.metrics.l0.toFixed(1) : "–"}</td>
                  <td class="num">{run.metrics ? percent(run.metrics.dead_share) : "–"}</td>
                  <td class="num">{run.metrics ? count(run.metrics.tokens_per_s) : "–"}</td>
                  <td class="nowrap">{ago(run.create_time)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : null}
    </div>
  );
}
