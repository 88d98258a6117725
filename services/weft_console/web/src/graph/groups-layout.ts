/** Places a summary's groups: tokens and errors below, logits above, features between by the layers that they stand in. */
import type { Summary } from "../types";

export interface Box {
  index: number;
  x: number;
  y: number;
  width: number;
}

export const BOX_HEIGHT = 60;
const ROW_GAP = 46;
const BOX_GAP = 14;
const BOX_WIDTH = 176;
/** So narrow may groups of features be before a row takes fewer, and any group at all. */
const NARROW_BOX = 150;
const NARROWEST = 84;
const MARGIN = 14;

/** Rows from the logits at the top down to tokens and errors, each in the middle of the width. */
export function placeGroups(summary: Summary, width: number): { boxes: Box[]; height: number } {
  const room = Math.max(width - 2 * MARGIN, NARROWEST);
  const perRow = Math.max(1, Math.min(4, Math.floor((room + BOX_GAP) / (NARROW_BOX + BOX_GAP))));
  const of = (...kinds: string[]) => summary.supernodes.map((group, index) => ({ group, index })).filter(({ group }) => kinds.includes(group.kind));
  const features = of("features").sort((a, b) => b.group.first_layer + b.group.last_layer - a.group.first_layer - a.group.last_layer);
  const rows = [of("logits")];
  for (let at = 0; at < features.length; at += perRow) rows.push(features.slice(at, at + perRow));
  rows.push(of("others"));
  const ends = of("tokens", "errors");
  const perEnd = Math.max(1, Math.min(ends.length, Math.floor((room + BOX_GAP) / (NARROWEST + BOX_GAP))));
  for (let at = 0; at < ends.length; at += perEnd) rows.push(ends.slice(at, at + perEnd));
  const boxes: Box[] = [];
  let y = MARGIN;
  for (const row of rows) {
    if (row.length === 0) continue;
    const each = Math.min(BOX_WIDTH, (room - (row.length - 1) * BOX_GAP) / row.length);
    const left = (width - row.length * each - (row.length - 1) * BOX_GAP) / 2;
    row.forEach(({ index }, i) => boxes.push({ index, x: left + i * (each + BOX_GAP), y, width: each }));
    y += BOX_HEIGHT + ROW_GAP;
  }
  return { boxes: boxes.sort((a, b) => a.index - b.index), height: y - ROW_GAP + MARGIN };
}
