/** How often a feature is how strong: tokens by activation, on a logarithmic scale both ways. */
import { useState } from "preact/hooks";
import { count, figure } from "../format";

/** The bins from the first to the last that hold anything. */
export function filledBins(counts: number[], edges: number[]): { low: number; high: number; count: number }[] {
  const first = counts.findIndex((number) => number > 0);
  if (first < 0) return [];
  let last = counts.length - 1;
  while (counts[last] === 0) last--;
  return counts.slice(first, last + 1).map((number, at) => ({ low: edges[first + at] ?? 0, high: edges[first + at + 1] ?? 0, count: number }));
}

export function Histogram({ counts, edges }: { counts: number[]; edges: number[] }) {
  const [over, setOver] = useState<number | null>(null);
  const bins = filledBins(counts, edges);
  const most = Math.log1p(Math.max(...bins.map((bin) => bin.count), 1));
  const bin = over === null ? undefined : bins[over];
  return (
    <figure class="chart">
      <figcaption>
        <b>How strong it is</b>
        <span class="chart-legend">{bin ? <span>{figure(bin.low)} to {figure(bin.high)}: <b>{count(bin.count)} tokens</b></span> : <span>tokens by activation, logarithmic</span>}</span>
      </figcaption>
      {bins.length === 0 ? <p class="note chart-empty">It was never active.</p> : (
        <>
          <div class="histogram" role="img" onPointerLeave={() => setOver(null)}
            aria-label={`Tokens by activation: ${bins.map((one) => `${figure(one.low)} to ${figure(one.high)}: ${count(one.count)}`).join("; ")}`}>
            {bins.map((one, at) => <i key={at} class={at === over ? "is-over" : ""} onPointerEnter={() => setOver(at)}><b style={{ height: `${(100 * Math.log1p(one.count)) / most}%` }} /></i>)}
          </div>
          <p class="axis"><span>{figure(bins[0]!.low)}</span><span>{figure(bins[bins.length - 1]!.high)}</span></p>
        </>
      )}
    </figure>
  );
}
