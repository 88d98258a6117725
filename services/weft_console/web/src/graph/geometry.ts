/** From world units to pixels and back: fit, zoom, pan, what lies under the pointer, and where the arrow keys lead. */
import type { GraphModel, GraphNode } from "./model";
import type { Layout } from "./layout";

export const GUTTER_LEFT = 46;
const GUTTER_RIGHT = 16;
/** Room for the logits' names. */
const GUTTER_TOP = 30;
const LOGIT_PITCH_PX = 84;
const MAX_ZOOM = 24;
/** A pointer this near, in pixels, is on a node. */
const HIT_PX = 9;

export type Direction = "left" | "right" | "up" | "down";

export class Geometry {
  readonly px: Float64Array;
  readonly py: Float64Array;
  readonly radius: Float64Array;
  zoom = 1;
  panX = 0;
  panY = 0;
  scaleX = 1;
  scaleY = 1;
  gutterBottom = 40;
  rotateTokens = false;
  /** The layout's x, and the logits' as wide as the page allows. */
  private readonly homeX: Float64Array;
  private readonly worldX: Float64Array;
  private readonly worldY: Float64Array;
  /** By node index, where a person put a node, in world units. */
  private moved = new Map<number, [number, number]>();
  private readonly maxInfluence: number;

  constructor(
    readonly model: GraphModel,
    readonly layout: Layout,
    public width = 800,
    public height = 600,
  ) {
    this.px = new Float64Array(model.nodes.length);
    this.py = new Float64Array(model.nodes.length);
    this.radius = new Float64Array(model.nodes.length);
    this.homeX = layout.x.slice();
    this.worldX = layout.x.slice();
    this.worldY = layout.y.slice();
    this.maxInfluence = model.nodes.reduce((most, node) => (node.kind === "feature" ? Math.max(most, node.influence) : most), 1e-12);
    this.resize(width, height);
  }

  /** Takes the size of the canvas in CSS pixels and fits the whole graph at zoom 1. */
  resize(width: number, height: number): void {
    this.width = Math.max(width, 160);
    this.height = Math.max(height, 160);
    this.scaleX = (this.width - GUTTER_LEFT - GUTTER_RIGHT) / this.layout.width;
    const narrow = Math.min(...this.layout.columns.map((column) => (column.end - column.start) * this.scaleX));
    this.rotateTokens = narrow < 54;
    this.gutterBottom = this.rotateTokens ? 66 : 30;
    this.scaleY = (this.height - GUTTER_TOP - this.gutterBottom) / this.layout.height;
    const logits = this.model.nodes.filter((node) => node.kind === "logit").sort((a, b) => a.probability - b.probability);
    const pitch = Math.min(LOGIT_PITCH_PX / this.scaleX, this.layout.width / Math.max(logits.length, 1));
    logits.forEach((node, i) => {
      this.homeX[node.index] = this.layout.width - (logits.length - i - 0.5) * pitch;
    });
    this.placeAll();
    this.clampPan();
    this.project();
  }

  /** Takes where people put nodes; all others stand where the layout has them. */
  setMoved(moved: Record<string, [number, number]>): void {
    this.moved = new Map();
    for (const [id, place] of Object.entries(moved)) {
      const node = this.model.byId.get(id);
      if (node) this.moved.set(node.index, place);
    }
    this.placeAll();
    this.project();
  }

  private placeAll(): void {
    this.worldX.set(this.homeX);
    this.worldY.set(this.layout.y);
    for (const [index, [x, y]] of this.moved) {
      this.worldX[index] = x;
      this.worldY[index] = y;
    }
  }

  /** Moves one node by pixels while it is dragged, and keeps it on the page. */
  shift(index: number, dx: number, dy: number): void {
    const within = (value: number, most: number) => Math.min(most, Math.max(0, value));
    this.worldX[index] = within(this.worldX[index]! + dx / (this.scaleX * this.zoom), this.layout.width);
    this.worldY[index] = within(this.worldY[index]! + dy / (this.scaleY * this.zoom), this.layout.height);
    this.px[index] = this.toX(this.worldX[index]!);
    this.py[index] = this.toY(this.worldY[index]!);
  }

  /** Where a node stands, in world units. */
  placeOf(index: number): [number, number] {
    return [this.worldX[index]!, this.worldY[index]!];
  }

