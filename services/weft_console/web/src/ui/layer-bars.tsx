import { useState } from "preact/hooks";
import { figure } from "../format";
import { spanOf, ticks } from "./scale";

const WIDTH = 420;
const HEIGHT = 180;
const LEFT = 48;
const TOP = 8;
const BOTTOM = 22;

/** One bar a layer and series, side by side; `slotName` says what else a slot stands for. */
export function LayerBars(props: { title: string; series: { name: string; values: number[] }[]; note?: string; slotName?: (at: number, isTick: boolean) => string; every?: number }) {
  const slotName = props.slotName ?? ((at: number, isTick: boolean) => (isTick ? `${at}` : `layer ${at}`));
  const [layer, setLayer] = useState<number | null>(null);
  const numLayers = Math.max(...props.series.map((one) => one.values.length), 1);
  const values = props.series.flatMap((one) => one.values);
  const [low, high] = spanOf(values);
  const slot = (WIDTH - LEFT - 8) / numLayers;
  const width = (slot * 0.78) / props.series.length;
  const toY = (value: number) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (value - low)) / (high - low);
  return (
    <figure class="chart">
      <figcaption>
        <b>{props.title}</b>
        <span class="chart-legend">
          {props.series.map((one, i) => <span key={one.name}><i class={`swatch s${i}`} />{one.name}{layer === null ? "" : <b> {figure(one.values[layer] ?? 0)}</b>}</span>)}
          <span>{layer === null ? props.note : slotName(layer, false)}</span>
        </span>
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img"
        aria-label={`${props.title}: ${props.series.map((one) => `${one.name} ${one.values.map(figure).join(", ")}`).join("; ")}`}
        onPointerMove={(event) => {
          const box = event.currentTarget.getBoundingClientRect();
          const at = Math.floor((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / slot);
          setLayer(at >= 0 && at < numLayers ? at : null);
        }}
        onPointerLeave={() => setLayer(null)}>
        {ticks(low, high).map((value) => (
          <g key={value}><line class="grid" x1={LEFT} x2={WIDTH - 8} y1={toY(value)} y2={toY(value)} /><text x={LEFT - 6} y={toY(value) + 3.5} text-anchor="end">{figure(value)}</text></g>
        ))}
        {props.series.map((one, i) => (
          <g key={one.name} class={`columns s${i}`}>
            {one.values.map((value, at) => {
              const top = Math.min(toY(value), toY(0));
              return <rect key={at} class={at === layer ? "is-over" : ""} x={LEFT + at * slot + slot * 0.11 + i * width} y={top} width={width} height={Math.max(0.5, Math.abs(toY(value) - toY(0)))} />;
            })}
          </g>
        ))}
        {Array.from({ length: numLayers }, (_, at) => at).filter((at) => at % (props.every ?? Math.ceil(numLayers / 10)) === 0).map((at) => (
          <text key={at} x={LEFT + (at + 0.5) * slot} y={HEIGHT - 6} text-anchor="middle">{slotName(at, true)}</text>
        ))}
      </svg>
    </figure>
  );
}
