/** The chosen node: what it is, what flows through it, what its feature writes, and what happens without it. */
import { figure, percent, signed } from "../format";
import { LabelPart } from "../features/label";
import { featurePath } from "../features/types";
import { standingOf } from "../features/standing";
import { NOTHING, writeLab } from "../lab/state";
import { OriginMark, type StandingLabel } from "../ui/origin";
import { idOf, type Feature, type FeatureLogit, type Graph, type InterventionResult } from "../types";
import { useLoad } from "../ui/load";
import { Loading, Problem, Stat } from "../ui/parts";
import { EdgeLists } from "./lists";
import type { GraphModel, GraphNode } from "./model";
import { showToken } from "../ui/token-text";
import { Paths } from "./paths";
import { Steer } from "./steer";
import { ExplainFeature } from "./targets";

interface Props {
  graph: Graph;
  model: GraphModel;
  node: GraphNode;
  visible: Uint8Array;
  part: GraphNode[];
  isPinned: boolean;
  /** While the graph is being made, nothing can be asked of it yet. */
  isPartial: boolean;
  onGo: (node: GraphNode) => void;
  onPin: (node: GraphNode) => void;
  onClose: () => void;
  onMeasured: (result: InterventionResult) => void;
  onShowPath: (ids: string[]) => void;
  onPinAll: (ids: string[]) => void;
  onLabel: (layer: number, index: number, label: StandingLabel | null) => void;
}

const KIND_NAMES = { feature: "Feature", error: "Reconstruction error", token: "Token", logit: "Logit", bias: "Bias" };

export function NodePanel(props: Props) {
  const { graph, model, node } = props;
  return (
    <>
      <header class="panel-head">
        <p class="eyebrow"><i class={`mark is-${node.kind}`} aria-hidden="true" />{KIND_NAMES[node.kind]}</p>
        <div class="panel-actions">
          <button type="button" class="button small" aria-pressed={props.isPinned} onClick={() => props.onPin(node)}>{props.isPinned ? "Unpin" : "Pin"}</button>
          <button type="button" class="button small quiet" aria-label="Close the panel" onClick={props.onClose}>✕</button>
        </div>
        <h2 data-stat="node">{node.label}</h2>
        {node.kind === "feature" ? <FeatureLink graph={graph} node={node} /> : null}
        <dl class="stats">
          {node.layer >= 0 && node.kind !== "logit" ? <Stat label="layer" value={String(node.layer)} /> : null}
          <Stat label="position" value={`${node.position} ${showToken(model.tokens[node.position] ?? "")}`} />
          {node.kind === "logit" ? <Stat label={node.isLikely ? "probability" : "weight"} value={node.isLikely ? percent(node.probability) : figure(node.probability)} /> : <Stat label="influence" value={percent(node.influence, 2)} title="Influence on the explained logits, over the edges of this file" />}
          {node.kind === "feature" && node.activation !== null ? <Stat label="activation" id="activation" value={figure(node.activation)} /> : null}
        </dl>
      </header>
      {node.kind === "feature" && !props.isPartial ? <NodeLabel key={`label ${node.layer}-${node.feature}`} graph={graph} node={node} onLabel={props.onLabel} /> : null}
      {node.kind === "feature" ? <OnPrompt model={model} node={node} onGo={props.onGo} /> : null}
      <EdgeLists key={node.id} graphId={props.isPartial ? null : idOf(graph.name)} model={model} node={node} visible={props.visible} onGo={props.onGo} />
      {props.isPartial ? null : <Paths graphId={idOf(graph.name)} model={model} node={node} part={props.part} onGo={props.onGo} onShow={props.onShowPath} onPin={props.onPinAll} />}
      {node.kind === "feature" && !props.isPartial ? <Steer key={node.id} graph={graph} model={model} nodes={[node]} title="Intervene" note="change it in the model and measure" onMeasured={props.onMeasured} onGo={props.onGo} /> : null}
      {node.kind === "feature" ? <FeatureDetails graph={graph} node={node} /> : null}
      {node.kind === "feature" ? <ExplainFeature graph={graph} node={node} /> : null}
    </>
  );
}

