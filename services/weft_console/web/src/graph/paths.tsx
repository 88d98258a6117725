/** The strongest ways between the chosen node and another one, over all edges of the whole graph. */
import { useMemo, useState } from "preact/hooks";
import { get, type ApiError } from "../api";
import { figure, percent } from "../format";
import type { FoundPaths } from "../types";
import { toApiError } from "../ui/load";
import { Problem } from "../ui/parts";
import { nameOf, type GraphModel, type GraphNode } from "./model";
import { showToken } from "../ui/token-text";

interface Props {
  graphId: string;
  model: GraphModel;
  node: GraphNode;
  part: GraphNode[];
  onGo: (node: GraphNode) => void;
  /** Shows a path in the drawing; an empty one shows none. */
  onShow: (ids: string[]) => void;
  onPin: (ids: string[]) => void;
}

const NUM_PATHS = 8;
const STRONGEST = 12;

export function Paths({ graphId, model, node, part, onGo, onShow, onPin }: Props) {
  const others = useMemo(() => choices(model, node, part), [model, node, part]);
  const [chosen, setChosen] = useState("");
  const [found, setFound] = useState<FoundPaths | null>(null);
  const [shown, setShown] = useState(-1);
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const other = others.flatMap((group) => group.nodes).find((one) => one.id === chosen) ?? others[0]?.nodes[0];
  if (!other) return null;
  const isUp = other.row > node.row;
  const show = (paths: FoundPaths | null, place: number) => {
    setShown(place);
    onShow(paths?.paths[place]?.node_ids ?? []);
  };
  const find = async () => {
    setBusy(true);
    setProblem(null);
    const [source, target] = isUp ? [node, other] : [other, node];
    try {
      const query = new URLSearchParams({ source: source.id, target: target.id, num_paths: String(NUM_PATHS) });
      const paths = await get<FoundPaths>(`/api/graphs/${encodeURIComponent(graphId)}/paths?${query.toString()}`);
      setFound(paths);
      show(paths, 0);
    } catch (error) {
      setFound(null);
      setProblem(toApiError(error));
    }
    setBusy(false);
  };
  const most = Math.max(1e-12, ...(found?.paths ?? []).map((path) => path.strength));
  return (
    <section aria-label="Paths" data-list="paths">
      <h3>Paths <small>to or from another node, over all edges</small></h3>
      <div class="row">
        <select class="grow" aria-label="Other end" value={other.id} onChange={(event) => { setChosen(event.currentTarget.value); setFound(null); show(null, -1); }}>
          {others.map((group) => (
            <optgroup key={group.name} label={group.name}>
              {group.nodes.map((one) => <option key={one.id} value={one.id}>{one.row > node.row ? "to" : "from"} {one.label}{one.kind === "feature" ? ` at ${showToken(model.tokens[one.position] ?? "")}` : ""}</option>)}
            </optgroup>
          ))}
        </select>
        <button type="button" class="button primary small" disabled={isBusy} onClick={() => void find()}>{isBusy ? "Looking…" : "Find"}</button>
      </div>
      {problem ? <Problem problem={problem} /> : null}
      {found ? (
        <>
          <p class="note" role="status">
            {found.paths.length === 0 ? "No path leads there." : <>All paths together carry <b data-stat="total-strength">{percent(found.total_strength, 2)}</b> of the target's input.</>}
          </p>
          <ol class="paths">
            {found.paths.map((path, place) => (
              <li key={place} class={place === shown ? "is-shown" : ""}>
                <button type="button" class="bar" aria-pressed={place === shown} onClick={() => show(found, place === shown ? -1 : place)}>
                  <i style={{ width: `${(100 * path.strength) / most}%` }} aria-hidden="true" />
                  <span class="bar-name">{path.node_ids.length - 1} {path.node_ids.length === 2 ? "edge" : "edges"}{path.node_ids.length > 2 ? ` over ${path.node_ids.slice(1, -1).map((id) => nameOf(model, id)).join(", ")}` : ""}</span>
                  <span class="bar-value">{percent(path.strength, 2)}</span>
                </button>
                {place === shown ? (
                  <ol class="path-steps">
                    {path.node_ids.map((id, step) => (
                      <li key={id}>
                        <button type="button" class="chip" disabled={!model.byId.has(id)} onClick={() => { const to = model.byId.get(id); if (to) onGo(to); }}>
                          <i class={`mark is-${model.byId.get(id)?.kind ?? "feature"}`} aria-hidden="true" />{nameOf(model, id)}
                        </button>
                        {step < path.weights.length ? <span class={path.weights[step]! < 0 ? "is-negative" : "is-positive"}>{figure(path.weights[step]!)} ↓</span> : null}
                      </li>
                    ))}
                    <li><button type="button" class="button quiet small" onClick={() => onPin(path.node_ids)}>Pin this path</button></li>
                  </ol>
                ) : null}
              </li>
            ))}
          </ol>
        </>
      ) : null}
    </section>
  );
}

/** Nodes that a path from here may end at or come from: logits and tokens, then what is pinned, then the strongest features. */
function choices(model: GraphModel, node: GraphNode, part: GraphNode[]): { name: string; nodes: GraphNode[] }[] {
  const fits = (other: GraphNode) => other.row !== node.row && !(other.row > node.row && other.kind === "error");
  const pick = (name: string, nodes: GraphNode[]) => ({ name, nodes: nodes.filter(fits) });
  const logits = pick("Logits", model.nodes.filter((one) => one.kind === "logit").sort((a, b) => b.probability - a.probability));
  const tokens = pick("Tokens", node.kind === "error" ? [] : model.nodes.filter((one) => one.kind === "token" && one.position <= node.position));
  const taken = new Set(part);
  const strongest = model.nodes.filter((one) => one.kind === "feature" && !taken.has(one)).sort((a, b) => b.influence - a.influence).filter(fits).slice(0, STRONGEST);
  return [logits, tokens, pick("Pinned", part), pick("Strongest features", strongest)].filter((group) => group.nodes.length > 0);
}
