import type { RefObject } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { count, percent } from "../format";
import { describe } from "./drawing";
import { searchNodes, type GraphModel, type GraphNode } from "./model";
import type { PageState } from "./state";
import type { GraphView } from "./view";

interface Props {
  model: GraphModel;
  state: PageState;
  visible: Uint8Array;
  limit: number;
  onChange: (part: Partial<PageState>) => void;
  onGo: (node: GraphNode) => void;
  view: RefObject<GraphView | null>;
  graphId: string;
}

/** Search, pruning and what is drawn. */
export function Toolbar({ model, state, visible, limit, onChange, onGo, graphId }: Props) {
  const shown = useMemo(() => {
    let nodes = 0;
    let edges = 0;
    for (const flag of visible) nodes += flag;
    for (let e = 0; e < model.edgeSource.length; e++) edges += visible[model.edgeSource[e]!]! & visible[model.edgeTarget[e]!]!;
    return { nodes, edges };
  }, [model, visible]);
  return (
    <div class="toolbar" role="toolbar" aria-label="Graph controls">
      <Search model={model} onGo={onGo} />
      <label class="slider">
        <span>Influence kept</span>
        <input type="range" min={0} max={1000} step={1} value={Math.round((1000 * state.threshold) / limit)} aria-label="Influence kept"
          aria-valuetext={`${percent(state.threshold)}, ${shown.nodes} nodes`}
          onInput={(event) => onChange({ threshold: (Number(event.currentTarget.value) / 1000) * limit })} />
        <output data-stat="threshold">{percent(state.threshold)}</output>
      </label>
      <label class="slider">
        <span>Edges at rest</span>
        <input type="range" min={0} max={2000} step={50} value={state.numEdges} aria-label="Edges drawn at rest"
          onInput={(event) => onChange({ numEdges: Number(event.currentTarget.value) })} />
        <output>{count(state.numEdges)}</output>
      </label>
      <label class="check">
        <input type="checkbox" checked={state.showErrors} onChange={(event) => onChange({ showErrors: event.currentTarget.checked })} />
        <span>Errors</span>
      </label>
      <p class="shown">
        <b data-stat="nodes">{count(shown.nodes)}</b> of <span data-stat="all-nodes">{count(model.nodes.length)}</span> nodes,{" "}
        <b data-stat="edges">{count(shown.edges)}</b> edges
      </p>
      <a class="button small" href={`/api/graphs/${encodeURIComponent(graphId)}/json`} download={`${graphId}.json`}>Download JSON</a>
    </div>
  );
}

function Search({ model, onGo }: { model: GraphModel; onGo: (node: GraphNode) => void }) {
  const [query, setQuery] = useState("");
  const [active, setActive] = useState(0);
  const input = useRef<HTMLInputElement>(null);
  const hits = useMemo(() => searchNodes(model, query, 12), [model, query]);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
      if (event.key === "/" && !isTyping) {
        event.preventDefault();
        input.current?.focus();
      }
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  const choose = (node: GraphNode | undefined) => {
    if (!node) return;
    setQuery("");
    onGo(node);
  };
  return (
    <div class="search">
      <input ref={input} type="text" placeholder="Search nodes" aria-label="Search nodes" role="combobox" aria-expanded={hits.length > 0}
        aria-controls="search-hits" aria-autocomplete="list" aria-activedescendant={hits[active] ? `hit-${active}` : undefined} value={query}
        onInput={(event) => { setQuery(event.currentTarget.value); setActive(0); }}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown") setActive((at) => Math.min(at + 1, hits.length - 1));
          else if (event.key === "ArrowUp") setActive((at) => Math.max(at - 1, 0));
          else if (event.key === "Enter") choose(hits[active]);
          else if (event.key === "Escape") setQuery("");
          else return;
          event.preventDefault();
        }} />
      <kbd aria-hidden="true">/</kbd>
      <ul id="search-hits" role="listbox" aria-label="Nodes found" hidden={hits.length === 0}>
        {hits.map((node, i) => (
          <li key={node.id} id={`hit-${i}`} role="option" aria-selected={i === active} onPointerDown={(event) => { event.preventDefault(); choose(node); }}>
            <b>{node.label}</b><span>{describe(model, node).lines[0]}</span>
          </li>
        ))}
      </ul>
      {query && hits.length === 0 ? <p class="search-none" role="status">No node has “{query}”.</p> : null}
    </div>
  );
}
