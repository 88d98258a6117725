/** What of an edge goes through which attention head. */
import { useState } from "preact/hooks";
import { signedPercent } from "../format";
import type { SplitEdge } from "../types";
import { useLoad } from "../ui/load";
import { Loading, Problem } from "../ui/parts";
import { Attention } from "./attention";
import type { GraphModel, GraphNode } from "./model";
import { showToken } from "../ui/token-text";

interface Props {
  graphId: string;
  model: GraphModel;
  source: string;
  target: string;
  onGo: (node: GraphNode) => void;
}

export function Heads({ graphId, model, source, target, onGo }: Props) {
  const [asked, setAsked] = useState<string | null>(null);
  const query = model.byId.get(target)?.position;
  const ends = new URLSearchParams({ source, target });
  const { data, problem, reload } = useLoad<SplitEdge>(`/api/graphs/${encodeURIComponent(graphId)}/heads?${ends.toString()}`);
  if (problem) return <Problem problem={problem} onRetry={reload} />;
  if (!data) return <Loading what="the heads" />;
  const parts = [
    ...data.parts.map((part) => ({
      name: `L${part.layer} head ${part.head} reads ${showToken(model.tokens[part.position] ?? "")}`, value: part.value, title: `the last head on the way; position ${part.position}`, head: part,
    })),
    { name: "through no head", value: data.direct, title: "the source writes where the target reads", head: null },
    { name: "other heads", value: data.rest, title: "parts that are not listed", head: null },
  ];
  const scale = Math.max(1e-12, ...parts.map((part) => Math.abs(part.value)));
  return (
    <ul class="heads" data-list="heads">
      {parts.map((part) => (
        <li key={part.name} title={part.title}>
          <span class="edge-bar" aria-hidden="true"><i class={part.value < 0 ? "is-negative" : "is-positive"} style={{ width: `${(100 * Math.abs(part.value)) / scale}%` }} /></span>
          <span class={`head-share ${part.value < 0 ? "is-negative" : "is-positive"}`}>{data.total === 0 ? "–" : signedPercent(part.value / Math.abs(data.total))}</span>
          <span class="edge-name">{part.name}</span>
          {part.head && query !== undefined ? (
            <>
              <button type="button" class="edge-split" aria-expanded={asked === part.name} aria-label={`Why ${part.name}`} title="Why it attends there"
                onClick={() => setAsked(asked === part.name ? null : part.name)}>{asked === part.name ? "−" : "?"}</button>
              {asked === part.name ? <Attention graphId={graphId} model={model} layer={part.head.layer} head={part.head.head} query={query} keyed={part.head.position} onGo={onGo} /> : null}
            </>
          ) : null}
        </li>
      ))}
    </ul>
  );
}
