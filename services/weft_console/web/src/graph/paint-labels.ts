/** Labels beside the nodes of a drawing, as many as find room. */
import { originOf } from "../ui/origin";
import { GUTTER_LEFT, type Geometry } from "./geometry";
import type { GraphNode } from "./model";
import { shorten, type Palette } from "./paint";
import { placeLabels, type Box } from "./place-labels";

const SANS = '"Inter Variable", system-ui, sans-serif';
const LONGEST_PX = 132;
const HEIGHT_PX = 13;
const GAP_PX = 4;
const MARGIN_PX = 3;

export interface LabelRoom {
  /** Most labels. */
  limit: number;
  /** Most nodes that one of them may lie over. */
  mostCovered: number;
  /** What else is written there. */
  taken: Box[];
}

/**
 * Writes labels of nodes, the first ones first; one that finds no room is left out, and is there again closer by.
 *
 * A person's label has the accent's colour, a model's is grey, and an imported one slants. `drawn` are all nodes that are drawn.
 */
export function paintLabels(ctx: CanvasRenderingContext2D, geometry: Geometry, palette: Palette, nodes: GraphNode[], drawn: ArrayLike<number>, room: LabelRoom): void {
  ctx.globalAlpha = 1;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3;
  ctx.lineJoin = "round";
  ctx.strokeStyle = palette.surface;
  const texts = nodes.flatMap((node) => {
    if (!node.stands) return [];
    const { kind } = originOf(node.stands);
    const font = `${kind === "imported" ? "italic " : ""}500 10.5px ${SANS}`;
    ctx.font = font;
    const text = shorten(ctx, node.label, LONGEST_PX);
    return [{ text, font, color: kind === "human" ? palette.accent : palette.muted, mark: node.index, width: ctx.measureText(text).width }];
  });
  const boxes = placeLabels(texts, { x: geometry.px, y: geometry.py, radius: geometry.radius }, drawn, room.taken, {
    bounds: [GUTTER_LEFT - 4, 0, geometry.width - 2, geometry.plotBottom], height: HEIGHT_PX, gap: GAP_PX, margin: MARGIN_PX,
    mostCovered: room.mostCovered, limit: room.limit,
  });
  texts.forEach(({ text, font, color }, at) => {
    const box = boxes[at];
    if (!box) return;
    ctx.font = font;
    ctx.strokeText(text, box[0], box[1] + HEIGHT_PX / 2);
    ctx.fillStyle = color;
    ctx.fillText(text, box[0], box[1] + HEIGHT_PX / 2);
  });
}
