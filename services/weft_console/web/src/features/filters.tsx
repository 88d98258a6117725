/** What is looked for: words of labels or a token, figures, states, labels, and in which order. */
import type { TargetedInputEvent } from "preact";
import { useState } from "preact/hooks";
import { LABEL_STATES, isNumber, layersOf, numFilters, SCORES, SORTS, STATES, emptyQuery, type Bounded, type FeatureQuery } from "./query";

const SORT_NAMES: Record<string, string> = {
  layer: "layer", density: "density", max_activation: "largest activation", mean_activation: "mean activation",
  decoder_norm: "decoder norm", last_layer: "last layer written to", score: "score of the label",
};
const LABEL_NAMES: Record<string, string> = { labelled: "with a label", unlabelled: "without a label", human: "labelled by a person", model: "labelled by a model" };

export function Filters({ query, onChange }: { query: FeatureQuery; onChange: (part: Partial<FeatureQuery>) => void }) {
  const bound = (name: Bounded, at: 0 | 1, label: string) => (
    <input type="text" inputMode="decimal" aria-label={label} placeholder={at === 0 ? "least" : "most"} value={query.bounds[name][at]} aria-invalid={!isNumber(query.bounds[name][at])}
      onInput={(event: TargetedInputEvent<HTMLInputElement>) => {
        const written = event.currentTarget.value;
        onChange({ bounds: { ...query.bounds, [name]: at === 0 ? [written, query.bounds[name][1]] : [query.bounds[name][0], written] } });
      }} />
  );
  const bounds = (name: Bounded, title: string) => (
    <div class="field" role="group" aria-label={title}><span>{title}</span><div class="pair-of">{bound(name, 0, `Least ${title}`)}{bound(name, 1, `Most ${title}`)}</div></div>
  );
  const set = numFilters(query);
  // Open where a link sets filters; from then on the person opens and closes it.
  const [isOpen] = useState(set > 0);
  return (
    <form class="card filters" role="search" aria-label="Features" onSubmit={(event) => event.preventDefault()}>
      <div class="filters-first">
        <fieldset class="segments" role="radiogroup" aria-label="Search in">
          {(["label", "token"] as const).map((by) => (
            <label key={by}><input type="radio" name="by" checked={query.by === by} onChange={() => onChange({ by })} /><span>{by === "label" ? "Labels" : "Token"}</span></label>
          ))}
        </fieldset>
        <input type="search" class="grow" aria-label={query.by === "label" ? "Words of the label" : "Token that triggers it"} value={query.text} maxLength={query.by === "label" ? 500 : 100}
          placeholder={query.by === "label" ? "words that the label has, all of them" : "a token, such as Paris; with or without a space before it"} onInput={(event) => onChange({ text: event.currentTarget.value })} />
        <label class="field-inline">by
          <select aria-label="Order" value={query.sort} onChange={(event) => onChange({ sort: event.currentTarget.value })}>
            <option value="">{query.by === "token" && query.text ? "how often it triggers" : "layer and index"}</option>
            {SORTS.map((sort) => <option key={sort} value={sort}>{SORT_NAMES[sort]}</option>)}
          </select>
        </label>
        <button type="button" class="button" disabled={!query.sort} aria-label={query.falls ? "Falling; turn the order round" : "Rising; turn the order round"} onClick={() => onChange({ falls: !query.falls })}>{query.falls ? "↓" : "↑"}</button>
      </div>
      <details class="filters-more" open={isOpen}>
        <summary>Filters{set > 0 ? ` (${set})` : ""}</summary>
        <div class="filters-grid">
          <label class="field"><span>layers</span>
            <input type="text" value={query.layers} placeholder="0-3, 7" aria-invalid={layersOf(query.layers) === null} onInput={(event) => onChange({ layers: event.currentTarget.value })} />
          </label>
          {bounds("density", "density, % of tokens")}
          {bounds("max_activation", "largest activation")}
          {bounds("decoder_norm", "decoder norm")}
          <label class="field"><span>label</span>
            <select aria-label="Label state" value={query.labelState} onChange={(event) => onChange({ labelState: event.currentTarget.value })}>
              <option value="">any or none</option>
              {LABEL_STATES.map((state) => <option key={state} value={state}>{LABEL_NAMES[state]}</option>)}
            </select>
          </label>
          <label class="field"><span>kind of score</span>
            <select aria-label="Kind of score" value={query.scoreKind} onChange={(event) => onChange({ scoreKind: event.currentTarget.value })}>
              {SCORES.map((kind) => <option key={kind}>{kind}</option>)}
            </select>
          </label>
          {bounds("score", "score, 0 to 1")}
          <fieldset class="field checks"><legend>kind</legend>
            {STATES.map((state) => (
              <label key={state} class="check"><input type="checkbox" checked={query.states.includes(state)}
                onChange={() => onChange({ states: STATES.filter((one) => (one === state) !== query.states.includes(one)) })} />{state}</label>
            ))}
          </fieldset>
        </div>
        {set > 0 ? <button type="button" class="button small quiet" onClick={() => onChange({ ...emptyQuery(), by: query.by, text: query.text, sort: query.sort, falls: query.falls })}>Clear filters</button> : null}
      </details>
    </form>
  );
}
