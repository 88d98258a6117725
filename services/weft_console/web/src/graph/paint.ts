/** Draws a graph on two canvases: everything at rest below, what the eye follows above. */
import { showToken, type GraphModel, type GraphNode } from "./model";
import { GUTTER_LEFT, type Geometry } from "./geometry";

export interface Palette {
  ink: string;
  muted: string;
  line: string;
  band: string;
  surface: string;
  accent: string;
  feature: string;
  error: string;
  token: string;
  logit: string;
  positive: string;
  negative: string;
  edge: string;
}

/** The style sheet's colours as the canvas needs them. */
export function readPalette(element: Element): Palette {
  const style = getComputedStyle(element);
  const color = (name: string) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: color("ink"), muted: color("ink-2"), line: color("line"), band: color("band"), surface: color("surface"),
    accent: color("accent"), feature: color("node-feature"), error: color("node-error"), token: color("node-token"),
    logit: color("node-logit"), positive: color("positive"), negative: color("negative"), edge: color("edge"),
  };
}

const SANS = '"Inter Variable", system-ui, sans-serif';
const MONO = '"JetBrains Mono Variable", ui-monospace, monospace';

/** Rows, columns and their names. */
export function paintGrid(ctx: CanvasRenderingContext2D, geometry: Geometry, palette: Palette): void {
  const { layout, model } = geometry;
  const bottom = geometry.plotBottom;
  ctx.save();
  ctx.beginPath();
  ctx.rect(GUTTER_LEFT - 4, 0, geometry.width - GUTTER_LEFT + 4, bottom);
  ctx.clip();
  layout.columns.forEach((column, i) => {
    if (i % 2 === 1) return;
    ctx.fillStyle = palette.band;
    ctx.fillRect(geometry.toX(column.start), 0, geometry.toX(column.end) - geometry.toX(column.start), bottom);
  });
  ctx.strokeStyle = palette.line;
  ctx.lineWidth = 1;
  for (const edge of [layout.rows[0]!.top, layout.rows[layout.rows.length - 1]!.bottom]) {
    const y = Math.round(geometry.toY(edge)) + 0.5;
    ctx.beginPath();
    ctx.moveTo(GUTTER_LEFT - 4, y);
    ctx.lineTo(geometry.width, y);
    ctx.stroke();
  }
  ctx.restore();

  ctx.textAlign = "right";
  ctx.textBaseline = "middle";
  ctx.font = `500 10px ${SANS}`;
  let last = Infinity;
  layout.rows.forEach((row, i) => {
    const y = geometry.toY(row.center);
    const isEnd = i === 0 || i === layout.rows.length - 1;
    if (y < 4 || y > bottom - 4 || (!isEnd && (row.count === 0 || last - y < 12))) return;
    last = y;
    ctx.fillStyle = isEnd ? palette.ink : palette.muted;
    ctx.fillText(i === 0 ? "tokens" : isEnd ? "logits" : `L${i - 1}`, GUTTER_LEFT - 10, y);
  });

  ctx.font = `500 11.5px ${MONO}`;
  layout.columns.forEach((column, i) => {
    const x = geometry.toX(column.center);
    const room = (column.end - column.start) * geometry.scaleX * geometry.zoom - 8;
    if (x < GUTTER_LEFT - 8 || x > geometry.width) return;
    ctx.fillStyle = palette.ink;
    const text = showToken(model.tokens[i] ?? "");
    if (geometry.rotateTokens) {
      if (room < 6 && i % Math.ceil(14 / Math.max(room + 8, 1)) !== 0) return;
      ctx.save();
      ctx.translate(x + 4, bottom + 8);
      ctx.rotate(-Math.PI / 4);
      ctx.textAlign = "right";
      ctx.fillText(shorten(ctx, text, 72), 0, 0);
      ctx.restore();
    } else {
      ctx.textAlign = "center";
      ctx.fillText(shorten(ctx, text, room), x, bottom + 14);
    }
  });
}

function shorten(ctx: CanvasRenderingContext2D, text: string, room: number): string {
  if (ctx.measureText(text).width <= room) return text;
  let end = text.length - 1;
  while (end > 1 && ctx.measureText(`${text.slice(0, end)}…`).width > room) end--;
  return `${text.slice(0, end)}…`;
}

