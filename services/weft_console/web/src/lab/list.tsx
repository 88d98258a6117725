/** Every feature that fires, the strongest first, on one token or on all of them. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { count, figure, percent } from "../format";
import { showToken } from "../ui/token-text";
import { OriginMark } from "../ui/origin";
import { listed, type FiringFeature, type Grid } from "./firing";
import { pinKey } from "./state";

const STEP = 30;

interface Props {
  grid: Grid;
  tokens: string[];
  token: number | null;
  transcoder: string;
  pinned: ReadonlySet<string>;
  onPin: (place: { layer: number; index: number }) => void;
}

export function FiringList({ grid, tokens, token, transcoder, pinned, onPin }: Props) {
  const [words, setWords] = useState("");
  const [most, setMost] = useState(STEP);
  const rows = useMemo(() => listed(grid, token, words), [grid, token, words]);
  useEffect(() => setMost(STEP), [token, words]);
  return (
    <section class="card lab-list" aria-label="Features that fire" data-list="fires">
      <div class="row">
        <h2>Features <small class="note">{token === null ? "on any token" : <>at <span class="mono">{showToken(tokens[token] ?? "")}</span></>} · {count(rows.length)}</small></h2>
        <input type="text" class="lab-words" aria-label="Words of a label, or a feature's number" placeholder="Label or number" value={words} onInput={(event) => setWords(event.currentTarget.value)} />
      </div>
      {rows.length === 0 ? <p class="note">{words ? "No feature here has these words. Take some away." : "Nothing fires here. Choose another token or other layers."}</p> : (
        <div class="scroll" role="region" aria-label="Features that fire, table" tabIndex={0}>
          <table class="compact lab-rows">
            <thead><tr><th scope="col">Feature</th><th scope="col">Label</th><th scope="col">Over the text</th><th scope="col" class="num">Activation</th><th scope="col" class="num">{grid.isIndexed ? "of its largest" : "of the layer's"}</th></tr></thead>
            <tbody>
              {rows.slice(0, most).map(({ feature, activation, strength }) => (
                <tr key={pinKey(feature)}>
                  <th scope="row">
                    <button type="button" class="button small" aria-pressed={pinned.has(pinKey(feature))} aria-label={`${pinned.has(pinKey(feature)) ? "Unpin" : "Pin"} L${feature.layer} · ${feature.index}, ${feature.label?.text ?? "no label"}`} onClick={() => onPin(feature)}>L{feature.layer} · {feature.index}</button>
                  </th>
                  <td class="lab-label">
                    <a class={feature.label ? "" : "lab-none"} href={featurePath(transcoder, feature)}>{feature.label ? feature.label.text : "no label yet"}</a>
                    {feature.label ? <> <OriginMark label={feature.label} /></> : null}
                  </td>
                  <td><Strip feature={feature} size={tokens.length} /></td>
                  <td class="num">{figure(activation)}</td>
                  <td class="num">{percent(strength, 0)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {rows.length > most ? <button type="button" class="button small" onClick={() => setMost(most + 3 * STEP)}>Show more</button> : null}
    </section>
  );
}

/** The page of a feature. */
export function featurePath(transcoder: string, feature: { layer: number; index: number }): string {
  return `/transcoders/${encodeURIComponent(transcoder)}/features/${feature.layer}/${feature.index}`;
}

/** Activation along the text as a row of small bars; the numbers stand beside it. */
function Strip({ feature, size }: { feature: FiringFeature; size: number }) {
  const most = Math.max(...feature.activations, 1e-12);
  const at = new Map(feature.positions.map((position, i): [number, number] => [position, feature.activations[i]!]));
  return (
    <svg class="lab-strip" viewBox={`0 0 ${size} 10`} preserveAspectRatio="none" aria-hidden="true">
      {[...at].map(([position, value]) => <rect key={position} x={position + 0.1} width={0.8} y={10 - (10 * value) / most} height={(10 * value) / most} />)}
    </svg>
  );
}
