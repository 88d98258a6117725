"""Between protobuf messages and what is read of finished graphs."""

import numpy as np

from weft.attribution.v1 import reading_pb2
from weft_attribution.core.comparing import ComparedNode, Comparison
from weft_attribution.core.graph_json import node_id
from weft_attribution.core.influence import Scores
from weft_attribution.core.open_graphs import OpenGraph
from weft_attribution.core.paths import FoundPaths
from weft_attribution.core.reading import Summary
from weft_attribution.core.subgraphs import SubgraphScores
from weft_common.errors import InvalidArgumentError

__all__ = ["comparison_to_proto", "likeness_from_proto", "paths_to_proto", "score_to_proto", "summary_to_proto"]

_LIKENESS = {
    reading_pb2.LIKENESS_UNSPECIFIED: "both",
    reading_pb2.LIKENESS_BOTH: "both",
    reading_pb2.LIKENESS_DECODER: "decoder",
    reading_pb2.LIKENESS_GRAPH: "graph",
}
_KINDS = {
    "features": reading_pb2.SUPERNODE_KIND_FEATURES,
    "tokens": reading_pb2.SUPERNODE_KIND_TOKENS,
    "errors": reading_pb2.SUPERNODE_KIND_ERRORS,
    "logits": reading_pb2.SUPERNODE_KIND_LOGITS,
    "others": reading_pb2.SUPERNODE_KIND_OTHERS,
}
_NAMED = ("features", "tokens", "logits")


def likeness_from_proto(likeness: int) -> str:
    """What makes features alike. InvalidArgumentError where it is unknown here."""
    if likeness not in _LIKENESS:
        raise InvalidArgumentError(
            f"likeness is {likeness}, which is not known here; give both, decoder or graph", field="likeness"
        )
    return _LIKENESS[likeness]  # type: ignore[index]


def _scores(scores: Scores) -> reading_pb2.GraphScores:
    return reading_pb2.GraphScores(replacement_score=scores.replacement, completeness_score=scores.completeness)


def score_to_proto(whole: Scores, part: SubgraphScores) -> reading_pb2.ScoreSubgraphResponse:
    """Scores of a graph and of a part of it."""
    return reading_pb2.ScoreSubgraphResponse(
        whole=_scores(whole),
        subgraph=_scores(part.scores),
        influence_share=part.influence_share,
        num_features=part.num_features,
    )


def paths_to_proto(opened: OpenGraph, found: FoundPaths) -> reading_pb2.FindPathsResponse:
    """Paths by the ids of their nodes."""
    nodes = opened.graph.nodes
    return reading_pb2.FindPathsResponse(
        paths=[
            reading_pb2.GraphPath(
                node_ids=[node_id(nodes, node) for node in path.nodes], weights=path.weights, strength=path.strength
            )
            for path in found.paths
        ],
        total_strength=found.total,
    )


def summary_to_proto(opened: OpenGraph, summary: Summary) -> reading_pb2.SummarizeGraphResponse:
    """Groups and the flows between them."""
    nodes, influence = opened.graph.nodes, opened.influence
    supernodes = []
    for labelled in summary.groups:
        group = labelled.group
        found = reading_pb2.Supernode(
            kind=_KINDS[group.kind],
            label=labelled.label,
            node_ids=[node_id(nodes, int(node)) for node in group.nodes] if group.kind in _NAMED else (),
            num_nodes=len(group.nodes),
            influence=float(influence[group.nodes].sum()),
            raised_tokens=labelled.raised_tokens,
        )
        if group.kind == "features":
            layers = np.asarray(nodes.layer_N)[group.nodes]
            found.first_layer, found.last_layer = int(layers.min()), int(layers.max())
        supernodes.append(found)
    pairs = np.argwhere(summary.flow_GG > 0)
    order = np.argsort(-summary.flow_GG[pairs[:, 0], pairs[:, 1]], kind="stable")
    return reading_pb2.SummarizeGraphResponse(
        supernodes=supernodes,
        flows=[
            reading_pb2.Flow(
                source=source,
                target=target,
                influence=float(summary.flow_GG[source, target]),
                net=float(summary.net_GG[source, target]),
            )
            for source, target in pairs[order].tolist()
        ],
        influence_share=summary.influence_share,
        flow_share=summary.flow_share,
        whole=_scores(summary.whole),
        summary=_scores(summary.part),
    )


def comparison_to_proto(
    first: OpenGraph, other: OpenGraph, comparison: Comparison
) -> reading_pb2.CompareGraphsResponse:
    """Two graphs side by side."""
    return reading_pb2.CompareGraphsResponse(
        positions=comparison.positions,
        overlap=comparison.overlap,
        num_common=comparison.num_common,
        num_first_only=comparison.num_first_only,
        num_other_only=comparison.num_other_only,
        nodes=[_compared(first, other, node) for node in comparison.nodes],
        edges=[
            reading_pb2.ComparedEdge(
                source=edge.source,
                target=edge.target,
                weight=edge.weight,
                other_weight=edge.other_weight,
                influence=edge.influence,
                other_influence=edge.other_influence,
            )
            for edge in comparison.edges
        ],
    )


def _compared(first: OpenGraph, other: OpenGraph, node: ComparedNode) -> reading_pb2.ComparedNode:
    return reading_pb2.ComparedNode(
        node_id=node_id(first.graph.nodes, node.node) if node.node >= 0 else "",
        other_node_id=node_id(other.graph.nodes, node.other) if node.other >= 0 else "",
        influence=node.influence,
        other_influence=node.other_influence,
        activation=_activation(first, node.node),
        other_activation=_activation(other, node.other),
    )


def _activation(opened: OpenGraph, node: int) -> float:
    is_feature = 0 <= node < opened.graph.edges.table.num_features
    return float(opened.graph.nodes.activation_N[node]) if is_feature else 0.0
