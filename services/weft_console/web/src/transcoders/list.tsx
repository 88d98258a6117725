/** Every transcoder, newest first, with how well it does on text that it was not trained on. */
import { ago, bytes, count, figure, percent } from "../format";
import { idOf, type Transcoder } from "../types";
import { useLoad } from "../ui/load";
import { useMore } from "../ui/more";
import { Empty, Loading, PageHead, Problem, ShowMore } from "../ui/parts";
import { mean } from "./figures";

interface Answer { transcoders: Transcoder[]; next_page_token: string }

export function TranscodersPage() {
  const first = useLoad<Answer>("/api/transcoders");
  const more = useMore(first.data, (token) => `/api/transcoders?page_token=${encodeURIComponent(token)}`);
  const transcoders = more.pages.flatMap((page) => page.transcoders);
  return (
    <div class="page">
      <PageHead title="Transcoders" note="What was trained or imported: how good it is, where it comes from, and what is known of its features." />
      {first.problem ? <Problem problem={first.problem} onRetry={first.reload} /> : null}
      {more.problem ? <Problem problem={more.problem} /> : null}
      {!first.data && !first.problem ? <Loading what="transcoders" /> : null}
      {first.data && transcoders.length === 0 ? <Empty title="No transcoders yet">Export one from a run with <code>weft transcoders create</code>, or take one over with <code>weft transcoders import</code>.</Empty> : null}
      {transcoders.length > 0 ? (
        <div class="scroll" role="region" aria-label="Transcoders, table" tabIndex={0}>
          <table class="table" data-list="transcoders">
            <thead>
              <tr><th scope="col">Transcoder</th><th scope="col" class="num">Layers</th><th scope="col" class="num">Features a layer</th><th scope="col">Activation</th><th scope="col" class="num">Explained variance</th><th scope="col" class="num">L0 a layer</th><th scope="col" class="num">Dead</th><th scope="col" class="num">Recovered</th><th scope="col" class="num">Size</th><th scope="col">From</th><th scope="col">Made</th></tr>
            </thead>
            <tbody>
              {transcoders.map((one) => {
                const evaluation = one.evaluation;
                const recovered = evaluation?.replacement?.all?.recovered ?? null;
                return (
                  <tr key={one.name}>
                    <td class="main-cell"><a href={`/transcoders/${encodeURIComponent(idOf(one.name))}`}>{idOf(one.name)}</a><small>{idOf(one.model)}</small></td>
                    <td class="num">{count(one.num_layers)}</td>
                    <td class="num">{count(one.num_features)}</td>
                    <td>{one.activation.replace(/_/g, " ") || "–"}</td>
                    <td class="num">{evaluation ? evaluation.explained_variance.toFixed(3) : "–"}</td>
                    <td class="num">{evaluation && evaluation.l0_by_layer.length > 0 ? figure(mean(evaluation.l0_by_layer)) : "–"}</td>
                    <td class="num">{evaluation ? percent(evaluation.silent_share) : "–"}</td>
                    <td class="num">{recovered === null ? "–" : percent(recovered)}</td>
                    <td class="num">{bytes(one.size_bytes)}</td>
                    <td>{one.run ? <a href={`/runs/${encodeURIComponent(idOf(one.run))}`}>{idOf(one.run)}</a> : "imported"}</td>
                    <td class="nowrap">{ago(one.create_time)}</td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      ) : null}
      <ShowMore more={more} />
    </div>
  );
}
