/** What a graph explains: likely tokens, or what a person asks for. */
import type { TargetedInputEvent } from "preact";
import { useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { navigate } from "../routes";
import type { Graph, NewTarget } from "../types";
import { toApiError } from "../ui/load";
import { Problem } from "../ui/parts";
import type { GraphNode } from "./model";

/** A row of the editor while it is being written. */
export interface TargetRow {
  kind: "token" | "difference" | "feature";
  first: string;
  second: string;
}

export const MAX_ROWS = 20;

export function emptyRow(kind: TargetRow["kind"] = "token"): TargetRow {
  return { kind, first: "", second: "" };
}

/** Rows as the backend takes them. Texts keep their spaces: they are part of a token. */
export function targetsOf(rows: TargetRow[]): NewTarget[] {
  return rows.map(({ kind, first, second }) => {
    if (kind === "token") return { text: first };
    if (kind === "difference") return { plus: first, minus: second };
    return { layer: Number(first), index: Number(second) };
  });
}

/** Rows of targets that a person writes. */
export function TargetRows({ rows, onChange }: { rows: TargetRow[]; onChange: (rows: TargetRow[]) => void }) {
  const set = (place: number, part: Partial<TargetRow>) => onChange(rows.map((row, at) => (at === place ? { ...row, ...part } : row)));
  return (
    <div class="targets">
      {rows.map((row, place) => {
        const isFeature = row.kind === "feature";
        const field = (key: "first" | "second", name: string) => {
          const common = {
            class: "mono", required: true, placeholder: name, "aria-label": `${name} of target ${place + 1}`, value: row[key],
            onInput: (event: TargetedInputEvent<HTMLInputElement>) => set(place, { [key]: event.currentTarget.value }),
          };
          return isFeature ? <input type="number" min={0} step={1} {...common} /> : <input type="text" maxLength={200} {...common} />;
        };
        return (
          <div class="row target" key={place}>
            <select aria-label={`Kind of target ${place + 1}`} value={row.kind} onChange={(event) => set(place, emptyRow(event.currentTarget.value as TargetRow["kind"]))}>
              <option value="token">token</option>
              <option value="difference">difference</option>
              <option value="feature">feature</option>
            </select>
            {row.kind === "token" ? field("first", "Token") : null}
            {row.kind === "difference" ? <>{field("first", "Token")}<span aria-hidden="true">−</span>{field("second", "Token to take off")}</> : null}
            {isFeature ? <>{field("first", "Layer")}{field("second", "Index")}</> : null}
            <button type="button" class="button quiet small" aria-label={`Remove target ${place + 1}`} disabled={rows.length === 1} onClick={() => onChange(rows.filter((_, at) => at !== place))}>✕</button>
          </div>
        );
      })}
      <p class="row note">
        <button type="button" class="button quiet small" disabled={rows.length >= MAX_ROWS} onClick={() => onChange([...rows, emptyRow()])}>Add a target</button>
        <span>Tokens as they follow the prompt, mostly with a space first.</span>
      </p>
    </div>
  );
}

/** Asks for another graph of the same prompt and opens it. */
function useExplain(graph: Graph) {
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const explain = async (targets: NewTarget[], position: number | null = graph.spec?.position ?? null) => {
    const { spec } = graph;
    if (!spec) return;
    setBusy(true);
    setProblem(null);
    try {
      const made = await post<{ graph_id: string }>("/api/graphs", {
        prompt: spec.prompt, model: spec.model, transcoder: spec.transcoder, max_logits: spec.max_logits,
        node_threshold: spec.node_threshold, edge_threshold: spec.edge_threshold, targets, position,
      });
      navigate(`/graphs/${encodeURIComponent(made.graph_id)}`);
    } catch (error) {
      setProblem(toApiError(error));
    }
    setBusy(false);
  };
  return { isBusy, problem, explain };
}

/** From the graph's page: a difference of two of its logits, or any target. */
export function ExplainOther({ graph, logits }: { graph: Graph; logits: GraphNode[] }) {
  const tokens = logits.filter((node) => node.isLikely);
  const [plus, setPlus] = useState(0);
  const [minus, setMinus] = useState(1);
  const [rows, setRows] = useState<TargetRow[]>([emptyRow()]);
  const { isBusy, problem, explain } = useExplain(graph);
  const idOfToken = (place: number) => Number(tokens[place]?.id.split("_")[1] ?? NaN);
  const choose = (name: string, value: number, onChange: (place: number) => void) => (
    <select class="mono" aria-label={name} value={value} onChange={(event) => onChange(Number(event.currentTarget.value))}>
      {tokens.map((node, place) => <option key={node.id} value={place}>{node.label}</option>)}
    </select>
  );
  return (
    <details class="explain" data-list="explain">
      <summary>Explain something else of this prompt</summary>
      {tokens.length > 1 ? (
        <div class="row">
          {choose("Logit that counts", plus, setPlus)}
          <span aria-hidden="true">−</span>
          {choose("Logit to take off", minus, setMinus)}
          <button type="button" class="button small" disabled={isBusy || plus === minus} onClick={() => void explain([{ plus: idOfToken(plus), minus: idOfToken(minus) }])}>Explain the difference</button>
        </div>
      ) : null}
      <form onSubmit={(event) => { event.preventDefault(); void explain(targetsOf(rows)); }}>
        <TargetRows rows={rows} onChange={setRows} />
        <button type="submit" class="button small" disabled={isBusy}>{isBusy ? "Asking…" : "Explain these"}</button>
      </form>
      {problem ? <Problem problem={problem} /> : null}
    </details>
  );
}

/** What makes this feature active where it stands. */
export function ExplainFeature({ graph, node }: { graph: Graph; node: GraphNode }) {
  const { isBusy, problem, explain } = useExplain(graph);
  return (
    <section aria-label="Explain this feature">
      <button type="button" class="button small" disabled={isBusy} onClick={() => void explain([{ layer: node.layer, index: node.feature }], node.position)}>
        {isBusy ? "Asking…" : "Make a graph that explains this feature"}
      </button>
      {problem ? <Problem problem={problem} /> : null}
    </section>
  );
}
