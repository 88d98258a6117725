import { useEffect, useMemo, useRef } from "preact/hooks";
import { figure, percent } from "../format";
import { visible } from "./heat-table";

/** A picture of values from 0 to 1, a column a frame, the first row at the bottom. */
function Strip(props: { values: number[][]; label: string }) {
  const place = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const canvas = place.current!;
    const ctx = canvas.getContext("2d")!;
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    ctx.fillStyle = getComputedStyle(canvas).color;
    props.values.forEach((row, at) => row.forEach((value, frame) => {
      ctx.globalAlpha = value;
      ctx.fillRect(frame, props.values.length - 1 - at, 1, 1);
    }));
  }, [props.values]);
  return <canvas ref={place} role="img" aria-label={props.label} width={props.values[0]?.length ?? 1} height={props.values.length} />;
}

/** What each row weighs of a recording's frames, below its spectrogram; the words behind a row say where it looks most. */
export function FrameMap(props: { caption: string; note: string; rows: { name: string; weights: number[] }[]; spectrogram: number[][]; frameS: number }) {
  const heard = useMemo(() => props.spectrogram.map((bin) => bin.map((value) => value / 255)), [props.spectrogram]);
  const rows = useMemo(() => props.rows.map(({ name, weights }) => {
    const most = weights.reduce((best, weight, at) => (weight > weights[best]! ? at : best), 0);
    return { name, most, weight: weights[most] ?? 0, values: [weights.map((weight) => weight / (weights[most] || 1))] };
  }), [props.rows]);
  const length = (props.spectrogram[0]?.length ?? 0) * props.frameS;
  return (
    <figure class="chart">
      <figcaption><b>{props.caption}</b><span class="chart-legend">{props.note}</span></figcaption>
      <div class="scroll" role="region" aria-label={`${props.caption}, table`} tabIndex={0}>
        <table class="heat-table frame-map">
          <thead><tr><th scope="col">token</th><th scope="col">0 to {figure(length)} s</th><th scope="col">most at</th></tr></thead>
          <tbody>
            <tr class="is-heard"><th scope="row">heard</th><td><Strip values={heard} label={`Spectrogram of ${figure(length)} seconds`} /></td><td /></tr>
            {rows.map((row) => (
              <tr key={row.name}>
                <th scope="row"><code>{visible(row.name)}</code></th>
                <td><Strip values={row.values} label={`Frames that ${row.name} looks at`} /></td>
                <td>{figure(row.most * props.frameS)} s, {percent(row.weight)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </figure>
  );
}
