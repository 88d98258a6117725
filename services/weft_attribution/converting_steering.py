"""Between protobuf messages and what changes in the model show."""

from collections.abc import Mapping
from typing import Any

from weft.attribution.v1 import steering_pb2
from weft_attribution.core.feature_changes import FeatureChange, Patch
from weft_attribution.core.graph_json import node_id
from weft_attribution.core.steering import Steering, SteeringPlan
from weft_attribution.timestamps import timestamp

__all__ = ["faithfulness_to_proto", "plan_from_proto", "steering_to_proto"]


def plan_from_proto(request: steering_pb2.SteerRequest) -> SteeringPlan:
    """What a SteerRequest asks for."""
    return SteeringPlan(
        changes=tuple(_change(change) for change in request.changes),
        held=(request.held.first, request.held.last) if request.HasField("held") else None,
        freeze_attention=request.freeze_attention,
        shown=tuple(request.shown_node_ids),
    )


def _change(change: steering_pb2.FeatureChange) -> FeatureChange:
    kind, nodes = change.WhichOneof("change"), tuple(change.node_ids)
    if kind == "patch":
        position = change.patch.position if change.patch.HasField("position") else -1
        return FeatureChange(nodes, patch=Patch(change.patch.prompt, position))
    return FeatureChange(
        nodes,
        factor=change.factor if kind == "factor" else None,
        value=change.value if kind == "value" else None,
    )


def steering_to_proto(found: Steering) -> steering_pb2.SteerResponse:
    """Predicted beside measured."""
    return steering_pb2.SteerResponse(
        nodes=[
            steering_pb2.NodeEffect(
                node_id=node_id(found.opened.graph.nodes, effect.node),
                before=effect.before,
                predicted=effect.predicted,
                measured=effect.measured,
                activation_after=effect.activation_after,
            )
            for effect in found.nodes
        ],
        logits=[
            steering_pb2.SteeredLogit(
                token_id=logit.token_id,
                text=logit.text,
                predicted=logit.predicted,
                measured=logit.measured,
                probability_before=logit.probability_before,
                probability_after=logit.probability_after,
            )
            for logit in found.logits
        ],
        rank_agreement=found.rank_agreement,
    )


def faithfulness_to_proto(document: Mapping[str, Any], *, with_nodes: bool) -> steering_pb2.Faithfulness:
    """What was measured of a graph, as stored."""
    return steering_pb2.Faithfulness(
        num_nodes=document["num_nodes"],
        spearman=document["spearman"],
        spearman_frozen=document["spearman_frozen"],
        spearman_direct=document["spearman_direct"],
        nodes=[steering_pb2.AblatedNode(**node) for node in document["nodes"]] if with_nodes else (),
        create_time=timestamp(document["create_s"]),
    )
