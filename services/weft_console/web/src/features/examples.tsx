/** Where a feature is active: its strongest stretches, those drawn by quantile, and stretches where it is quiet. */
import { useState } from "preact/hooks";
import { figure } from "../format";
import { Problem } from "../ui/parts";
import type { Loaded } from "../ui/load";
import { TokenLines } from "./tokens";
import type { FeatureDetails, FeatureExample, FeatureIndex } from "./types";

const FIRST = 8;
const GROUPS = ["strongest", "quantiles", "quiet"] as const;
const NAMES = { strongest: "Strongest", quantiles: "By quantile", quiet: "Quiet" };

export function ExamplePart(props: { examples: FeatureExample[]; most: number; index: FeatureIndex | null; details: Loaded<FeatureDetails>; onDetails: () => void }) {
  const [group, setGroup] = useState<(typeof GROUPS)[number]>("strongest");
  const [isWhole, setWhole] = useState(false);
  const strongest = props.examples.filter((example) => example.quantile < 0);
  const drawn = props.examples.filter((example) => example.quantile >= 0);
  return (
    <section class="card" aria-labelledby="examples" data-part="examples">
      <div class="card-head">
        <h2 id="examples">Where it is active</h2>
        <fieldset class="segments" role="radiogroup" aria-label="Examples">
          {GROUPS.map((name) => (
            <label key={name}>
              <input type="radio" name="examples" checked={group === name} onChange={() => { setGroup(name); if (name === "quiet") props.onDetails(); }} />
              <span>{NAMES[name]}</span>
            </label>
          ))}
        </fieldset>
      </div>
      {group === "strongest" ? (
        <>
          <TokenLines label="Strongest stretches" examples={isWhole ? strongest : strongest.slice(0, FIRST)} most={props.most} />
          {strongest.length === 0 ? <p class="note">It was never active on the text of the index.</p> : null}
          {!isWhole && strongest.length > FIRST ? <button type="button" class="button small" onClick={() => setWhole(true)}>Show all {strongest.length}</button> : null}
        </>
      ) : null}
      {group === "quantiles" ? (drawn.length === 0 ? <p class="note">No stretches were drawn: it was never active on the text of the index.</p> : <Quantiles drawn={drawn} most={props.most} count={props.index?.settings?.num_quantiles ?? null} />) : null}
      {group === "quiet" ? <Quiet details={props.details} most={props.most} /> : null}
    </section>
  );
}

function Quantiles({ drawn, most, count }: { drawn: FeatureExample[]; most: number; count: number | null }) {
  const quantiles = [...new Set(drawn.map((example) => example.quantile))];
  return (
    <>
      <p class="note">Drawn at random from all stretches where it is active, told apart by how strong they are.</p>
      {quantiles.map((quantile) => {
        const group = drawn.filter((example) => example.quantile === quantile);
        const peaks = group.map((example) => example.peak);
        const name = `Quantile ${quantile + 1}${count === null ? "" : ` of ${count}`}`;
        return (
          <div key={quantile} class="quantile">
            <h3>{name} <small>peaks {figure(Math.min(...peaks))} to {figure(Math.max(...peaks))}</small></h3>
            <TokenLines label={name} examples={group} most={most} />
          </div>
        );
      })}
    </>
  );
}

function Quiet({ details, most }: { details: Loaded<FeatureDetails>; most: number }) {
  if (details.problem) return <Problem problem={details.problem} onRetry={details.reload} />;
  if (!details.data) return <p class="note" role="status">Reading quiet stretches…</p>;
  const quiet = details.data.quiet_examples;
  if (quiet.length === 0) return <p class="note">There are none: it is active in nearly every stretch that was drawn.</p>;
  return (
    <>
      <p class="note">Drawn at random from stretches in which it is nowhere active: what it does not stand for.</p>
      <TokenLines label="Quiet stretches" examples={quiet} most={most} isQuiet />
    </>
  );
}
