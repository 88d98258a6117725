import { ago, bytes, count, figure } from "../format";
import { idOf, type CompressionStats, type Dataset, type DatasetStats } from "../types";
import { LayerBars } from "../ui/layer-bars";
import { useLoad } from "../ui/load";
import { Loading, PageHead, Problem, Stat, StateBadge } from "../ui/parts";

const STREAMS = ["input", "output"] as const;

export function DatasetPage({ id }: { id: string }) {
  const path = `/api/datasets/${encodeURIComponent(id)}`;
  const { data, problem, reload } = useLoad<Dataset>(path);
  const stats = useLoad<DatasetStats>(data && data.num_shards > 0 ? `${path}/stats` : null);
  if (problem) return <div class="page"><Problem problem={problem} onRetry={reload} /></div>;
  if (!data) return <Loading what="the dataset" />;
  const spec = data.spec;
  const byStream = (value: (one: CompressionStats) => number) =>
    STREAMS.map((stream) => ({ name: stream, values: (stats.data?.stats ?? []).filter((one) => one.stream === stream).sort((a, b) => a.layer - b.layer).map(value) }));
  return (
    <div class="page">
      <PageHead title={id} note={<><StateBadge state={data.state} /> {spec?.input_hook} → {spec?.output_hook} of {idOf(spec?.model ?? "")}, {spec?.num_layers} layers × {spec?.d_model} · made {ago(data.create_time)}</>} />
      <dl class="stats tiles">
        <Stat label="training tokens" id="train-tokens" value={count(data.num_train_tokens)} />
        <Stat label="held-out tokens" value={count(data.num_held_out_tokens)} />
        <Stat label="size" value={bytes(data.size_bytes)} title={`${count(data.size_bytes)} bytes in ${data.num_shards} shards`} />
        <Stat label="shards" value={count(data.num_shards)} />
        <Stat label="bits a value" id="bits" value={stats.data ? stats.data.bits_per_value.toFixed(3) : "–"} />
        <Stat label="bytes a token" value={stats.data ? count(stats.data.bytes_per_token) : "–"} />
        <Stat label="largest FVU" value={stats.data ? figure(stats.data.fvu_max) : "–"} title="Fraction of variance unexplained by the stored values, worst layer and stream" />
        <Stat label="codec" value={spec && spec.codec !== "bf16" ? `${spec.codec}, ${spec.target_fvu}` : spec?.codec ?? "–"} />
      </dl>
      {stats.problem ? <Problem problem={stats.problem} onRetry={stats.reload} /> : null}
      {stats.data ? (
        <div class="charts">
          <LayerBars title="Fraction of variance unexplained by layer" series={byStream((one) => one.fvu)} note={spec && spec.codec !== "bf16" ? `asked for ${spec.target_fvu}` : ""} />
          <LayerBars title="Bits a value by layer" series={byStream((one) => one.bits_per_value)} note="as stored" />
          {spec && spec.codec !== "bf16" ? <LayerBars title="Entropy of the codes by layer" series={byStream((one) => one.entropy_bits)} note="bits a value" /> : null}
        </div>
      ) : null}
      <dl class="facts">
        <dt>Corpus</dt><dd class="mono">{spec?.corpus || "–"}</dd>
        <dt>Sealed</dt><dd>{data.seal_time ? new Date(data.seal_time).toLocaleString("en-GB") : "not yet"}</dd>
      </dl>
    </div>
  );
}
