/** Labels beside the nodes of a drawing, as many as find room. */
import { originOf } from "../ui/origin";
import type { Geometry } from "./geometry";
import type { GraphNode } from "./model";
import { shorten, type Palette } from "./paint";

const SANS = '"Inter Variable", system-ui, sans-serif';
const LONGEST_PX = 120;
const HEIGHT_PX = 13;
const GAP_PX = 4;

/** A box in pixels: left, top, right, bottom. */
export type Box = [number, number, number, number];

export function overlaps(one: Box, other: Box): boolean {
  return one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3];
}

/**
 * Writes labels of nodes, the first ones first; one that would lie over another is left out.
 *
 * A person's label has the accent's colour, a model's is grey, and an imported one slants.
 */
export function paintLabels(ctx: CanvasRenderingContext2D, geometry: Geometry, palette: Palette, nodes: GraphNode[], limit: number): void {
  const taken: Box[] = [];
  ctx.globalAlpha = 1;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3;
  ctx.strokeStyle = palette.surface;
  for (const node of nodes) {
    if (taken.length >= limit) return;
    if (!node.stands) continue;
    const { kind } = originOf(node.stands);
    ctx.font = `${kind === "imported" ? "italic " : ""}500 10.5px ${SANS}`;
    const text = shorten(ctx, node.label, LONGEST_PX);
    const width = ctx.measureText(text).width;
    const x = geometry.px[node.index]!;
    const y = geometry.py[node.index]!;
    const gap = geometry.radius[node.index]! + GAP_PX;
    // At the right edge it stands before its node.
    const left = x + gap + width > geometry.width ? x - gap - width : x + gap;
    const box: Box = [left, y - HEIGHT_PX / 2, left + width, y + HEIGHT_PX / 2];
    if (taken.some((other) => overlaps(box, other))) continue;
    taken.push(box);
    ctx.strokeText(text, left, y);
    ctx.fillStyle = kind === "human" ? palette.accent : palette.muted;
    ctx.fillText(text, left, y);
  }
}
