/** One transcoder: how good it is on text that it was not trained on, where it comes from, and the indexes of its features. */
import { ago, bytes, count, figure, percent } from "../format";
import { EvaluationCharts, ReplacementPart } from "../pages/evaluation";
import { idOf, type Run, type Transcoder } from "../types";
import { LayerBars } from "../ui/layer-bars";
import { useLoad } from "../ui/load";
import { Empty, Loading, PageHead, Problem, Stat } from "../ui/parts";
import { mean, numParameters } from "./figures";
import { Indexes } from "./indexes";
import type { IndexesAnswer } from "./types";

export function TranscoderPage({ id }: { id: string }) {
  const path = `/api/transcoders/${encodeURIComponent(id)}`;
  const { data, problem, reload } = useLoad<Transcoder>(path);
  const indexes = useLoad<IndexesAnswer>(data ? `${path}/indexes` : null);
  if (problem) return <div class="page"><PageHead title={id} note={<a href="/transcoders">All transcoders</a>} /><Problem problem={problem} onRetry={reload} /></div>;
  if (!data) return <Loading what="the transcoder" />;
  const evaluation = data.evaluation;
  const replacement = evaluation?.replacement ?? null;
  const hasIndex = (indexes.data?.indexes.length ?? 0) > 0;
  const writes = data.window === 1 ? "to its own layer" : data.window > 1 ? `to ${data.window} layers, its own the first` : "to all layers from its own on";
  return (
    <div class="page">
      <PageHead title={id} note={<>{count(data.num_layers)} layers × {count(data.num_features)} features of {idOf(data.model)}, {data.activation.replace(/_/g, " ")} · made {ago(data.create_time)}</>}>
        <div class="row">
          {hasIndex ? <a class="button primary" href={`/transcoders/${encodeURIComponent(id)}/features`}>Find features</a> : null}
          {hasIndex ? <a class="button" href={`/interpretation?${new URLSearchParams({ transcoder: id })}`}>Label features</a> : null}
        </div>
      </PageHead>
      {evaluation ? (
        <>
          <dl class="stats tiles" data-part="evaluation">
            <Stat label="explained variance" id="explained-variance" value={evaluation.explained_variance.toFixed(4)} title="On tokens that it was not trained on, mean over layers" />
            <Stat label="FVU" id="fvu" value={figure(1 - evaluation.explained_variance)} title="Fraction of variance unexplained, mean over layers" />
            <Stat label="L0 a layer" id="l0" value={evaluation.l0_by_layer.length > 0 ? figure(mean(evaluation.l0_by_layer)) : "–"} title="Features active on a token, mean over layers" />
            <Stat label="dead features" id="dead" value={percent(evaluation.silent_share)} title="Never active on the held-out tokens" />
            <Stat label="dense features" value={percent(evaluation.dense_share)} />
            <Stat label="recovered" id="recovered" value={replacement?.all?.recovered == null ? "–" : percent(replacement.all.recovered)} title="Of the cross-entropy that zeros in place of all MLPs lose" />
            <Stat label="top-1 agreement" value={replacement?.all ? percent(replacement.all.top1_agreement) : "–"} title="Tokens on which the replacement model and the model agree" />
            <Stat label="held-out tokens" value={count(evaluation.tokens)} />
          </dl>
          <div class="charts">
            {evaluation.explained_variance_by_layer.length > 0 ? <LayerBars title="Fraction of variance unexplained by layer" series={[{ name: "FVU", values: evaluation.explained_variance_by_layer.map((value) => 1 - value) }]} note={`${count(evaluation.tokens)} held-out tokens`} /> : null}
            <EvaluationCharts evaluation={evaluation} history={[]} />
          </div>
          {replacement ? <ReplacementPart replacement={replacement} step={evaluation.step} /> : null}
        </>
      ) : (
        <Empty title="Nobody has measured it">Its manifest holds no evaluation, as of most that are imported. <code>weft runs evaluate</code> measures a checkpoint before it is exported.</Empty>
      )}
      <Indexes transcoder={data} indexes={indexes} />
      <h2>Where it comes from</h2>
      <dl class="facts" data-part="origin">
        <dt>Run</dt><dd>{data.run ? <a href={`/runs/${encodeURIComponent(idOf(data.run))}`}>{idOf(data.run)}</a> : "imported"}</dd>
        <dt>Dataset</dt><dd>{data.dataset ? <a href={`/datasets/${encodeURIComponent(idOf(data.dataset))}`}>{idOf(data.dataset)}</a> : "not known"}</dd>
        <dt>Model</dt><dd>{idOf(data.model)}{data.model_revision ? <>, revision <span class="mono">{data.model_revision}</span></> : null}</dd>
        <dt>Reads</dt><dd><span class="mono">{data.input_hook}</span>, and predicts <span class="mono">{data.output_hook}</span>; a feature writes {writes}</dd>
        <dt>Size</dt><dd>{bytes(data.size_bytes)}, {count(numParameters(data))} parameters, width {count(data.d_model)}</dd>
        <dt>Files</dt><dd class="mono">{data.prefix || "–"}</dd>
      </dl>
      {data.run ? <Recipe run={data.run} /> : null}
    </div>
  );
}

/** How it was trained, as far as its run is still there. */
function Recipe({ run }: { run: string }) {
  const { data, problem, reload } = useLoad<Run>(`/api/runs/${encodeURIComponent(idOf(run))}`);
  if (problem) return problem.status === 404 ? <p class="note">Its run is no longer there, and its recipe with it.</p> : <Problem problem={problem} onRetry={reload} />;
  if (!data?.spec) return null;
  // Settings as they are in TrainingSpec; what is 0, empty or off says nothing.
  const settings = Object.entries(data.spec as unknown as Record<string, unknown>).filter(([name, value]) => name !== "dataset" && typeof value !== "object" && value !== 0 && value !== "" && value !== "0" && value !== false && value !== "unspecified" && value !== null);
  return (
    <>
      <h2>Recipe</h2>
      <dl class="facts recipe" data-part="recipe">
        {settings.map(([name, value]) => [<dt key={name}>{name.replace(/_/g, " ")}</dt>, <dd key={`${name} value`}>{typeof value === "number" ? figure(value) : String(value).replace(/_/g, " ")}</dd>])}
      </dl>
    </>
  );
}
