import type { ComponentChildren } from "preact";
import { showUnseen } from "./token-text";

export interface HeatCell {
  text: string;
  /** From -1 to 1: the stronger the colour; below 0 in the other one. */
  heat: number;
  title: string;
}

/** A grid whose cells are coloured by what they hold; a table, so that it is read and scrolled without a pointer as well. */
export function HeatTable(props: { caption: string; corner: string; columns: string[]; rows: { name: string; cells: HeatCell[] }[]; note?: ComponentChildren }) {
  return (
    <figure class="chart">
      <figcaption><b>{props.caption}</b>{props.note ? <span class="chart-legend">{props.note}</span> : null}</figcaption>
      <div class="scroll" role="region" aria-label={`${props.caption}, table`} tabIndex={0}>
        <table class="heat-table">
          <thead>
            <tr><th scope="col">{props.corner}</th>{props.columns.map((name, at) => <th key={at} scope="col"><code>{visible(name)}</code></th>)}</tr>
          </thead>
          <tbody>
            {props.rows.map((row) => (
              <tr key={row.name}>
                <th scope="row"><code>{visible(row.name)}</code></th>
                {row.cells.map((cell, at) => (
                  <td key={at} class={cell.heat < 0 ? "is-negative" : ""} title={cell.title} style={{ "--heat": Math.round(100 * Math.min(1, Math.abs(cell.heat))) }}>{cell.text}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </figure>
  );
}

/** A token's text with spaces at its ends and line breaks as signs, which would not be seen. */
export function visible(text: string): string {
  return showUnseen(text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length))) || "∅";
}