  private clampPan(): void {
    const spareX = (this.width - GUTTER_LEFT - GUTTER_RIGHT) * (this.zoom - 1);
    const spareY = (this.height - GUTTER_TOP - this.gutterBottom) * (this.zoom - 1);
    this.panX = Math.min(0, Math.max(-spareX, this.panX));
    this.panY = Math.min(0, Math.max(-spareY, this.panY));
  }

  private project(): void {
    const room = 0.5 * Math.min(this.scaleX, this.scaleY) * this.zoom;
    const largest = Math.max(2.6, Math.min(8.5, room));
    for (const node of this.model.nodes) {
      this.px[node.index] = this.toX(this.worldX[node.index]!);
      this.py[node.index] = this.toY(this.worldY[node.index]!);
      const weight = node.kind === "feature" || node.kind === "error" ? Math.sqrt(node.influence / this.maxInfluence) : 0.5;
      this.radius[node.index] = Math.max(1.8, largest * (0.42 + 0.58 * Math.min(1, weight)));
    }
  }

  toX(worldX: number): number {
    return GUTTER_LEFT + worldX * this.scaleX * this.zoom + this.panX;
  }

  toY(worldY: number): number {
    return GUTTER_TOP + worldY * this.scaleY * this.zoom + this.panY;
  }

  /** Bottom edge of the part that shows nodes. */
  get plotBottom(): number {
    return this.height - this.gutterBottom;
  }

  pan(dx: number, dy: number): void {
    this.panX += dx;
    this.panY += dy;
    this.clampPan();
    this.project();
  }

  /** Zooms by a factor and keeps the point (x, y) where it is. */
  zoomBy(factor: number, x: number, y: number): void {
    const zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    const ratio = zoom / this.zoom;
    this.panX = (x - GUTTER_LEFT) * (1 - ratio) + this.panX * ratio;
    this.panY = (y - GUTTER_TOP) * (1 - ratio) + this.panY * ratio;
    this.zoom = zoom;
    this.clampPan();
    this.project();
  }

  fit(): void {
    this.zoom = 1;
    this.panX = 0;
    this.panY = 0;
    this.project();
  }

  /** Moves the view as little as it takes to show a node. */
  reveal(node: GraphNode): void {
    const margin = 24;
    const x = this.px[node.index]!;
    const y = this.py[node.index]!;
    const dx = x < GUTTER_LEFT + margin ? GUTTER_LEFT + margin - x : x > this.width - margin ? this.width - margin - x : 0;
    const dy = y < margin ? margin - y : y > this.plotBottom - margin ? this.plotBottom - margin - y : 0;
    if (dx !== 0 || dy !== 0) this.pan(dx, dy);
  }

  isInside(index: number): boolean {
    const x = this.px[index]!;
    const y = this.py[index]!;
    return x > GUTTER_LEFT - 8 && x < this.width + 8 && y > -8 && y < this.plotBottom + 8;
  }

  /** The visible node nearest to a point, if one is near enough. */
  at(x: number, y: number, visible: Uint8Array): GraphNode | null {
    let best: GraphNode | null = null;
    let least = Infinity;
    for (const node of this.model.nodes) {
      if (!visible[node.index]) continue;
      const dx = this.px[node.index]! - x;
      const dy = this.py[node.index]! - y;
      const reach = Math.max(HIT_PX, this.radius[node.index]! + 4);
      const distance = dx * dx + dy * dy;
      if (distance < least && distance <= reach * reach) {
        least = distance;
        best = node;
      }
    }
    return best;
  }

  /** The next visible node in a direction: along its row, or in the nearest row that has one. */
  neighbour(from: GraphNode, direction: Direction, visible: Uint8Array): GraphNode | null {
    const x = this.worldX[from.index]!;
    const y = this.worldY[from.index]!;
    let best: GraphNode | null = null;
    let least = Infinity;
    for (const node of this.model.nodes) {
      if (!visible[node.index] || node === from) continue;
      const dx = this.worldX[node.index]! - x;
      const dy = this.worldY[node.index]! - y;
      let cost: number;
      if (direction === "left" || direction === "right") {
        const ahead = direction === "right" ? dx : -dx;
        if (node.row !== from.row || ahead <= 1e-9) continue;
        cost = ahead + Math.abs(dy) * 1e3;
      } else {
        const ahead = direction === "down" ? dy : -dy;
        if (ahead <= 1e-9) continue;
        cost = ahead * 1e3 + Math.abs(dx);
      }
      if (cost < least) {
        least = cost;
        best = node;
      }
    }
    return best;
  }
}
