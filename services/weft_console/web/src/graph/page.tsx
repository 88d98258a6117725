/** One graph: what it explains above, the drawing in the middle, what is known of the chosen node beside it. */
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { post } from "../api";
import { count, percent, seconds } from "../format";
import { searchPath } from "../features/types";
import { idOf, type Graph, type InterventionResult } from "../types";
import { toApiError, useLoad } from "../ui/load";
import { Loading, Problem, ProgressBar, Stat } from "../ui/parts";
import { usePartScore } from "./ask";
import { CompareView } from "./compare";
import { Drawing } from "./drawing";
import { useHistory } from "./history";
import { useMaking, type Making } from "./making";
import { useGraphLabels } from "./labels";
import { buildModel, fullThreshold, visibleNodes, type GraphModel, type GraphNode, type RawGraph } from "./model";
import { useTabName } from "../ui/tab-name";
import { showToken } from "../ui/token-text";
import { Overview } from "./overview";
import { NodePanel } from "./panel";
import { Part } from "./part";
import { MAX_MOVED, MAX_PART, partOf, readState, togglePin, writeState } from "./state";
import { SummaryView } from "./summary";
import { Toolbar } from "./toolbar";
import type { GraphView } from "./view";

export function GraphPage({ id }: { id: string }) {
  const path = `/api/graphs/${encodeURIComponent(id)}`;
  const graph = useLoad<Graph>(path);
  const isReady = graph.data?.state === "succeeded";
  const isRunning = graph.data?.state === "running";
  const whole = useLoad<RawGraph>(isReady ? `${path}/json` : null);
  const making = useMaking(isRunning ? path : null, graph.reload);
  const raw = whole.data ?? making.raw;
  const hasTargets = (graph.data?.spec?.targets.length ?? 0) > 0;
  const built = useMemo((): GraphModel | Error | null => {
    if (!raw) return null;
    try {
      return buildModel(raw, hasTargets);
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }, [raw, hasTargets]);
  useTabName(graph.data?.spec?.prompt ? `${graph.data.spec.prompt} · Graph` : null);
  const problem = graph.problem ?? whole.problem;
  if (problem) return <div class="page"><Problem problem={problem} onRetry={() => { graph.reload(); whole.reload(); }} /></div>;
  if (!graph.data) return <Loading what="the graph" />;
  if (!isReady && !isRunning) {
    return <div class="page"><Problem problem={graph.data.error_message || `This graph is ${graph.data.state}. Make a new one from the list of graphs.`} /></div>;
  }
  if (built instanceof Error) return <div class="page"><Problem problem={`The graph's file cannot be shown. ${built.message}`} /></div>;
  const waiting = isRunning ? <Waiting graph={graph.data} making={making} /> : null;
  if (!built || !raw) return isRunning ? <div class="page narrow">{waiting}</div> : <Loading what="the graph" />;
  const limit = fullThreshold(built, raw.metadata.node_threshold ?? 0);
  const isPartial = whole.data === null;
  return <Explorer key={String(isPartial)} graph={graph.data} model={built} limit={limit} isPartial={isPartial} waiting={waiting} />;
}

/** How far a graph is, and a way to stop it. */
function Waiting({ graph, making }: { graph: Graph; making: Making }) {
  const [problem, setProblem] = useState<string | null>(null);
  const { progress } = making;
  const cancel = () => post(`/api/graphs/${encodeURIComponent(idOf(graph.name))}/cancel`).catch((error: unknown) => setProblem(toApiError(error).message));
  return (
    <section class="waiting" aria-label="Graph being made">
      <div class="row">
        <p><b class="mono">{graph.spec?.prompt}</b>{" "}
          <span class="note">{progress?.stage || "waiting for the attribution service"}{progress && progress.total > 0 ? ` · ${count(progress.completed)} of ${count(progress.total)} ${progress.unit}` : ""}{making.raw ? " · the graph so far stands below" : ""}</span></p>
        <button type="button" class="button small" onClick={() => void cancel()}>Cancel</button>
      </div>
      <ProgressBar done={progress?.completed ?? 0} total={progress?.total ?? 0} label="Progress of the graph" />
      {problem ?? making.problem ? <Problem problem={(problem ?? making.problem)!} /> : null}
    </section>
  );
}

interface ExplorerProps {
  graph: Graph;
  model: GraphModel;
  limit: number;
  /** Whether the file is that of a graph that is not complete. */
  isPartial: boolean;
  /** Stands above a graph that is still being made. */
  waiting: ComponentChildren;
}

function Explorer({ graph, model, limit, isPartial, waiting }: ExplorerProps) {
  const graphId = idOf(graph.name);
  // A graph in the making has no end of the slider yet: everything that is there is shown.
  const first = isPartial ? 1 : limit;
  const { state, change, undo, redo, load, canUndo, canRedo } = useHistory(() => readState(location.hash, first));
  const [interventions, setInterventions] = useState(graph.interventions);
  const [path, setPath] = useState<string[]>([]);
  const view = useRef<GraphView | null>(null);
  useEffect(() => {
    // Browsers allow few changes of the address a second; a slider makes many.
    const timer = window.setTimeout(() => history.replaceState(null, "", location.pathname + writeState(state, first)), 200);
    return () => window.clearTimeout(timer);
  }, [state, first]);
  useEffect(() => {
    const onHash = () => load(readState(location.hash, first));
    window.addEventListener("hashchange", onHash);
    return () => window.removeEventListener("hashchange", onHash);
  }, [load, first]);
  useUndoKeys(undo, redo);

  const { labels, problem: labelProblem, note: labelsNote, reload: reloadLabels, put } = useGraphLabels(isPartial ? null : graphId, model);
  const selected = state.selected ? model.byId.get(state.selected) ?? null : null;
  const byIds = (ids: string[]) => ids.map((id) => model.byId.get(id)).filter((node): node is GraphNode => node !== undefined);
  const partIds = useMemo(() => partOf(state), [state.pinned, state.groups]);
  // A path stays while one walks along it, and goes with the selection.
  useEffect(() => { if (!selected) setPath((before) => (before.length > 0 ? [] : before)); }, [selected]);
  const part = useMemo(() => byIds(partIds), [model, partIds]);
  const pinned = useMemo(() => byIds(state.pinned), [model, state.pinned]);
  const groups = useMemo(
    () => state.groups.map((group) => ({ name: group.name, nodes: byIds(group.ids) })).filter((group) => group.nodes.length > 0),
    [model, state.groups],
  );
  const pathNodes = useMemo(() => path.map((id) => model.byId.get(id) ?? null), [model, path]);
  const scored = usePartScore(graphId, isPartial ? [] : partIds);
  const visible = useMemo(() => {
    const wanted = new Set([...partIds, ...path]);
    if (state.selected) wanted.add(state.selected);
    return visibleNodes(model, state, wanted);
  }, [model, state.threshold, state.showErrors, state.maxPositions, partIds, path, state.selected]);

  const select = (node: GraphNode | null) => change({ selected: node?.id ?? null });
  const go = (node: GraphNode) => {
    change({ selected: node.id, view: "graph" });
    // The drawing may have to come back first.
    requestAnimationFrame(() => view.current?.focusNode(node));
  };
  const pin = (node: GraphNode) => change((before) => togglePin(before, node.id));
  const move = (node: GraphNode, place: [number, number]) => change((before) => {
    const entries = Object.entries(before.moved).filter(([id]) => id !== node.id);
    return { moved: Object.fromEntries([...entries, [node.id, place] as const].slice(-MAX_MOVED)) };
  });
  const pinAll = (ids: string[]) => change((before) => {
    const held = new Set(partOf(before));
    return { pinned: [...before.pinned, ...ids.filter((id) => !held.has(id))].slice(0, MAX_PART) };
  });
  const measured = (result: InterventionResult) => setInterventions((before) => [...before, result]);
  return (
    <div class="explorer">
      {waiting}
      <Head graph={graph} model={model} />
      <Toolbar model={model} labels={labels} state={state} visible={visible} limit={limit} onChange={change} onGo={go} graphId={graphId} isPartial={isPartial}
        undo={canUndo ? undo : null} redo={canRedo ? redo : null} address={() => location.origin + location.pathname + writeState(state, first)} />
      {labelProblem ? <Problem problem={labelProblem} onRetry={reloadLabels} /> : null}
      {labelsNote ? <p class="note">{labelsNote}</p> : null}
      {state.view === "summary" && !isPartial ? <SummaryView graphId={graphId} model={model} labels={labels} onGo={go} onTake={(taken) => change({ pinned: [], groups: taken, view: "graph", selected: null })} /> : null}
      {state.view === "compare" && !isPartial ? <CompareView graph={graph} model={model} other={state.other} onOther={(other) => change({ other })} onGo={go} /> : null}
      {state.view === "graph" || isPartial ? (
        <div class="explorer-body">
          <Drawing model={model} state={{ visible, selected, pinned, groups, moved: state.moved, path: pathNodes, numEdges: state.numEdges, labels }} onSelect={select} onPin={pin} onMove={move} onLayOut={() => change({ moved: {} })} view={view} />
          <aside class="panel" aria-label={selected ? "Selected node" : "Overview"}>
            {selected ? (
              <NodePanel key={selected.id} graph={graph} model={model} node={selected} visible={visible} part={part} isPinned={partIds.includes(selected.id)} isPartial={isPartial}
                onGo={go} onPin={pin} onClose={() => select(null)} onMeasured={measured} onShowPath={setPath} onPinAll={pinAll} onLabel={put} />
            ) : (
              <Overview graph={graph} model={model} visible={visible} interventions={interventions} onGo={go}>
                {partIds.length > 0 ? <Part graph={graph} model={model} labels={labels} state={state} scored={scored} isPartial={isPartial} onChange={change} onGo={go} onMeasured={measured} /> : null}
              </Overview>
            )}
          </aside>
        </div>
      ) : null}
      <p class="visually-hidden" role="status">{selected ? `Selected ${selected.label}, ${percent(selected.influence)} influence` : ""}</p>
    </div>
  );
}

/** The prompt and the figures of the whole graph. */
function Head({ graph, model }: { graph: Graph; model: GraphModel }) {
  const statistics = graph.state === "succeeded" ? graph.statistics : null;
  return (
    <header class="explorer-head">
      <div>
        <h1 class="prompt" aria-label={model.prompt}>
          {/* A token without text has its character at a token beside it. */}
          {model.tokens.map((token, i) => token && <span key={i} class="prompt-token">{showToken(token)}</span>)}
        </h1>
        <p class="note">{idOf(graph.spec?.model ?? "")} · <a href={searchPath(idOf(graph.spec?.transcoder ?? ""))} title="Search its features">{idOf(graph.spec?.transcoder ?? "")}</a></p>
      </div>
      {statistics ? (
        <dl class="stats">
          <Stat label="replacement" value={statistics.replacement_score.toFixed(3)} title="Influence that comes from tokens and not from errors, whole graph" />
          <Stat label="completeness" value={statistics.completeness_score.toFixed(3)} title="Share of inputs that are not errors, weighted by influence, whole graph" />
          <Stat label="active features" value={count(statistics.num_features)} />
          <Stat label="whole graph" value={`${count(statistics.num_nodes)} nodes`} title={`${count(statistics.num_edges)} edges before pruning; conservation error ${statistics.conservation_error.toExponential(1)}`} />
          <Stat label="computed in" value={seconds(statistics.seconds)} title={statistics.stage_seconds.map((stage) => `${stage.stage} ${seconds(stage.seconds)}`).join(", ")} />
        </dl>
      ) : null}
    </header>
  );
}

/** Ctrl or Command and Z undoes, with Shift it does again; a text that is being written keeps its own. */
function useUndoKeys(undo: () => void, redo: () => void): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const { target } = event;
      const isText = target instanceof HTMLTextAreaElement || (target instanceof HTMLInputElement && ["text", "number"].includes(target.type));
      if (isText || !(event.ctrlKey || event.metaKey) || event.altKey) return;
      const key = event.key.toLowerCase();
      if (key === "z" && !event.shiftKey) undo();
      else if ((key === "z" && event.shiftKey) || key === "y") redo();
      else return;
      event.preventDefault();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, [undo, redo]);
}
