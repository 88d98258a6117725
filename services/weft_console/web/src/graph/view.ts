/**
 * The interactive drawing: canvases, pointer, wheel and keys. It knows nothing of the panels around it.
 *
 * One real button travels with the node that has the keyboard, so that focus is visible and read out.
 */
import { Geometry, type Direction } from "./geometry";
import type { Labels } from "./labels";
import { layOut } from "./layout";
import type { GraphModel, GraphNode } from "./model";
import { paintLabels } from "./paint-labels";
import type { Box } from "./place-labels";
import { edgesOf, logitNameBox, paintCurve, paintEdge, paintGrid, paintGroup, paintNodes, paintRing, readPalette, strongestVisible, type Palette } from "./paint";

const FOCUS_EDGES = 60;
const PIN_EDGES = 12;
/** Labels that are written at rest, and beside what the eye follows; and how many nodes each may lie over. */
const REST_LABELS = { limit: 40, mostCovered: 1 };
const LIT_LABELS = { limit: 24, mostCovered: 3 };
/** So many are tried: room for one is looked for among all nodes. */
const MOST_TRIED = 200;
/** How far Shift and an arrow move a node, in world units. */
const NUDGE = 0.5;
const ARROWS: Record<string, Direction> = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };

export interface ViewState {
  visible: Uint8Array;
  selected: GraphNode | null;
  pinned: GraphNode[];
  groups: { name: string; nodes: GraphNode[] }[];
  moved: Record<string, [number, number]>;
  /** Nodes of the path that is shown; null for those that the file leaves out. */
  path: (GraphNode | null)[];
  numEdges: number;
  /** Labels of features; another map whenever one of them changes. */
  labels: Labels;
}

export interface ViewEvents {
  onSelect(node: GraphNode | null): void;
  onPin(node: GraphNode): void;
  onMove(node: GraphNode, place: [number, number]): void;
  describe(node: GraphNode): { title: string; lines: string[] };
}

export class GraphView {
  private readonly rest = document.createElement("canvas");
  private readonly live = document.createElement("canvas");
  private readonly cursor = document.createElement("button");
  private readonly tip = document.createElement("div");
  private readonly geometry: Geometry;
  private readonly observer: ResizeObserver;
  private readonly abort = new AbortController();
  private state: ViewState;
  private palette: Palette;
  private hovered: GraphNode | null = null;
  private current: GraphNode;
  private frame = 0;
  private isRestStale = true;
  /** Nodes with a label, the most influential first. */
  private labelled: GraphNode[] = [];
  /** What the pressed pointer holds: a node, or the page. */
  private drag: { x: number; y: number; moved: boolean; node: GraphNode | null } | null = null;
  /** The node that is being dragged: drawn above, so that nothing below is drawn again. */
  private lifted: GraphNode | null = null;

  constructor(
    private readonly host: HTMLElement,
    private readonly model: GraphModel,
    private readonly events: ViewEvents,
  ) {
    this.geometry = new Geometry(model, layOut(model), host.clientWidth, host.clientHeight);
    this.palette = readPalette(host);
    this.state = { visible: new Uint8Array(model.nodes.length).fill(1), selected: null, pinned: [], groups: [], moved: {}, path: [], numEdges: 0, labels: new Map() };
    const logits = model.nodes.filter((node) => node.kind === "logit");
    this.current = logits.sort((a, b) => b.probability - a.probability)[0] ?? model.nodes[0]!;
    this.rest.className = "graph-rest";
    this.live.className = "graph-live";
    this.cursor.className = "graph-cursor";
    this.cursor.type = "button";
    this.tip.className = "graph-tip";
    this.tip.hidden = true;
    host.append(this.rest, this.live, this.cursor, this.tip);
    this.listen();
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(host);
    this.resize();
  }

  destroy(): void {
    this.abort.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    this.host.replaceChildren();
  }

  /** Takes what is shown; draws on the next frame. */
  update(state: ViewState): void {
    if (state.moved !== this.state.moved) this.geometry.setMoved(state.moved);
    if (state.labels !== this.state.labels) {
      this.labelled = this.model.nodes.filter((node) => node.stands !== null).sort((a, b) => b.influence - a.influence);
    }
    this.state = state;
    if (state.selected) this.current = state.selected;
    if (this.hovered && !state.visible[this.hovered.index]) this.hovered = null;
    if (!state.visible[this.current.index]) {
      this.current = this.model.nodes.find((node) => node.kind === "logit" || node.kind === "token") ?? this.current;
    }
    this.redraw();
  }

  /** Brings a node into view and gives it the keyboard. */
  focusNode(node: GraphNode): void {
    this.current = node;
    this.geometry.reveal(node);
    this.redraw();
    this.placeCursor();
    this.cursor.focus();
  }

  zoom(factor: number): void {
    this.geometry.zoomBy(factor, this.geometry.width / 2, this.geometry.height / 2);
    this.redraw();
  }

  fit(): void {
    this.geometry.fit();
    this.redraw();
  }

  repaint(): void {
    this.palette = readPalette(this.host);
    this.redraw();
  }

