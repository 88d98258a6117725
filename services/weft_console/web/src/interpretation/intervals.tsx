/** Scores with their intervals on one axis, shuffled labels beside, and where chance is. */
import { percent } from "../format";
import { CHANCE, isAtChance } from "./model";
import type { Pooled, Report } from "./types";

const WIDTH = 420;
const LEFT = 74;
const RIGHT = 12;
const ROW = 34;
const BOTTOM = 22;

const toX = (value: number) => LEFT + (WIDTH - LEFT - RIGHT) * value;

function Whisker(props: { score: Pooled; y: number; series: number }) {
  const { score, y } = props;
  return (
    <g class={`whisker s${props.series}`}>
      <line x1={toX(score.low)} x2={toX(score.high)} y1={y} y2={y} />
      <circle cx={toX(score.value)} cy={y} r={4} />
    </g>
  );
}

export function interval(score: Pooled): string {
  return `${score.value.toFixed(3)} (${score.low.toFixed(3)} to ${score.high.toFixed(3)})`;
}

export function Intervals({ reports }: { reports: Report[] }) {
  const pooled = reports.filter((report) => report.pooled);
  const hasControls = reports.some((report) => report.control);
  const height = ROW * pooled.length + BOTTOM;
  return (
    <>
      {pooled.length > 0 ? (
        <figure class="chart">
          <figcaption>
            <b>All decisions together</b>
            <span class="chart-legend"><span><i class="swatch s0" />labels</span>{hasControls ? <span><i class="swatch s1" />shuffled labels</span> : null}<span>balanced accuracy, 95% interval</span></span>
          </figcaption>
          <svg viewBox={`0 0 ${WIDTH} ${height}`} role="img" aria-label={pooled.map((report) => `${report.kind}: labels ${interval(report.pooled!)}${report.control ? `, shuffled labels ${interval(report.control)}` : ""}`).join("; ")}>
            {[0, 0.25, 0.5, 0.75, 1].map((value) => (
              <g key={value}><line class="grid" x1={toX(value)} x2={toX(value)} y1={0} y2={height - BOTTOM} /><text x={toX(value)} y={height - 7} text-anchor="middle">{value}</text></g>
            ))}
            <line class="rule" x1={toX(0.5)} x2={toX(0.5)} y1={0} y2={height - BOTTOM} />
            {pooled.map((report, row) => (
              <g key={report.kind}>
                <text x={LEFT - 8} y={ROW * (row + 0.5) + 3.5} text-anchor="end">{report.kind}</text>
                <Whisker score={report.pooled!} y={ROW * (row + (report.control ? 0.34 : 0.5))} series={0} />
                {report.control ? <Whisker score={report.control} y={ROW * (row + 0.68)} series={1} /> : null}
              </g>
            ))}
          </svg>
        </figure>
      ) : null}
      <div class="scroll" role="region" aria-label="Tests, table" tabIndex={0}>
        <table class="table" data-list="reports">
          <thead><tr><th scope="col">Test</th><th scope="col" class="num">Features</th><th scope="col" class="num">Mean score</th><th scope="col" class="num">All decisions, 95% interval</th><th scope="col" class="num">Decisions</th><th scope="col" class="num">Missing</th><th scope="col" class="num">Shuffled labels, 95% interval</th><th scope="col">Chance</th></tr></thead>
          <tbody>
            {reports.map((report) => (
              <tr key={report.kind}>
                <th scope="row">{report.kind}</th>
                <td class="num">{report.num_features}</td>
                <td class="num">{report.num_features > 0 ? report.mean.toFixed(3) : "–"}</td>
                <td class="num">{report.pooled ? interval(report.pooled) : "–"}</td>
                <td class="num">{report.pooled ? report.pooled.num_trials : "–"}</td>
                <td class="num">{report.pooled ? percent(report.pooled.num_unanswered / Math.max(1, report.pooled.num_trials + report.pooled.num_unanswered)) : "–"}</td>
                <td class="num">{report.control ? interval(report.control) : "–"}</td>
                <td>{CHANCE[report.kind]}{report.control ? (isAtChance(report.kind, report.control) ? "; shuffled labels are at chance" : report.control.value < CHANCE[report.kind] ? "; shuffled labels are below it" : "; shuffled labels are above it: so much comes of texts and model alone") : ""}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
