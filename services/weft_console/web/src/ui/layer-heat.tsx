import { useState } from "preact/hooks";
import { count, figure } from "../format";

const WIDTH = 420;
const HEIGHT = 180;
const LEFT = 48;
const TOP = 8;
const BOTTOM = 22;

/** A column an evaluation, a row a layer, the first at the bottom; the darker, the higher the value from 0 to 1. */
export function LayerHeat(props: { title: string; columns: { step: number; values: number[] }[] }) {
  const [cell, setCell] = useState<{ column: number; layer: number } | null>(null);
  const numLayers = Math.max(...props.columns.map((one) => one.values.length), 1);
  const width = (WIDTH - LEFT - 8) / props.columns.length;
  const height = (HEIGHT - TOP - BOTTOM) / numLayers;
  const toY = (layer: number) => HEIGHT - BOTTOM - (layer + 1) * height;
  const over = cell ? props.columns[cell.column] : undefined;
  const last = props.columns[props.columns.length - 1];
  return (
    <figure class="chart">
      <figcaption>
        <b>{props.title}</b>
        <span class="chart-legend">{over && cell ? <span>step {count(over.step)}, layer {cell.layer} <b>{figure(over.values[cell.layer] ?? 0)}</b></span> : <span>0 to 1, darker is more</span>}</span>
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img"
        aria-label={`${props.title}, ${count(props.columns.length)} evaluations; at step ${count(last?.step ?? 0)}: ${(last?.values ?? []).map(figure).join(", ")}`}
        onPointerMove={(event) => {
          const box = event.currentTarget.getBoundingClientRect();
          const column = Math.floor((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / width);
          const layer = Math.floor((HEIGHT - BOTTOM - ((event.clientY - box.top) / box.height) * HEIGHT) / height);
          setCell(column >= 0 && column < props.columns.length && layer >= 0 && layer < numLayers ? { column, layer } : null);
        }}
        onPointerLeave={() => setCell(null)}>
        {props.columns.map((one, column) => (
          <g key={one.step} class="heat">
            {one.values.map((value, layer) => <rect key={layer} class={cell?.column === column && cell.layer === layer ? "is-over" : ""} x={LEFT + column * width} y={toY(layer)} width={width} height={height} fill-opacity={Math.min(1, Math.max(0.03, value))} />)}
          </g>
        ))}
        {Array.from({ length: numLayers }, (_, layer) => layer).filter((layer) => layer % Math.ceil(numLayers / 6) === 0).map((layer) => (
          <text key={layer} x={LEFT - 6} y={toY(layer) + height / 2 + 3.5} text-anchor="end">{layer}</text>
        ))}
        {props.columns.map((one, column) => ({ step: one.step, column })).filter(({ column }) => column % Math.ceil(props.columns.length / 6) === 0).map(({ step, column }) => (
          <text key={step} x={LEFT + (column + 0.5) * width} y={HEIGHT - 6} text-anchor="middle">{count(step)}</text>
        ))}
      </svg>
    </figure>
  );
}
