import { useEffect, useState } from "preact/hooks";
import { follow, get, post, remove, type ApiError } from "../api";
import { ago, count, seconds } from "../format";
import { emptyRow, TargetRows, targetsOf, type TargetRow } from "../graph/targets";
import { navigate } from "../routes";
import { idOf, type Graph, type Progress, type Transcoder } from "../types";
import { toApiError, useLoad } from "../ui/load";
import { Empty, Loading, PageHead, Problem, ProgressBar, StateBadge } from "../ui/parts";
import { PromptField } from "../ui/prompt-field";

interface GraphsAnswer { graphs: Graph[]; next_page_token: string }

/** Every graph, newest first, and the form that makes one. */
export function GraphsPage() {
  const first = useLoad<GraphsAnswer>("/api/graphs");
  const [more, setMore] = useState<GraphsAnswer[]>([]);
  const [making, setMaking] = useState<string[]>([]);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const pages = first.data ? [first.data, ...more] : [];
  const graphs = pages.flatMap((page) => page.graphs);
  const next = pages[pages.length - 1]?.next_page_token ?? "";
  const reload = () => { setMore([]); first.reload(); };
  const loadMore = () => get<GraphsAnswer>(`/api/graphs?page_token=${encodeURIComponent(next)}`)
    .then((page) => setMore((before) => [...before, page]), (error: unknown) => setProblem(toApiError(error)));
  const drop = (graph: Graph) => {
    if (!confirm(`Delete the graph of “${graph.spec?.prompt ?? graph.name}”? This cannot be undone.`)) return;
    remove(`/api/graphs/${encodeURIComponent(idOf(graph.name))}`).then(reload, (error: unknown) => setProblem(toApiError(error)));
  };
  const running = [...new Set([...making, ...graphs.filter((graph) => graph.state === "running").map((graph) => idOf(graph.name))])];
  return (
    <div class="page">
      <PageHead title="Graphs" note="What led the model to its next token, feature by feature." />
      <CreateForm onMade={(id) => setMaking((before) => [id, ...before])} />
      {running.map((id) => <Making key={id} id={id} onEnd={() => { setMaking((before) => before.filter((other) => other !== id)); reload(); }} />)}
      {problem ? <Problem problem={problem} /> : null}
      {first.problem ? <Problem problem={first.problem} onRetry={reload} /> : null}
      {!first.data && !first.problem ? <Loading what="graphs" /> : null}
      {first.data && graphs.length === 0 ? <Empty title="No graphs yet">Write a prompt above and choose a transcoder; a small model takes a few seconds.</Empty> : null}
      {graphs.length > 0 ? (
        <div class="scroll">
          <table class="table">
            <thead>
              <tr><th>Prompt</th><th>State</th><th class="num">Nodes kept</th><th class="num">Edges kept</th><th class="num">Replacement</th><th class="num">Completeness</th><th class="num">Time</th><th>Made</th><th><span class="visually-hidden">Actions</span></th></tr>
            </thead>
            <tbody>
              {graphs.map((graph) => <GraphRow key={graph.name} graph={graph} onDelete={() => drop(graph)} />)}
            </tbody>
          </table>
        </div>
      ) : null}
      {next ? <button type="button" class="button" onClick={() => void loadMore()}>Show more</button> : null}
    </div>
  );
}

function GraphRow({ graph, onDelete }: { graph: Graph; onDelete: () => void }) {
  const statistics = graph.state === "succeeded" ? graph.statistics : null;
  return (
    <tr>
      <td class="main-cell"><a href={`/graphs/${encodeURIComponent(idOf(graph.name))}`}><span class="mono">{graph.spec?.prompt ?? idOf(graph.name)}</span></a>
        <small>{idOf(graph.spec?.model ?? "")} · {idOf(graph.spec?.transcoder ?? "")}</small></td>
      <td title={graph.error_message}><StateBadge state={graph.state} /></td>
      <td class="num">{statistics ? count(statistics.num_nodes_kept) : "–"}</td>
      <td class="num">{statistics ? count(statistics.num_edges_kept) : "–"}</td>
      <td class="num">{statistics ? statistics.replacement_score.toFixed(3) : "–"}</td>
      <td class="num">{statistics ? statistics.completeness_score.toFixed(3) : "–"}</td>
      <td class="num">{statistics ? seconds(statistics.seconds) : "–"}</td>
      <td class="nowrap">{ago(graph.create_time)}</td>
      <td><button type="button" class="button quiet small" aria-label={`Delete the graph of ${graph.spec?.prompt ?? graph.name}`} onClick={onDelete}>Delete</button></td>
    </tr>
  );
}

