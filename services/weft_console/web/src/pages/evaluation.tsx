/** What was measured on data that a run has not seen: layer by layer, over time, and with the model's MLPs replaced. */
import { count, figure, percent } from "../format";
import type { Evaluation, Replacement, ReplacementScore } from "../types";
import { LayerBars } from "../ui/layer-bars";
import { LayerHeat } from "../ui/layer-heat";
import { Stat } from "../ui/parts";

/** Features in each bin, over all layers. */
export function densityCounts(evaluation: Evaluation): number[] {
  const numBins = Math.max(0, evaluation.density_edges_log10.length - 1);
  const counts = new Array<number>(numBins).fill(0);
  evaluation.density_counts_by_layer.forEach((value, i) => { counts[i % numBins] = (counts[i % numBins] ?? 0) + value; });
  return counts;
}

/** `0.01% to 0.018%`, or a tick at each power of ten. */
export function binName(edges: number[], bin: number, isTick: boolean): string {
  const low = edges[bin] ?? 0;
  if (isTick) return Number.isInteger(low) ? `1e${low}` : "";
  const share = (edge: number) => `${Number((100 * 10 ** edge).toPrecision(2))}%`;
  return `${share(low)} to ${share(edges[bin + 1] ?? low)} of tokens`;
}

export function EvaluationCharts({ evaluation, history }: { evaluation: Evaluation; history: Evaluation[] }) {
  const edges = evaluation.density_edges_log10;
  const columns = history.filter((one) => one.explained_variance_by_layer.length > 0);
  return (
    <>
      {evaluation.explained_variance_by_layer.length > 0 ? (
        <LayerBars title="Held-out explained variance by layer" series={[{ name: "explained variance", values: evaluation.explained_variance_by_layer }]} note={`step ${count(evaluation.step)}, ${count(evaluation.tokens)} tokens`} />
      ) : null}
      {columns.length > 1 ? <LayerHeat title="Held-out explained variance over time" columns={columns.map((one) => ({ step: one.step, values: one.explained_variance_by_layer }))} /> : null}
      {evaluation.l0_by_layer.length > 0 ? <LayerBars title="Held-out L0 by layer" series={[{ name: "L0", values: evaluation.l0_by_layer }]} /> : null}
      {evaluation.silent_share_by_layer.length > 0 ? (
        <LayerBars title="Silent and dense features by layer" series={[{ name: `silent ${percent(evaluation.silent_share)}`, values: evaluation.silent_share_by_layer }, { name: `dense ${percent(evaluation.dense_share)}`, values: evaluation.dense_share_by_layer }]} />
      ) : null}
      {edges.length > 1 ? <LayerBars title="Feature density" series={[{ name: "features", values: densityCounts(evaluation) }]} note="share of held-out tokens, log scale" slotName={(bin, isTick) => binName(edges, bin, isTick)} every={1} /> : null}
    </>
  );
}

export function ReplacementPart({ replacement, step }: { replacement: Replacement; step: number }) {
  const { all, by_layer: layers } = replacement;
  const values = (read: (score: ReplacementScore) => number | null) => layers.map((one) => read(one) ?? 0);
  return (
    <>
      <h2>Replacement model</h2>
      <p class="note">Reconstructions in place of the MLPs&rsquo; outputs at step {count(step)}, on held-out sequences. Recovered: the share of the cross-entropy that zeros in their place lose and reconstructions do not.</p>
      {all ? (
        <dl class="stats tiles" data-part="replacement">
          <Stat label="top-1, all layers" id="top-1" value={percent(all.top1_agreement)} />
          <Stat label="KL, all layers" value={`${figure(all.kl_divergence)} nats`} />
          <Stat label="recovered, all layers" id="recovered" value={all.recovered === null ? "–" : percent(all.recovered)} />
          <Stat label="cross-entropy, model" value={figure(replacement.cross_entropy)} />
          <Stat label="… replaced" value={figure(all.cross_entropy)} />
          <Stat label="… zeros" value={figure(all.ablated_cross_entropy)} />
          <Stat label="predictions" value={count(replacement.tokens)} />
          <Stat label="sequences" value={count(replacement.sequences)} />
        </dl>
      ) : null}
      <div class="charts">
        <LayerBars title="One layer replaced: top-1 agreement" series={[{ name: "agreement", values: values((one) => one.top1_agreement) }]} />
        <LayerBars title="One layer replaced: cross-entropy recovered" series={[{ name: "recovered", values: values((one) => one.recovered) }]} />
        <LayerBars title="One layer replaced: KL, nats" series={[{ name: "KL", values: values((one) => one.kl_divergence) }]} />
      </div>
    </>
  );
}
