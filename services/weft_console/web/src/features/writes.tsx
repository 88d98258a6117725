/** What a feature does to logits, through all layers or one, and where in the network it writes. */
import { useState } from "preact/hooks";
import { figure, signed } from "../format";
import { showToken } from "../ui/token-text";
import type { FeatureLogit } from "../types";
import { LayerBars } from "../ui/layer-bars";
import type { Loaded } from "../ui/load";
import { Problem } from "../ui/parts";
import type { FeatureDetails, WholeFeature } from "./types";

export function WritesPart(props: { feature: WholeFeature; details: Loaded<FeatureDetails>; onDetails: () => void }) {
  const { feature, details } = props;
  const [target, setTarget] = useState<number | null>(null);
  const last = feature.layer + feature.decoder_norms.length - 1;
  const through = target === null ? feature : details.data?.target_logits.find((one) => one.layer === target) ?? null;
  const choose = (value: string) => {
    setTarget(value === "" ? null : Number(value));
    if (value !== "") props.onDetails();
  };
  return (
    <>
      <section class="card" aria-labelledby="writes" data-part="logits">
        <div class="card-head">
          <h2 id="writes">What it writes</h2>
          <label class="field-inline">through
            <select value={target === null ? "" : String(target)} onChange={(event) => choose(event.currentTarget.value)}>
              <option value="">all layers</option>
              {feature.decoder_norms.map((_, at) => <option key={at} value={String(feature.layer + at)}>layer {feature.layer + at}</option>)}
            </select>
          </label>
        </div>
        <p class="note">Direct effect of one unit of activation on logits, through the unembedding alone.</p>
        {details.problem && target !== null ? <Problem problem={details.problem} onRetry={details.reload} /> : null}
        {through ? (
          <div class="logit-columns">
            <LogitBars name="Raises" logits={through.top_logits} />
            <LogitBars name="Lowers" logits={through.bottom_logits} />
          </div>
        ) : details.problem ? null : <p class="note" role="status">Working out logits by layer…</p>}
      </section>
      <LayerBars title="Where it writes" note={feature.decoder_norms.length === 1 ? `its own layer, ${feature.layer}` : `layers ${feature.layer} to ${last}`}
        series={[{ name: "decoder norm", values: feature.decoder_norms }]}
        slotName={(at, isTick) => (isTick ? `${feature.layer + at}` : `layer ${feature.layer + at}`)} />
    </>
  );
}

function LogitBars({ name, logits }: { name: string; logits: FeatureLogit[] }) {
  const most = Math.max(...logits.map((logit) => Math.abs(logit.weight)), 1e-12);
  const kind = name === "Raises" ? "is-positive" : "is-negative";
  return (
    <table class="compact logit-bars">
      <caption>{name}</caption>
      <thead class="visually-hidden"><tr><th scope="col">Token</th><th scope="col">Logit per unit of activation</th></tr></thead>
      <tbody>
        {logits.map((logit) => (
          <tr key={logit.token_id}>
            <th scope="row" class="mono" title={`token ${logit.token_id}`}>{showToken(logit.text)}</th>
            <td title={figure(logit.weight)}><i class={kind} style={{ width: `${(52 * Math.abs(logit.weight)) / most}%` }} /><span>{signed(logit.weight)}</span></td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
