import { useState } from "preact/hooks";
import { count, figure } from "../format";
import { logTicks, thin, ticks } from "./scale";

export interface Series {
  name: string;
  points: [number, number][];
  dots?: boolean;
}

const WIDTH = 420;
const HEIGHT = 180;
const LEFT = 48;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 22;

/** Values over steps, with a line under the pointer that reads them off. */
export function LineChart(props: { title: string; series: Series[]; log?: boolean; format?: (value: number) => string }) {
  const [at, setAt] = useState<number | null>(null);
  const format = props.format ?? figure;
  const isLog = props.log === true;
  const usable = props.series.map((one) => ({ ...one, points: one.points.filter(([, y]) => Number.isFinite(y) && (!isLog || y > 0)) }));
  const all = usable.flatMap((one) => one.points);
  let lastStep = 1;
  let low = Infinity;
  let high = -Infinity;
  for (const [x, y] of all) {
    lastStep = Math.max(lastStep, x);
    low = Math.min(low, y);
    high = Math.max(high, y);
  }
  if (!isLog && low > 0 && low < high * 0.6) low = 0;
  if (low === high) {
    low = isLog ? low / 2 : low - Math.max(Math.abs(low) * 0.5, 0.5);
    high = isLog ? high * 2 : high + Math.max(Math.abs(high) * 0.5, 0.5);
  }
  const onLog = isLog ? logTicks(low, high) : [];
  const marks = onLog.length > 1 ? onLog : ticks(low, high);
  const toX = (step: number) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / lastStep;
  const toUnit = (value: number) => (isLog ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
  const toY = (value: number) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * toUnit(value);
  const readings = at === null ? [] : usable.map((one) => nearest(one.points, at));
  const step = readings.find((point) => point !== null)?.[0] ?? null;
  return (
    <figure class="chart">
      <figcaption>
        <b>{props.title}</b>
        <span class="chart-legend">
          {usable.map((one, i) => {
            const value = at === null ? one.points[one.points.length - 1] : readings[i];
            return <span key={one.name}><i class={`swatch s${i}`} />{one.name} <b>{value ? format(value[1]) : "–"}</b></span>;
          })}
          {step !== null ? <span>step {count(step)}</span> : null}
        </span>
      </figcaption>
      {all.length === 0 ? <p class="note chart-empty">No measurements yet.</p> : (
        <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${props.title} over ${count(lastStep)} steps`}
          onPointerMove={(event) => {
            const box = event.currentTarget.getBoundingClientRect();
            setAt((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * lastStep);
          }}
          onPointerLeave={() => setAt(null)}>
          {marks.map((value) => (
            <g key={value}><line class="grid" x1={LEFT} x2={WIDTH - RIGHT} y1={toY(value)} y2={toY(value)} /><text x={LEFT - 6} y={toY(value) + 3.5} text-anchor="end">{format(value)}</text></g>
          ))}
          {ticks(0, lastStep, 5).map((value) => <text key={value} x={toX(value)} y={HEIGHT - 6} text-anchor="middle">{count(value)}</text>)}
          {usable.map((one, i) => (
            <g key={one.name} class={`line s${i}`}>
              <polyline points={thin(one.points, 800).map(([x, y]) => `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" ")} />
              {one.dots ? one.points.map(([x, y]) => <circle key={x} cx={toX(x)} cy={toY(y)} r={3} />) : null}
            </g>
          ))}
          {step !== null ? <line class="rule" x1={toX(step)} x2={toX(step)} y1={TOP} y2={HEIGHT - BOTTOM} /> : null}
        </svg>
      )}
    </figure>
  );
}

function nearest(points: [number, number][], step: number): [number, number] | null {
  let best: [number, number] | null = null;
  for (const point of points) if (!best || Math.abs(point[0] - step) < Math.abs(best[0] - step)) best = point;
  return best;
}
