import { useEffect, useRef } from "preact/hooks";
import type { RefObject } from "preact";
import { figure, percent } from "../format";
import { onTheme } from "../theme";
import { originOf } from "../ui/origin";
import type { GraphModel, GraphNode } from "./model";
import { showToken } from "../ui/token-text";
import { GraphView, type ViewState } from "./view";

/** What a node is, in a line and a few more: for the tip, and for who listens instead of looking. */
export function describe(model: GraphModel, node: GraphNode): { title: string; lines: string[] } {
  const where = `at ${showToken(model.tokens[node.position] ?? "")} (${node.position})`;
  if (node.kind === "token") return { title: `Token ${node.label}`, lines: [where, `influence ${percent(node.influence)}`] };
  if (node.kind === "logit") {
    return node.isLikely ? { title: `Logit ${node.label}`, lines: [`probability ${percent(node.probability)}`] } : { title: `Target ${node.label}`, lines: ["explained as asked for"] };
  }
  const lines = [`layer ${node.layer}, ${where}`, `influence ${percent(node.influence, 2)}`];
  if (node.stands) lines.unshift(`${node.name}, ${originOf(node.stands).name}`);
  if (node.kind === "feature" && node.activation !== null) lines.push(`activation ${figure(node.activation)}`);
  return { title: node.kind === "feature" ? `Feature ${node.label}` : node.label, lines };
}

interface Props {
  model: GraphModel;
  state: ViewState;
  onSelect: (node: GraphNode | null) => void;
  onPin: (node: GraphNode) => void;
  onMove: (node: GraphNode, place: [number, number]) => void;
  /** Takes all nodes back to where the layout has them. */
  onLayOut: () => void;
  view: RefObject<GraphView | null>;
}

/** Holds the drawing and hands it what is shown. */
export function Drawing({ model, state, onSelect, onPin, onMove, onLayOut, view }: Props) {
  const host = useRef<HTMLDivElement>(null);
  const calls = useRef({ onSelect, onPin, onMove });
  calls.current = { onSelect, onPin, onMove };
  const { visible, selected, pinned, groups, moved, path, numEdges, labels } = state;
  useEffect(() => {
    const made = new GraphView(host.current!, model, {
      onSelect: (node) => calls.current.onSelect(node),
      onPin: (node) => calls.current.onPin(node),
      onMove: (node, place) => calls.current.onMove(node, place),
      describe: (node) => describe(model, node),
    });
    view.current = made;
    const stop = onTheme(() => made.repaint());
    void document.fonts.ready.then(() => made.repaint());
    return () => {
      stop();
      made.destroy();
      view.current = null;
    };
  }, [model, view]);
  useEffect(
    () => view.current?.update({ visible, selected, pinned, groups, moved, path, numEdges, labels }),
    [model, view, visible, selected, pinned, groups, moved, path, numEdges, labels],
  );
  return (
    <div class="drawing">
      <div class="drawing-host" ref={host} role="group"
        aria-label="Attribution graph. Arrow keys move between nodes, Shift and arrows move a node, Enter selects, P pins, Escape clears, plus and minus zoom." />
      <ul class="legend" aria-label="Legend">
        <li><i class="mark is-feature" />feature</li>
        <li><i class="mark is-error" />error</li>
        <li><i class="mark is-token" />token</li>
        <li><i class="mark is-logit" />logit</li>
        <li><i class="stroke is-positive" />raises</li>
        <li><i class="stroke is-negative" />lowers</li>
        {labels.size > 0 ? <li>labels: <span class="label-origin is-human">person</span> <span class="label-origin">model</span> <span class="label-origin is-imported">imported</span></li> : null}
      </ul>
      <div class="zoom" role="group" aria-label="Zoom">
        <button type="button" aria-label="Zoom in" onClick={() => view.current?.zoom(1.4)}>+</button>
        <button type="button" aria-label="Zoom out" onClick={() => view.current?.zoom(1 / 1.4)}>−</button>
        <button type="button" aria-label="Show the whole graph" onClick={() => view.current?.fit()}>⤢</button>
        <button type="button" aria-label="Lay out again" title="Takes dragged nodes back" disabled={Object.keys(moved).length === 0} onClick={onLayOut}>↺</button>
      </div>
    </div>
  );
}