  private listen(): void {
    const options = { signal: this.abort.signal };
    const point = (event: MouseEvent): [number, number] => {
      const box = this.host.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.host.addEventListener("pointermove", (event) => {
      const [x, y] = point(event);
      if (this.drag) {
        const moved = Math.hypot(x - this.drag.x, y - this.drag.y);
        if (moved > 3 || this.drag.moved) this.dragTo(x, y);
        return;
      }
      this.hover(this.geometry.at(x, y, this.state.visible));
    }, options);
    this.host.addEventListener("pointerleave", () => this.hover(null), options);
    this.host.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const [x, y] = point(event);
      this.drag = { x, y, moved: false, node: this.geometry.at(x, y, this.state.visible) };
    }, options);
    window.addEventListener("pointercancel", () => this.drop(), options);
    window.addEventListener("pointerup", (event) => {
      const drag = this.drag;
      this.drop();
      if (!drag || drag.moved || !this.host.contains(event.target as Node)) return;
      const [x, y] = point(event);
      const node = this.geometry.at(x, y, this.state.visible);
      if (node) this.current = node;
      this.events.onSelect(node);
    }, options);
    this.host.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x, y] = point(event);
      this.geometry.zoomBy(Math.exp(-event.deltaY * 0.0015), x, y);
      this.redraw();
    }, { signal: this.abort.signal, passive: false });
    this.cursor.addEventListener("keydown", (event) => this.onKey(event), options);
    this.cursor.addEventListener("focus", () => this.redraw(), options);
    this.cursor.addEventListener("blur", () => this.redraw(), options);
  }

  /** Moves what the pointer holds. */
  private dragTo(x: number, y: number): void {
    const drag = this.drag!;
    const { node } = drag;
    if (!node) {
      this.geometry.pan(x - drag.x, y - drag.y);
      this.redraw();
    } else {
      this.geometry.shift(node.index, x - drag.x, y - drag.y);
      if (this.lifted === node) this.scheduleLive();
      else {
        this.lifted = node;
        this.hovered = node;
        this.redraw();
      }
    }
    this.drag = { x, y, moved: true, node };
  }

  private drop(): void {
    const node = this.lifted;
    this.drag = null;
    if (!node) return;
    this.lifted = null;
    this.redraw();
    this.events.onMove(node, this.geometry.placeOf(node.index));
  }

  private nudge(direction: Direction): void {
    const [x, y] = this.geometry.placeOf(this.current.index);
    const dx = direction === "left" ? -NUDGE : direction === "right" ? NUDGE : 0;
    const dy = direction === "up" ? -NUDGE : direction === "down" ? NUDGE : 0;
    const { width, height } = this.geometry.layout;
    this.events.onMove(this.current, [Math.min(width, Math.max(0, x + dx)), Math.min(height, Math.max(0, y + dy))]);
  }

  private onKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = ARROWS[event.key];
    if (direction && event.shiftKey) this.nudge(direction);
    else if (direction) {
      const next = this.geometry.neighbour(this.current, direction, this.state.visible);
      if (next) this.focusNode(next);
    } else if (event.key === "Enter" || event.key === " ") this.events.onSelect(this.current);
    else if (event.key === "p" || event.key === "P") this.events.onPin(this.current);
    else if (event.key === "Escape") this.events.onSelect(null);
    else if (event.key === "+" || event.key === "=") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  private hover(node: GraphNode | null): void {
    if (node === this.hovered) return;
    this.hovered = node;
    this.host.classList.toggle("is-over", node !== null);
    this.scheduleLive();
  }

  private resize(): void {
    const ratio = window.devicePixelRatio || 1;
    this.geometry.resize(this.host.clientWidth, this.host.clientHeight);
    for (const canvas of [this.rest, this.live]) {
      canvas.width = Math.round(this.geometry.width * ratio);
      canvas.height = Math.round(this.geometry.height * ratio);
      canvas.getContext("2d")!.setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.redraw();
  }

  private redraw(): void {
    this.isRestStale = true;
    this.scheduleLive();
  }

  private scheduleLive(): void {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.isRestStale) this.paintRest();
      this.paintLive();
      this.placeCursor();
      this.placeTip();
    });
  }

  private clear(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
    const ctx = canvas.getContext("2d")!;
    ctx.globalAlpha = 1;
    // Without ligatures: a token is shown letter by letter.
    ctx.textRendering = "optimizeSpeed";
    ctx.clearRect(0, 0, this.geometry.width, this.geometry.height);
    return ctx;
  }

  private paintRest(): void {
    this.isRestStale = false;
    const { geometry, model, palette, state } = this;
    const ctx = this.clear(this.rest);
    paintGrid(ctx, geometry, palette);
    ctx.save();
    ctx.beginPath();
    ctx.rect(38, 0, geometry.width, geometry.plotBottom);
    ctx.clip();
    const edges = strongestVisible(model, state.visible, state.numEdges);
    const top = Math.max(...edges.slice(0, 1).map((edge) => model.edgeScore[edge]!), 1e-12);
    for (const edge of edges.reverse()) {
      if (model.edgeSource[edge] === this.lifted?.index || model.edgeTarget[edge] === this.lifted?.index) continue;
      const strength = Math.sqrt(model.edgeScore[edge]! / top);
      paintEdge(ctx, geometry, edge, palette.edge, 0.6 + 1.6 * strength, 0.1 + 0.5 * strength);
    }
    paintNodes(ctx, geometry, palette, model.nodes.filter((node) => state.visible[node.index] && node !== this.lifted && geometry.isInside(node.index)));
    ctx.restore();
  }

  private paintLive(): void {
    const { geometry, model, palette, state } = this;
    const ctx = this.clear(this.live);
    const focus = this.hovered ?? state.selected;
    this.host.classList.toggle("is-focused", focus !== null);
    ctx.save();
    ctx.beginPath();
    ctx.rect(38, 0, geometry.width, geometry.plotBottom);
    ctx.clip();
    const taken = state.groups.map((group) => paintGroup(ctx, geometry, palette, group.nodes, group.name));
    const lit = new Set<GraphNode>(state.pinned);
    const draw = (node: GraphNode, limit: number, strength: number) => {
      for (const edge of edgesOf(model, node, state.visible, limit).reverse()) {
        const share = model.edgeShare[edge]!;
        const color = share < 0 ? palette.negative : palette.positive;
        const size = Math.sqrt(Math.min(1, Math.abs(share)));
        paintEdge(ctx, geometry, edge, color, 0.7 + 5 * size, strength * (0.25 + 0.7 * size));
        lit.add(model.nodes[model.edgeSource[edge]!]!).add(model.nodes[model.edgeTarget[edge]!]!);
      }
      lit.add(node);
    };
    for (const pin of state.pinned) if (pin !== focus && state.visible[pin.index]) draw(pin, PIN_EDGES, focus ? 0.35 : 0.7);
    if (focus) draw(focus, FOCUS_EDGES, 1);
    state.path.forEach((node, i) => {
      const next = state.path[i + 1];
      if (node) lit.add(node);
      if (node && next) paintCurve(ctx, geometry, node.index, next.index, palette.accent, 3, 0.95);
    });
    paintNodes(ctx, geometry, palette, lit);
    for (const pin of state.pinned) paintRing(ctx, geometry, palette.accent, pin, true);
    if (state.selected) paintRing(ctx, geometry, palette.accent, state.selected, false);
    if (this.hovered) paintRing(ctx, geometry, palette.ink, this.hovered, false);
    const first = [...(focus ? [focus] : []), ...state.pinned];
    const followed = [...first, ...[...lit].filter((node) => !first.includes(node))];
    this.paintLabels(ctx, taken, followed, focus !== null);
    ctx.restore();
  }

  /** Labels of what the eye follows; while it follows nothing, those of the most influential nodes too. */
  private paintLabels(ctx: CanvasRenderingContext2D, taken: Box[], followed: GraphNode[], isFocused: boolean): void {
    if (this.labelled.length === 0) return;
    const { geometry, model, palette, state } = this;
    const isDrawn = (node: GraphNode) => state.visible[node.index] === 1 && geometry.isInside(node.index);
    for (const node of model.nodes) if (node.kind === "logit" && isDrawn(node)) taken.push(logitNameBox(ctx, geometry, node));
    const wanted = isFocused ? followed : [...followed, ...this.labelled.filter((node) => !followed.includes(node))];
    const drawn = (isFocused ? followed : model.nodes).filter(isDrawn).map((node) => node.index);
    paintLabels(ctx, geometry, palette, wanted.filter((node) => node.stands !== null && isDrawn(node)).slice(0, MOST_TRIED), drawn, { ...(isFocused ? LIT_LABELS : REST_LABELS), taken });
  }

  private placeCursor(): void {
    const { geometry, current } = this;
    const { title, lines } = this.events.describe(current);
    this.cursor.style.left = `${geometry.px[current.index]!}px`;
    this.cursor.style.top = `${geometry.py[current.index]!}px`;
    this.cursor.dataset.node = current.id;
    this.cursor.setAttribute("aria-label", [title, ...lines].join(", "));
    this.cursor.setAttribute("aria-pressed", String(this.state.selected === current));
  }

  private placeTip(): void {
    const isFocused = document.activeElement === this.cursor && this.cursor.matches(":focus-visible");
    const node = this.hovered ?? (isFocused ? this.current : null);
    this.tip.hidden = node === null;
    if (!node) return;
    const { title, lines } = this.events.describe(node);
    const heading = document.createElement("strong");
    heading.textContent = title;
    this.tip.replaceChildren(heading, ...lines.map((line) => {
      const row = document.createElement("span");
      row.textContent = line;
      return row;
    }));
    const x = this.geometry.px[node.index]!;
    const y = this.geometry.py[node.index]!;
    const { offsetWidth, offsetHeight } = this.tip;
    const left = Math.min(Math.max(6, x + 14), this.geometry.width - offsetWidth - 6);
    const above = y - offsetHeight - 14;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${above > 4 ? above : Math.min(y + 16, this.geometry.height - offsetHeight - 4)}px`;
  }
}
