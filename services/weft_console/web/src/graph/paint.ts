/** Draws a graph on two canvases: everything at rest below, what the eye follows above. */
import type { GraphModel, GraphNode } from "./model";
import { showToken } from "../ui/token-text";
import { GUTTER_LEFT, type Geometry } from "./geometry";
import type { Box } from "./place-labels";

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
const LOGIT_NAME_PX = 78;
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

/** As many whole characters of a text as there is room for, one at least. */
export function shorten(ctx: Pick<CanvasRenderingContext2D, "measureText">, text: string, room: number): string {
  if (ctx.measureText(text).width <= room) return text;
  const characters = [...text];
  if (characters.length === 1) return text;
  let end = characters.length - 1;
  const cut = () => `${characters.slice(0, end).join("")}…`;
  while (end > 1 && ctx.measureText(cut()).width > room) end--;
  return cut();
}

/** One edge as a curve that leaves upwards and arrives from below. */
export function paintEdge(
  ctx: CanvasRenderingContext2D, geometry: Geometry, edge: number, color: string, width: number, alpha: number,
): void {
  const { model } = geometry;
  paintCurve(ctx, geometry, model.edgeSource[edge]!, model.edgeTarget[edge]!, color, width, alpha);
}

/** The curve between two nodes, whether the file has an edge there or not. */
export function paintCurve(
  ctx: CanvasRenderingContext2D, geometry: Geometry, source: number, target: number, color: string, width: number, alpha: number,
): void {
  const { px, py } = geometry;
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

/** Nodes kind by kind, each kind in one path: thousands of fills take longer than a frame. */
export function paintNodes(ctx: CanvasRenderingContext2D, geometry: Geometry, palette: Palette, nodes: Iterable<GraphNode>): void {
  const { px, py, radius } = geometry;
  const dots = new Path2D();
  const diamonds = new Path2D();
  const tokens = new Path2D();
  const logits = new Path2D();
  const named: GraphNode[] = [];
  for (const node of nodes) {
    const x = px[node.index]!;
    const y = py[node.index]!;
    const r = radius[node.index]!;
    if (node.kind === "feature" || node.kind === "bias") {
      dots.moveTo(x + r, y);
      dots.arc(x, y, r, 0, 2 * Math.PI);
    } else if (node.kind === "error") {
      diamonds.moveTo(x, y - r * 1.2);
      diamonds.lineTo(x + r * 1.2, y);
      diamonds.lineTo(x, y + r * 1.2);
      diamonds.lineTo(x - r * 1.2, y);
      diamonds.closePath();
    } else if (node.kind === "token") tokens.roundRect(x - 4, y - 4, 8, 8, 2);
    else {
      logits.roundRect(x - 5, y - 5, 10, 10, 2);
      named.push(node);
    }
  }
  ctx.globalAlpha = 1;
  const fill = (path: Path2D, color: string) => {
    ctx.fillStyle = color;
    ctx.fill(path);
  };
  fill(dots, palette.feature);
  fill(diamonds, palette.surface);
  ctx.strokeStyle = palette.error;
  ctx.lineWidth = 1.3;
  ctx.stroke(diamonds);
  fill(tokens, palette.token);
  fill(logits, palette.logit);
  for (const node of named) paintLogitName(ctx, palette, node, px[node.index]!, py[node.index]!);
}

/** Where the name of a logit stands, with its probability. */
export function logitNameBox(ctx: CanvasRenderingContext2D, geometry: Geometry, node: GraphNode): Box {
  ctx.font = `500 11px ${MONO}`;
  const half = Math.max(ctx.measureText(shorten(ctx, node.label, LOGIT_NAME_PX)).width, 30) / 2;
  const x = geometry.px[node.index]!;
  const y = geometry.py[node.index]!;
  return [x - half, y - 31, x + half, y - 5];
}

function paintLogitName(ctx: CanvasRenderingContext2D, palette: Palette, node: GraphNode, x: number, y: number): void {
  ctx.textAlign = "center";
  ctx.textBaseline = "alphabetic";
  ctx.fillStyle = palette.ink;
  ctx.font = `500 11px ${MONO}`;
  ctx.fillText(shorten(ctx, node.label, LOGIT_NAME_PX), x, y - 21);
  ctx.font = `500 10px ${SANS}`;
  if (!node.isLikely) return;
  ctx.fillStyle = palette.muted;
  ctx.fillText(`${(100 * node.probability).toFixed(1)}%`, x, y - 9);
}

/** Offsets of a circle around a node: outlines stay clear of their nodes, with round corners. */
const ROUND = Array.from({ length: 16 }, (_, i): [number, number] => [13 * Math.cos((i * Math.PI) / 8), 13 * Math.sin((i * Math.PI) / 8)]);

/** A soft field under a group's nodes, with the group's name over its highest one. Says where the name stands. */
export function paintGroup(ctx: CanvasRenderingContext2D, geometry: Geometry, palette: Palette, nodes: GraphNode[], name: string): Box {
  const corners = nodes.flatMap((node) => ROUND.map(([dx, dy]): [number, number] => [geometry.px[node.index]! + dx, geometry.py[node.index]! + dy]));
  const points = hull(corners);
  const top = points.reduce((best, point) => (point[1] < best[1] ? point : best), points[0]!);
  ctx.beginPath();
  points.forEach(([x, y], i) => (i === 0 ? ctx.moveTo(x, y) : ctx.lineTo(x, y)));
  ctx.closePath();
  ctx.fillStyle = palette.accent;
  ctx.globalAlpha = 0.09;
  ctx.fill();
  ctx.strokeStyle = palette.accent;
  ctx.lineWidth = 1;
  ctx.globalAlpha = 0.4;
  ctx.stroke();
  ctx.globalAlpha = 1;
  ctx.font = `600 10.5px ${SANS}`;
  const text = shorten(ctx, name, 170);
  const half = ctx.measureText(text).width / 2;
  const x = Math.min(Math.max(top[0], GUTTER_LEFT + half + 2), geometry.width - half - 6);
  const y = Math.max(top[1] - 5, 10);
  ctx.textAlign = "center";
  ctx.textBaseline = "alphabetic";
  ctx.lineWidth = 3;
  ctx.strokeStyle = palette.surface;
  ctx.strokeText(text, x, y);
  ctx.fillStyle = palette.accent;
  ctx.fillText(text, x, y);
  return [x - half, y - 11, x + half, y + 3];
}

/** Corners of the smallest convex polygon around points, in order (Andrew's monotone chain). */
export function hull(points: [number, number][]): [number, number][] {
  const sorted = points.slice().sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  if (sorted.length < 3) return sorted;
  const half = (list: [number, number][]) => {
    const chain: [number, number][] = [];
    for (const point of list) {
      while (chain.length > 1) {
        const [[ax, ay], [bx, by]] = chain.slice(-2) as [[number, number], [number, number]];
        if ((bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax) > 0) break;
        chain.pop();
      }
      chain.push(point);
    }
    return chain.slice(0, -1);
  };
  return [...half(sorted), ...half(sorted.reverse())];
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