/** One edge as a curve that leaves upwards and arrives from below. */
export function paintEdge(
  ctx: CanvasRenderingContext2D, geometry: Geometry, edge: number, color: string, width: number, alpha: number,
): void {
  const { model, px, py } = geometry;
  const source = model.edgeSource[edge]!;
  const target = model.edgeTarget[edge]!;
  const x1 = px[source]!;
  const y1 = py[source]!;
  const x2 = px[target]!;
  const y2 = py[target]!;
  const bend = (y1 - y2) * 0.45;
  ctx.globalAlpha = alpha;
  ctx.strokeStyle = color;
  ctx.lineWidth = width;
  ctx.beginPath();
  ctx.moveTo(x1, y1);
  ctx.bezierCurveTo(x1, y1 - bend, x2, y2 + bend, x2, y2);
  ctx.stroke();
}

export function paintNode(ctx: CanvasRenderingContext2D, geometry: Geometry, palette: Palette, node: GraphNode): void {
  const x = geometry.px[node.index]!;
  const y = geometry.py[node.index]!;
  const r = geometry.radius[node.index]!;
  ctx.globalAlpha = 1;
  ctx.beginPath();
  if (node.kind === "feature" || node.kind === "bias") {
    ctx.fillStyle = palette.feature;
    ctx.arc(x, y, r, 0, 2 * Math.PI);
    ctx.fill();
  } else if (node.kind === "error") {
    ctx.moveTo(x, y - r * 1.2);
    ctx.lineTo(x + r * 1.2, y);
    ctx.lineTo(x, y + r * 1.2);
    ctx.lineTo(x - r * 1.2, y);
    ctx.closePath();
    ctx.fillStyle = palette.surface;
    ctx.fill();
    ctx.strokeStyle = palette.error;
    ctx.lineWidth = 1.3;
    ctx.stroke();
  } else {
    const half = node.kind === "token" ? 4 : 5;
    ctx.fillStyle = node.kind === "token" ? palette.token : palette.logit;
    ctx.roundRect(x - half, y - half, 2 * half, 2 * half, 2);
    ctx.fill();
    if (node.kind === "logit") paintLogitName(ctx, palette, node, x, y);
  }
}

function paintLogitName(ctx: CanvasRenderingContext2D, palette: Palette, node: GraphNode, x: number, y: number): void {
  ctx.textAlign = "center";
  ctx.textBaseline = "alphabetic";
  ctx.fillStyle = palette.ink;
  ctx.font = `500 11px ${MONO}`;
  ctx.fillText(shorten(ctx, node.label, 78), x, y - 21);
  ctx.font = `500 10px ${SANS}`;
  ctx.fillStyle = palette.muted;
  ctx.fillText(`${(100 * node.probability).toFixed(1)}%`, x, y - 9);
}

/** A ring around a node: solid for the selected one, broken for pins. */
export function paintRing(ctx: CanvasRenderingContext2D, geometry: Geometry, color: string, node: GraphNode, pinned: boolean): void {
  ctx.globalAlpha = 1;
  ctx.strokeStyle = color;
  ctx.lineWidth = pinned ? 1.5 : 2;
  ctx.setLineDash(pinned ? [3, 2] : []);
  ctx.beginPath();
  ctx.arc(geometry.px[node.index]!, geometry.py[node.index]!, Math.max(geometry.radius[node.index]!, 4) + 4, 0, 2 * Math.PI);
  ctx.stroke();
  ctx.setLineDash([]);
}

/** Edges at rest: the strongest between visible nodes. */
export function strongestVisible(model: GraphModel, visible: Uint8Array, limit: number): number[] {
  const edges: number[] = [];
  for (const edge of model.strongest) {
    if (edges.length >= limit) break;
    if (visible[model.edgeSource[edge]!] && visible[model.edgeTarget[edge]!]) edges.push(edge);
  }
  return edges;
}

/** A node's own edges to visible nodes, strongest first, at most `limit` each way. */
export function edgesOf(model: GraphModel, node: GraphNode, visible: Uint8Array, limit: number): number[] {
  const edges: number[] = [];
  const take = (list: Uint32Array, start: number, end: number, other: Uint32Array) => {
    for (let i = start, taken = 0; i < end && taken < limit; i++) {
      const edge = list[i]!;
      if (!visible[other[edge]!]) continue;
      edges.push(edge);
      taken++;
    }
  };
  take(model.inEdges, model.inStart[node.index]!, model.inStart[node.index + 1]!, model.edgeSource);
  take(model.outEdges, model.outStart[node.index]!, model.outStart[node.index + 1]!, model.edgeTarget);
  return edges;
}
