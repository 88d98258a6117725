/** What is like a feature, and the graphs that it stands in. */
import { useState } from "preact/hooks";
import { get, type ApiError } from "../api";
import { ago, count, figure, percent } from "../format";
import { idOf } from "../types";
import { toApiError, useLoad } from "../ui/load";
import { Problem } from "../ui/parts";
import { featurePath, shortName, type FeatureGraphs, type FeatureIndex, type FeatureRow, type WholeFeature } from "./types";

const MOST = 20;

/** Neighbours by decoder and by co-activation, each a link, with what is known of it. */
export function RelationPart({ transcoder, feature, index }: { transcoder: string; feature: WholeFeature; index: FeatureIndex | null }) {
  const neighbours = feature.neighbours.slice(0, MOST);
  const partners = feature.partners.slice(0, MOST);
  const others = [...new Set([...neighbours, ...partners].map((other) => other.index))];
  const path = others.length > 0 ? `/api/features/${encodeURIComponent(transcoder)}/briefs?features=${others.map((other) => `${feature.layer}-${other}`).join(",")}` : null;
  const { data, problem, reload } = useLoad<{ features: FeatureRow[] }>(path);
  const known = new Map((data?.features ?? []).map((row) => [row.index, row]));
  return (
    <section class="card" aria-labelledby="relations" data-part="relations">
      <h2 id="relations">What is like it</h2>
      {problem ? <Problem problem={problem} onRetry={reload} /> : null}
      <div class="two-columns">
        <OtherTable caption="Writes nearly the same" note="by the cosine of summed decoders" figureName="Cosine" transcoder={transcoder} layer={feature.layer} known={known}
          rows={neighbours.map((one) => ({ index: one.index, value: one.cosine.toFixed(3).replace("-", "−"), title: figure(one.cosine) }))} />
        <OtherTable caption="Active on the same tokens" note={`by Jaccard${index ? `, on ${count(index.coactivation_tokens)} tokens` : ""}`} figureName="Share" transcoder={transcoder} layer={feature.layer} known={known}
          rows={partners.map((one) => ({ index: one.index, value: percent(one.share), title: `${count(one.count)} tokens on which both are active` }))} />
      </div>
    </section>
  );
}

function OtherTable(props: { caption: string; note: string; figureName: string; transcoder: string; layer: number; known: Map<number, FeatureRow>; rows: { index: number; value: string; title: string }[] }) {
  if (props.rows.length === 0) return <div><h3>{props.caption} <small>{props.note}</small></h3><p class="note">None in its layer.</p></div>;
  return (
    <table class="compact others">
      <caption><b>{props.caption}</b> {props.note}</caption>
      <thead><tr><th scope="col">Feature</th><th scope="col">Label</th><th scope="col">{props.figureName}</th></tr></thead>
      <tbody>
        {props.rows.map((row) => {
          const label = props.known.get(row.index)?.label ?? null;
          return (
            <tr key={row.index}>
              <th scope="row"><a href={featurePath(props.transcoder, props.layer, row.index)}>{shortName(props.layer, row.index)}</a></th>
              <td class="label-text" title={label?.text}>{label ? label.text : <span class="note">–</span>}</td>
              <td title={row.title}>{row.value}</td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

/** In how many of the graphs that were looked through it is; `hasMore` where older ones were not. */
export function foundIn(numFound: number, numRead: number, hasMore: boolean): string {
  if (numRead === 1) return `It is ${numFound === 0 ? "no" : "a"} node of the ${hasMore ? "newest" : "only"} graph`;
  return `It is a node of ${numFound === 0 ? "none" : count(numFound)} of the ${hasMore ? "newest " : ""}${count(numRead)} graphs`;
}

/** Graphs that it is a node of; the newest are looked through first. */
export function GraphPart({ transcoder, layer, index }: { transcoder: string; layer: number; index: number }) {
  const path = `/api/features/${encodeURIComponent(transcoder)}/${layer}-${index}/graphs`;
  const first = useLoad<FeatureGraphs>(path);
  const [more, setMore] = useState<FeatureGraphs[]>([]);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [isBusy, setBusy] = useState(false);
  const pages = first.data ? [first.data, ...more] : [];
  const graphs = pages.flatMap((page) => page.graphs);
  const numRead = pages.reduce((sum, page) => sum + page.num_read, 0);
  const next = pages[pages.length - 1]?.next_page_token ?? "";
  const lookOn = async () => {
    setBusy(true);
    try {
      const page = await get<FeatureGraphs>(`${path}?page_token=${encodeURIComponent(next)}`);
      // Only where it still follows what is there.
      setMore((before) => ((before[before.length - 1] ?? first.data)?.next_page_token === next ? [...before, page] : before));
      setProblem(null);
    } catch (error) {
      setProblem(toApiError(error));
    }
    setBusy(false);
  };
  return (
    <section class="card" aria-labelledby="graphs" data-part="graphs">
      <h2 id="graphs">Graphs with it</h2>
      {first.problem ? <Problem problem={first.problem} onRetry={first.reload} /> : null}
      {first.data ? (
        <>
          <p class="note">
            {numRead === 0 ? <>There are no finished graphs of this transcoder yet; make one on the <a href="/graphs">Graphs</a> page.</>
              : `${foundIn(graphs.length, numRead, next !== "")} of this transcoder, before pruning.`}
          </p>
          {graphs.length > 0 ? (
            <div class="scroll">
              <table class="compact graphs-with">
                <thead><tr><th scope="col">Prompt</th><th scope="col">Positions</th><th scope="col">Largest activation</th><th scope="col">Made</th></tr></thead>
                <tbody>
                  {graphs.map((graph) => {
                    const most = Math.max(...graph.activations);
                    const at = graph.positions[graph.activations.indexOf(most)];
                    return (
                      <tr key={graph.graph}>
                        <th scope="row"><a class="mono" title={graph.prompt} href={`/graphs/${encodeURIComponent(idOf(graph.graph))}#selected=${layer}_${index}_${at}`}>{graph.prompt}</a></th>
                        <td>{graph.positions.join(", ")}</td>
                        <td>{figure(most)}</td>
                        <td class="nowrap">{ago(graph.create_time)}</td>
                      </tr>
                    );
                  })}
                </tbody>
              </table>
            </div>
          ) : null}
          {problem ? <Problem problem={problem} /> : null}
          {next ? <button type="button" class="button small" disabled={isBusy} onClick={() => void lookOn()}>{isBusy ? "Looking…" : "Look through older graphs"}</button> : null}
        </>
      ) : first.problem ? null : <p class="note" role="status">Looking through graphs…</p>}
    </section>
  );
}
