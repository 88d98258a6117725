/** One graph: what it explains above, the drawing in the middle, what is known of the chosen node beside it. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { follow } from "../api";
import { count, percent, seconds } from "../format";
import { idOf, type Graph, type Progress } from "../types";
import { useLoad } from "../ui/load";
import { Loading, Problem, ProgressBar, Stat, StateBadge } from "../ui/parts";
import { Drawing } from "./drawing";
import { buildModel, fullThreshold, showToken, visibleNodes, type GraphModel, type GraphNode, type RawGraph } from "./model";
import { Overview } from "./overview";
import { NodePanel } from "./panel";
import { readState, writeState, type PageState } from "./state";
import { Toolbar } from "./toolbar";
import type { GraphView } from "./view";

export function GraphPage({ id }: { id: string }) {
  const graph = useLoad<Graph>(`/api/graphs/${encodeURIComponent(id)}`);
  const isReady = graph.data?.state === "succeeded";
  const raw = useLoad<RawGraph>(isReady ? `/api/graphs/${encodeURIComponent(id)}/json` : null);
  const built = useMemo((): GraphModel | Error | null => {
    if (!raw.data) return null;
    try {
      return buildModel(raw.data);
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }, [raw.data]);
  const problem = graph.problem ?? raw.problem;
  if (problem) return <div class="page"><Problem problem={problem} onRetry={() => { graph.reload(); raw.reload(); }} /></div>;
  if (!graph.data) return <Loading what="the graph" />;
  if (graph.data.state === "running") return <Waiting graph={graph.data} onDone={graph.reload} />;
  if (!isReady) {
    return <div class="page"><Problem problem={graph.data.error_message || `This graph is ${graph.data.state}. Make a new one from the list of graphs.`} /></div>;
  }
  if (built instanceof Error) return <div class="page"><Problem problem={`The graph's file cannot be shown. ${built.message}`} /></div>;
  if (!built || !raw.data) return <Loading what="the graph" />;
  return <Explorer graph={graph.data} model={built} limit={fullThreshold(built, raw.data.metadata.node_threshold ?? 0)} />;
}

function Waiting({ graph, onDone }: { graph: Graph; onDone: () => void }) {
  const [progress, setProgress] = useState<Progress | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => follow(`/api/graphs/${encodeURIComponent(idOf(graph.name))}/events`, {
    progress: (data) => setProgress(data as Progress),
    graph: (data) => { if ((data as Graph).state !== "running") onDone(); },
  }, setProblem), [graph.name, onDone]);
  return (
    <div class="page narrow">
      <h1 class="mono">{graph.spec?.prompt}</h1>
      <p class="note"><StateBadge state="running" /> {progress?.stage || "waiting for the attribution service"}</p>
      <ProgressBar done={progress?.completed ?? 0} total={progress?.total ?? 0} label="Progress of the graph" />
      {progress && progress.total > 0 ? <p class="note">{count(progress.completed)} of {count(progress.total)} {progress.unit}</p> : null}
      {problem ? <Problem problem={problem} /> : null}
    </div>
  );
}

function Explorer({ graph, model, limit }: { graph: Graph; model: GraphModel; limit: number }) {
  const [state, setState] = useState<PageState>(() => readState(location.hash, limit));
  const [interventions, setInterventions] = useState(graph.interventions);
  const view = useRef<GraphView | null>(null);
  const change = (part: Partial<PageState>) => setState((before) => ({ ...before, ...part }));
  useEffect(() => {
    // Browsers allow few changes of the address a second; a slider makes many.
    const timer = window.setTimeout(() => history.replaceState(null, "", location.pathname + writeState(state, limit)), 200);
    return () => window.clearTimeout(timer);
  }, [state, limit]);

  const selected = state.selected ? model.byId.get(state.selected) ?? null : null;
  const pinned = useMemo(() => state.pinned.map((id) => model.byId.get(id)).filter((node): node is GraphNode => node !== undefined), [model, state.pinned]);
  const visible = useMemo(() => {
    const wanted = new Set(state.pinned);
    if (state.selected) wanted.add(state.selected);
    return visibleNodes(model, state.threshold, state.showErrors, wanted);
  }, [model, state.threshold, state.showErrors, state.pinned, state.selected]);

  const select = (node: GraphNode | null) => change({ selected: node?.id ?? null });
  const go = (node: GraphNode) => {
    select(node);
    view.current?.focusNode(node);
  };
  const pin = (node: GraphNode) => setState((before) => ({
    ...before,
    pinned: before.pinned.includes(node.id) ? before.pinned.filter((id) => id !== node.id) : [...before.pinned, node.id],
  }));
  const statistics = graph.statistics;
  return (
    <div class="explorer">
      <header class="explorer-head">
        <div>
          <h1 class="prompt" aria-label={model.prompt}>
            {model.tokens.map((token, i) => <span key={i} class="prompt-token">{showToken(token)}</span>)}
          </h1>
          <p class="note">{idOf(graph.spec?.model ?? "")} · {idOf(graph.spec?.transcoder ?? "")}</p>
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
      <Toolbar model={model} state={state} visible={visible} limit={limit} onChange={change} onGo={go} view={view} graphId={idOf(graph.name)} />
      <div class="explorer-body">
        <Drawing model={model} state={{ visible, selected, pinned, numEdges: state.numEdges }} onSelect={select} onPin={pin} view={view} />
        <aside class="panel" aria-label={selected ? "Selected node" : "Overview"}>
          {selected ? (
            <NodePanel key={selected.id} graph={graph} model={model} node={selected} visible={visible} isPinned={state.pinned.includes(selected.id)}
              onGo={go} onPin={pin} onClose={() => select(null)} onMeasured={(result) => setInterventions((before) => [...before, result])} />
          ) : (
            <Overview model={model} visible={visible} pinned={pinned} interventions={interventions} onGo={go} onPin={pin} />
          )}
        </aside>
      </div>
      <p class="visually-hidden" role="status">{selected ? `Selected ${selected.label}, ${percent(selected.influence)} influence` : ""}</p>
    </div>
  );
}
