"""Between protobuf messages and what is read of the attention behind graphs."""

import numpy as np

from weft.attribution.v1 import attention_pb2
from weft_attribution.core.through_attention import ExplainedScore, SplitOfEdge

__all__ = ["score_to_proto", "split_to_proto"]

_KINDS = (
    attention_pb2.SCORE_KIND_FEATURE,
    attention_pb2.SCORE_KIND_ERROR,
    attention_pb2.SCORE_KIND_TOKEN,
    attention_pb2.SCORE_KIND_CONSTANT,
)


def split_to_proto(found: SplitOfEdge) -> attention_pb2.SplitEdgeResponse:
    """An edge in parts."""
    split = found.split
    total = split.total
    return attention_pb2.SplitEdgeResponse(
        weight=found.weight,
        total=total,
        direct=split.direct,
        parts=[
            attention_pb2.HeadPart(layer=layer, head=head, position=position, value=value)
            for (layer, head, position), value in zip(found.places.tolist(), found.values.tolist(), strict=True)
        ],
        rest=total - split.direct - float(found.values.sum()),
        layers=[
            attention_pb2.HeadsOfLayer(layer=layer, values=values, bypass=total - sum(values))
            for layer, values in enumerate(split.through_LH.double().tolist())
        ],
    )


def score_to_proto(found: ExplainedScore, max_nodes: int) -> attention_pb2.ExplainAttentionResponse:
    """A score in pairs."""
    score = found.score

    def nodes(values_N: np.ndarray) -> list[attention_pb2.ScoreNode]:
        best = np.argsort(-np.abs(values_N), kind="stable")[:max_nodes]
        return [
            attention_pb2.ScoreNode(node_id=_name(found, node), value=float(values_N[node]))
            for node in best.tolist()
            if values_N[node] != 0
        ]

    return attention_pb2.ExplainAttentionResponse(
        score=score.score,
        pattern=found.pattern,
        total=score.total,
        pairs=[
            attention_pb2.ScorePair(
                query_node_id=_name(found, pair.query), key_node_id=_name(found, pair.key), value=pair.value
            )
            for pair in score.pairs
        ],
        rest=score.total - sum(pair.value for pair in score.pairs),
        query_nodes=nodes(score.query_N),
        key_nodes=nodes(score.key_N),
        kinds=[
            attention_pb2.ScoreKinds(query=query, key=key, value=float(score.kinds[place, other]))
            for place, query in enumerate(_KINDS)
            for other, key in enumerate(_KINDS)
        ],
    )


def _name(found: ExplainedScore, node: int) -> str:
    """The id of a source; features that have no node in the graph have theirs too."""
    table, features = found.score.table, found.frozen.features
    if node < table.error_start:
        feature = int(found.score.features[node])
        return f"{features.layer_N[feature]}_{features.index_N[feature]}_{features.position_N[feature]}"
    if node < table.token_start:
        layer, before = divmod(node - table.error_start, table.num_positions - 1)
        return f"{layer}_error_mlp_{before + 1}"
    if node < table.logit_start:
        position = node - table.token_start
        return f"E_{found.frozen.token_ids[position]}_{position}"
    return "constant"