/** Where a feature is, who said what it is called, and the way to all that is known of it. */
function FeatureLink({ graph, node }: { graph: Graph; node: GraphNode }) {
  const transcoder = idOf(graph.spec?.transcoder ?? "");
  const lab = writeLab({ ...NOTHING, transcoder, prompt: graph.spec?.prompt ?? "", pins: [{ layer: node.layer, index: node.feature, change: null, positions: [] }] });
  return (
    <p class="node-feature">
      {node.stands ? <><span class="note">{node.name}</span> <OriginMark label={node.stands} /> </> : null}
      <a href={featurePath(transcoder, node.layer, node.feature)}>Feature page</a> · <a href={`/lab${lab}`}>In the lab</a>
    </p>
  );
}

/** The label of the node's feature, to be read and changed. */
function NodeLabel({ graph, node, onLabel }: { graph: Graph; node: GraphNode; onLabel: Props["onLabel"] }) {
  return (
    <div class="node-label">
      <LabelPart transcoder={idOf(graph.spec?.transcoder ?? "")} layer={node.layer} index={node.feature} onLabel={(label) => onLabel(node.layer, node.feature, standingOf(label))} />
    </div>
  );
}

/** The feature's activation over the prompt, as far as this graph's file holds it. */
function OnPrompt({ model, node, onGo }: { model: GraphModel; node: GraphNode; onGo: (node: GraphNode) => void }) {
  const same = model.nodes.filter((other) => other.kind === "feature" && other.layer === node.layer && other.feature === node.feature);
  const at = new Map(same.map((other) => [other.position, other]));
  const most = Math.max(...same.map((other) => other.activation ?? 0), 1e-12);
  return (
    <section aria-label="Activation on the prompt">
      <h3>On the prompt <small>activation, where the graph keeps it</small></h3>
      <div class="on-prompt" data-list="on-prompt">
        {model.tokens.map((token, position) => {
          const other = at.get(position);
          if (!other) return <span key={position} class="cell">{showToken(token)}</span>;
          const value = other.activation ?? 0;
          return (
            <button key={position} type="button" class="cell is-active" aria-current={other === node ? "true" : undefined} data-node={other.id}
              title={`activation ${figure(value)}`} style={{ "--heat": String(Math.round((100 * value) / most)) }} onClick={() => onGo(other)}>
              {showToken(token)}
            </button>
          );
        })}
      </div>
    </section>
  );
}

function FeatureDetails({ graph, node }: { graph: Graph; node: GraphNode }) {
  const transcoder = idOf(graph.spec?.transcoder ?? "");
  const { data, problem, reload } = useLoad<Feature>(`/api/transcoders/${encodeURIComponent(transcoder)}/features/${node.layer}-${node.feature}`);
  if (problem) return <Problem problem={problem} onRetry={reload} />;
  if (!data) return <Loading what="the feature" />;
  const most = Math.max(...data.decoder_norms, 1e-12);
  return (
    <section aria-label="Feature" data-list="feature">
      <p class="panel-link"><a href={featurePath(transcoder, node.layer, node.feature)}>Examples, neighbours and all else about this feature</a></p>
      <h3>What it writes <small>direct effect of one unit of activation</small></h3>
      <div class="logit-columns">
        <LogitList name="Raises" logits={data.top_logits} />
        <LogitList name="Lowers" logits={data.bottom_logits} />
      </div>
      <h3>Where it writes <small>decoder norm by target layer</small></h3>
      <div class="norms" role="img" aria-label={`Decoder norms from layer ${data.layer} on: ${data.decoder_norms.map(figure).join(", ")}`}>
        {data.decoder_norms.map((norm, i) => <i key={i} title={`layer ${data.layer + i}: ${figure(norm)}`} style={{ height: `${(100 * norm) / most}%` }} />)}
      </div>
      <p class="axis"><span>L{data.layer}</span><span>L{data.layer + data.decoder_norms.length - 1}</span></p>
      <dl class="stats">
        <Stat label="encoder bias" value={figure(data.encoder_bias)} />
        {data.threshold === null ? null : <Stat label="threshold" value={figure(data.threshold)} />}
      </dl>
    </section>
  );
}

function LogitList({ name, logits }: { name: string; logits: FeatureLogit[] }) {
  return (
    <table class="compact">
      <caption>{name}</caption>
      <tbody>
        {logits.map((logit) => <tr key={logit.token_id}><th scope="row" class="mono">{showToken(logit.text)}</th><td>{signed(logit.weight)}</td></tr>)}
      </tbody>
    </table>
  );
}
