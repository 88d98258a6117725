import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { count, percent } from "../format";
import { describe } from "./drawing";
import type { Labels } from "./labels";
import { NodeName } from "./node-name";
import { searchNodes, type GraphModel, type GraphNode } from "./model";
import type { PageState, ViewName } from "./state";

interface Props {
  model: GraphModel;
  labels: Labels;
  state: PageState;
  visible: Uint8Array;
  limit: number;
  isPartial: boolean;
  onChange: (part: Partial<PageState>) => void;
  onGo: (node: GraphNode) => void;
  /** Null where there is nothing to undo, or to do again. */
  undo: (() => void) | null;
  redo: (() => void) | null;
  /** The whole address of what is shown. */
  address: () => string;
  graphId: string;
}

const VIEWS: [ViewName, string][] = [["graph", "Graph"], ["summary", "Summary"], ["compare", "Compare"]];

/** What is shown, search, what is left out, and steps back. */
export function Toolbar(props: Props) {
  const { model, state, isPartial, onChange, onGo, undo, redo, address, graphId } = props;
  return (
    <div class="toolbar" role="group" aria-label="Graph controls">
      {isPartial ? null : (
        <div class="segments" role="radiogroup" aria-label="View">
          {VIEWS.map(([view, name]) => (
            <label key={view}>
              <input type="radio" name="view" checked={state.view === view} onChange={() => onChange({ view })} />
              <span>{name}</span>
            </label>
          ))}
        </div>
      )}
      <Search model={model} labels={props.labels} onGo={onGo} />
      {state.view === "graph" || isPartial ? <Filters {...props} /> : null}
      <div class="toolbar-end">
        <button type="button" class="button quiet small" aria-label="Undo" title="Undo (Ctrl Z)" disabled={!undo} onClick={() => undo?.()}>↶</button>
        <button type="button" class="button quiet small" aria-label="Redo" title="Do again (Ctrl Shift Z)" disabled={!redo} onClick={() => redo?.()}>↷</button>
        <CopyLink address={address} />
        <a class="button small" href={`/api/graphs/${encodeURIComponent(graphId)}/json`} download={`${graphId}.json`}>Download JSON</a>
      </div>
    </div>
  );
}

/** Which nodes and edges of the file are drawn. */
function Filters({ model, state, visible, limit, onChange }: Props) {
  const shown = useMemo(() => {
    let nodes = 0;
    let edges = 0;
    for (const flag of visible) nodes += flag;
    for (let e = 0; e < model.edgeSource.length; e++) edges += visible[model.edgeSource[e]!]! & visible[model.edgeTarget[e]!]!;
    return { nodes, edges };
  }, [model, visible]);
  const mostPositions = useMemo(() => model.nodes.reduce((most, node) => Math.max(most, node.spread), 1), [model]);
  const positions = state.maxPositions > 0 ? Math.min(state.maxPositions, mostPositions) : mostPositions;
  return (
    <>
      <label class="slider">
        <span>Influence kept</span>
        <input type="range" min={0} max={1000} step={1} value={Math.min(1000, Math.round((1000 * state.threshold) / limit))} aria-label="Influence kept"
          aria-valuetext={`${percent(state.threshold)}, ${shown.nodes} nodes`}
          onInput={(event) => onChange({ threshold: (Number(event.currentTarget.value) / 1000) * limit })} />
        <output data-stat="threshold">{percent(Math.min(state.threshold, limit))}</output>
      </label>
      <label class="slider" title="Hides features that stand at more positions of this prompt: dense ones say little about a single place">
        <span>Density</span>
        <input type="range" min={1} max={mostPositions} step={1} value={positions} disabled={mostPositions === 1} aria-label="Most positions of a feature"
          aria-valuetext={`features at ${positions} positions at most`}
          onInput={(event) => { const value = Number(event.currentTarget.value); onChange({ maxPositions: value >= mostPositions ? 0 : value }); }} />
        <output data-stat="positions">≤ {positions} of {model.tokens.length}</output>
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
    </>
  );
}

/** Puts the address of what is shown where it can be pasted; without a clipboard it is shown to be copied by hand. */
function CopyLink({ address }: { address: () => string }) {
  const [done, setDone] = useState(false);
  const [shown, setShown] = useState<string | null>(null);
  const copy = async () => {
    const url = address();
    try {
      await navigator.clipboard.writeText(url);
      setDone(true);
      window.setTimeout(() => setDone(false), 2000);
    } catch {
      setShown(url);
    }
  };
  if (shown !== null) {
    return <input class="mono link" type="text" readOnly aria-label="Link to this view" value={shown} ref={(input) => input?.select()} onBlur={() => setShown(null)} />;
  }
  return <button type="button" class="button small" onClick={() => void copy()}>{done ? "Copied" : "Copy link"}</button>;
}

/** `labels` change what nodes are called. */
function Search({ model, labels, onGo }: { model: GraphModel; labels: Labels; onGo: (node: GraphNode) => void }) {
  const [query, setQuery] = useState("");
  const [active, setActive] = useState(0);
  const input = useRef<HTMLInputElement>(null);
  const hits = useMemo(() => searchNodes(model, query, 12), [model, query, labels]);
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
      <input ref={input} type="text" placeholder="Search nodes, labels" aria-label="Search nodes" role="combobox" aria-expanded={hits.length > 0}
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
            <b><NodeName node={node} /></b><span>{describe(model, node).lines[0]}</span>
          </li>
        ))}
      </ul>
      {query && hits.length === 0 ? <p class="search-none" role="status">No node has “{query}”.</p> : null}
    </div>
  );
}