function CreateForm({ onMade }: { onMade: (id: string) => void }) {
  const { data, problem, reload } = useLoad<{ transcoders: Transcoder[] }>("/api/transcoders");
  const [prompt, setPrompt] = useState("");
  const [chosen, setChosen] = useState("");
  const [maxLogits, setMaxLogits] = useState(10);
  const [rows, setRows] = useState<TargetRow[]>([]);
  const [position, setPosition] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [refusal, setRefusal] = useState<ApiError | null>(null);
  const transcoders = data?.transcoders ?? [];
  const name = chosen || transcoders[0]?.name || "";
  const submit = async (event: Event) => {
    event.preventDefault();
    const transcoder = transcoders.find((one) => one.name === name);
    if (!transcoder) return;
    setBusy(true);
    setRefusal(null);
    try {
      const graph = await post<{ graph_id: string }>("/api/graphs", {
        prompt, transcoder: transcoder.name, model: transcoder.model, max_logits: maxLogits,
        targets: targetsOf(rows), position: position === "" ? null : Number(position),
      });
      setPrompt("");
      onMade(graph.graph_id);
    } catch (error) {
      setRefusal(toApiError(error));
    }
    setBusy(false);
  };
  if (problem) return <Problem problem={problem} onRetry={reload} />;
  return (
    <form class="card create" aria-label="Make a graph" onSubmit={(event) => void submit(event)}>
      <PromptField name="Prompt" value={prompt} onInput={setPrompt} />
      <label class="field">
        <span>Transcoder</span>
        <select required value={name} disabled={transcoders.length === 0} onChange={(event) => setChosen(event.currentTarget.value)}>
          {transcoders.map((one) => <option key={one.name} value={one.name}>{idOf(one.name)}</option>)}
          {data && transcoders.length === 0 ? <option value="">none yet: export one from a run</option> : null}
        </select>
      </label>
      <label class="field short">
        <span>Logits</span>
        <input type="number" min={1} max={100} value={maxLogits} disabled={rows.length > 0} onInput={(event) => setMaxLogits(Number(event.currentTarget.value))} />
      </label>
      <button type="submit" class="button primary" disabled={isBusy || transcoders.length === 0}>{isBusy ? "Asking…" : "Explain"}</button>
      <details class="create-more" onToggle={(event) => { if (!event.currentTarget.open) { setRows([]); setPosition(""); } }}>
        <summary>Choose what to explain</summary>
        <div class="create-targets">
          <label class="field-inline">
            <span>Explain</span>
            <select value={rows.length > 0 ? "own" : "likely"} onChange={(event) => setRows(event.currentTarget.value === "own" ? [emptyRow()] : [])}>
              <option value="likely">the most likely tokens</option>
              <option value="own">targets of my own</option>
            </select>
          </label>
          {rows.length > 0 ? <TargetRows rows={rows} onChange={setRows} /> : null}
          <label class="field-inline" title="What follows it in the prompt plays no part">
            <span>after position</span>
            <input type="number" min={0} step={1} placeholder="the last" aria-label="Position whose next token is explained" value={position} onInput={(event) => setPosition(event.currentTarget.value)} />
          </label>
        </div>
      </details>
      {refusal ? <Problem problem={refusal} /> : null}
    </form>
  );
}

/** A graph on its way: its stages, how far it is, and a way to stop it. */
function Making({ id, onEnd }: { id: string; onEnd: () => void }) {
  const [progress, setProgress] = useState<Progress | null>(null);
  const [graph, setGraph] = useState<Graph | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const path = `/api/graphs/${encodeURIComponent(id)}`;
  useEffect(() => follow(`${path}/events`, {
    progress: (data) => setProgress(data as Progress),
    graph: (data) => {
      const news = data as Graph;
      setGraph(news);
      if (news.state === "succeeded") {
        onEnd();
        navigate(`/graphs/${encodeURIComponent(id)}`);
      } else if (news.state === "failed") setProblem(news.error_message || "The graph failed.");
      else if (news.state === "cancelled") onEnd();
    },
  }, setProblem), [path]);
  const done = progress?.completed ?? 0;
  const total = progress?.total ?? 0;
  return (
    <section class="card making" aria-label="Graph being made" data-making={id}>
      <div class="row">
        <p><b class="mono">{graph?.spec?.prompt ?? id}</b> <span class="note">{progress?.stage || "waiting"}{total > 0 ? ` · ${count(done)} of ${count(total)} ${progress?.unit ?? ""}` : ""}</span></p>
        {problem ? <button type="button" class="button small" onClick={onEnd}>Dismiss</button> : (
          <button type="button" class="button quiet small" onClick={() => void post(`${path}/cancel`).catch((error: unknown) => setProblem(toApiError(error).message))}>Cancel</button>
        )}
      </div>
      <ProgressBar done={done} total={total} label="Progress of the graph" />
      {problem ? <Problem problem={problem} /> : null}
    </section>
  );
}
