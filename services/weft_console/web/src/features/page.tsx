/** One feature: what it stands for, where it is active, what it writes, what is like it, and the graphs that it stands in. */
import { useState } from "preact/hooks";
import { count, figure } from "../format";
import { idOf } from "../types";
import { useLoad } from "../ui/load";
import { NOTHING, writeLab } from "../lab/state";
import { Loading, PageHead, Problem, Stat, StateBadge } from "../ui/parts";
import { useTabName } from "../ui/tab-name";
import { CopyButton } from "./copy";
import { density } from "./density";
import { ExamplePart } from "./examples";
import { Histogram } from "./histogram";
import { LabelPart } from "./label";
import { GraphPart, RelationPart } from "./relations";
import { featurePath, searchPath, shortName, type FeatureDetails, type FeatureIndex, type FeatureStatistics, type Label, type WholeFeature } from "./types";
import { WritesPart } from "./writes";

export function FeaturePage({ transcoder, layer, index }: { transcoder: string; layer: number; index: number }) {
  const id = encodeURIComponent(transcoder);
  const { data, problem, reload } = useLoad<WholeFeature>(`/api/transcoders/${id}/features/${layer}-${index}`);
  const indexed = useLoad<{ index: FeatureIndex | null }>(`/api/features/${id}/index`);
  const [wantsDetails, setWantsDetails] = useState(false);
  const details = useLoad<FeatureDetails>(wantsDetails ? `/api/features/${id}/${layer}-${index}/details` : null);
  const [label, setLabel] = useState<Label | null>(null);
  const onDetails = () => setWantsDetails(true);
  const name = shortName(layer, index);
  useTabName(`${name}${label ? ` ${label.text}` : ""} · ${transcoder}`);
  const home = <>a feature of <a href={searchPath(transcoder)}>{transcoder}</a></>;
  if (problem) return <div class="page"><PageHead title={name} note={home} /><Problem problem={problem} onRetry={reload} /></div>;
  if (!data) return <Loading what="the feature" />;
  const found = indexed.data?.index ?? null;
  const { statistics } = data;
  const most = Math.max(statistics?.max_activation ?? 0, ...data.examples.map((example) => example.peak), 1e-12);
  const last = (found?.num_features[layer] ?? index + 1) - 1;
  return (
    <div class="page feature-page">
      <PageHead
        title={<><span class="nowrap">{name}</span>{label ? <span class="feature-title label-text">{label.text}</span> : null}</>}
        note={<>{home}{found ? <> · figures over {count(found.num_tokens)} tokens of <a href={`/datasets/${encodeURIComponent(idOf(found.dataset))}`}>{idOf(found.dataset)}</a></> : null}</>}>
        <div class="row">
          <a class="button small" href={labPath(transcoder, data)} title="Its strongest stretch, or any other text: see what else fires there, and what the model says without it">Try in the lab</a>
          {statistics ? <a class="button small" href={`/interpretation?${new URLSearchParams({ transcoder, features: `${layer}-${index}` })}`}>Label by a model</a> : null}
          <CopyButton name="Copy link" text={() => location.href} />
          <nav class="row" aria-label="Neighbouring features">
            {index > 0 ? <a class="button small" rel="prev" title={`Feature ${shortName(layer, index - 1)}`} href={featurePath(transcoder, layer, index - 1)}>← {index - 1}</a> : null}
            {index < last ? <a class="button small" rel="next" title={`Feature ${shortName(layer, index + 1)}`} href={featurePath(transcoder, layer, index + 1)}>{index + 1} →</a> : null}
          </nav>
        </div>
      </PageHead>
      {indexed.problem ? <Problem problem={indexed.problem} onRetry={indexed.reload} /> : null}
      {statistics ? <Figures statistics={statistics} feature={data} /> : <NoIndex transcoder={transcoder} />}
      <LabelPart transcoder={transcoder} layer={layer} index={index} onLabel={setLabel} />
      {statistics ? <ExamplePart examples={data.examples} most={most} index={found} details={details} onDetails={onDetails} /> : null}
      <div class="charts">
        <WritesPart feature={data} details={details} onDetails={onDetails} />
        {statistics && found ? <Histogram counts={statistics.histogram} edges={found.histogram_edges} /> : null}
      </div>
      {statistics ? <RelationPart transcoder={transcoder} feature={data} index={found} /> : null}
      <GraphPart transcoder={transcoder} layer={layer} index={index} />
    </div>
  );
}

/** The lab with the stretch where it is strongest, and the feature pinned. */
function labPath(transcoder: string, { layer, index, examples }: WholeFeature): string {
  const prompt = examples[0]?.tokens.join("") ?? "";
  return `/lab${writeLab({ ...NOTHING, transcoder, prompt, pins: [{ layer, index, change: null, positions: [] }] })}`;
}

function Figures({ statistics, feature }: { statistics: FeatureStatistics; feature: WholeFeature }) {
  return (
    <dl class="stats tiles">
      <Stat label="density" id="density" value={density(statistics.density)} title={`Share of tokens on which it is active: ${count(statistics.num_active)} tokens`} />
      <div class="stat"><dt>kind</dt><dd data-stat="state"><StateBadge state={statistics.state} /></dd></div>
      <Stat label="largest activation" id="largest" value={figure(statistics.max_activation)} />
      <Stat label="mean activation" value={figure(statistics.mean_activation)} title="Where it is active" />
      <Stat label="decoder norm" value={figure(statistics.decoder_norm)} title="Of its decoders of all target layers together, in the residual stream's units for one unit of activation" />
      <Stat label="writes to" value={statistics.first_layer === statistics.last_layer ? `layer ${statistics.first_layer}` : `layers ${statistics.first_layer}–${statistics.last_layer}`} title="Layers where its decoder has at least a hundredth of its largest norm" />
      <Stat label="encoder bias" value={figure(feature.encoder_bias)} />
      <Stat label="threshold" value={feature.threshold === null ? "–" : figure(feature.threshold)} />
    </dl>
  );
}

/** What a person does about a transcoder that has no index. */
export function NoIndex({ transcoder }: { transcoder: string }) {
  return (
    <div class="empty">
      <h2>No index yet</h2>
      <p>Nobody has gone over a dataset with {transcoder} yet, so it is not known where its features are active. Make an index with <code>weft features index {transcoder} --dataset …</code>, or ask <code>FeatureService.IndexFeatures</code>.</p>
    </div>
  );
}
