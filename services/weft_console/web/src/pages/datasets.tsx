import { ago, bytes, count } from "../format";
import { idOf, type Dataset } from "../types";
import { useLoad } from "../ui/load";
import { Empty, Loading, PageHead, Problem, StateBadge } from "../ui/parts";

export function DatasetsPage() {
  const { data, problem, reload } = useLoad<{ datasets: Dataset[] }>("/api/datasets");
  return (
    <div class="page">
      <PageHead title="Datasets" note="Compressed activations that transcoders are trained on." />
      {problem ? <Problem problem={problem} onRetry={reload} /> : null}
      {!data && !problem ? <Loading what="datasets" /> : null}
      {data?.datasets.length === 0 ? <Empty title="No datasets yet">Harvest one with <code>weft harvests create --model … --corpus …</code>.</Empty> : null}
      {data && data.datasets.length > 0 ? (
        <div class="scroll">
          <table class="table">
            <thead><tr><th>Dataset</th><th>State</th><th class="num">Training tokens</th><th class="num">Held-out tokens</th><th class="num">Size</th><th class="num">Bytes a token</th><th>Codec</th><th>Made</th></tr></thead>
            <tbody>
              {data.datasets.map((one) => {
                const tokens = one.num_train_tokens + one.num_held_out_tokens;
                return (
                  <tr key={one.name}>
                    <td class="main-cell"><a href={`/datasets/${encodeURIComponent(idOf(one.name))}`}>{idOf(one.name)}</a><small>{idOf(one.spec?.model ?? "")}</small></td>
                    <td><StateBadge state={one.state} /></td>
                    <td class="num">{count(one.num_train_tokens)}</td>
                    <td class="num">{count(one.num_held_out_tokens)}</td>
                    <td class="num">{bytes(one.size_bytes)}</td>
                    <td class="num">{tokens > 0 ? bytes(one.size_bytes / tokens) : "–"}</td>
                    <td>{one.spec?.codec}{one.spec && one.spec.codec !== "bf16" ? ` · FVU ${one.spec.target_fvu}` : ""}</td>
                    <td class="nowrap">{ago(one.create_time)}</td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      ) : null}
    </div>
  );
}
