"""Between protobuf messages and what the core works with."""

import json
from collections.abc import Mapping
from typing import Any

from weft.attribution.v1 import messages_pb2, targets_pb2
from weft_attribution.converting_steering import faithfulness_to_proto
from weft_attribution.core.intervening import Change
from weft_attribution.core.records import GraphRequest, GraphSettings
from weft_attribution.core.targets import Target
from weft_attribution.timestamps import timestamp
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import parse_name

__all__ = [
    "changes_from_proto",
    "finished_to_proto",
    "graph_to_proto",
    "result_to_proto",
    "settings_from_proto",
    "show_partial",
    "target_from_proto",
    "target_to_proto",
]


def settings_from_proto(spec: messages_pb2.GraphSpec) -> GraphSettings:
    """Read a spec and fill in defaults."""
    defaults = GraphSettings("", "", "")
    return GraphSettings(
        model=parse_name(spec.model, "models", field="spec.model"),
        transcoder=parse_name(spec.transcoder, "transcoders", field="spec.transcoder"),
        prompt=spec.prompt,
        max_logits=spec.max_logits or defaults.max_logits,
        logit_probability=spec.logit_probability or defaults.logit_probability,
        target_token_ids=tuple(spec.target_token_ids),
        node_threshold=spec.node_threshold or defaults.node_threshold,
        edge_threshold=spec.edge_threshold or defaults.edge_threshold,
        batch_size=spec.batch_size or defaults.batch_size,
        max_features=spec.max_features,
        targets=tuple(target_from_proto(target, place) for place, target in enumerate(spec.targets)),
        position=_position(spec),
    )


def _position(spec: messages_pb2.GraphSpec) -> int:
    if not spec.HasField("position"):
        return -1
    if spec.position < 0:
        raise InvalidArgumentError(
            f"spec.position is {spec.position}; give 0 for the first token and so on, or none for the last",
            field="spec.position",
        )
    return spec.position


def target_from_proto(target: targets_pb2.Target, place: int) -> Target:
    """Read a target, whose texts are still texts."""
    kind, label, weight = target.WhichOneof("kind"), target.label, target.weight
    if kind == "token_id":
        return Target(token_id=target.token_id, label=label, weight=weight)
    if kind == "text" and target.text:
        return Target(text=target.text, label=label, weight=weight)
    if kind == "direction":
        return Target(kind="direction", direction=tuple(target.direction.values), label=label, weight=weight)
    if kind == "feature":
        return Target(
            kind="feature", layer=target.feature.layer, index=target.feature.index, label=label, weight=weight
        )
    pair = target.difference
    sides = pair.WhichOneof("plus"), pair.WhichOneof("minus")
    if kind == "difference" and all(side and (not side.endswith("text") or getattr(pair, side)) for side in sides):
        return Target(
            kind="difference", token_id=pair.token_id, text=pair.text,
            minus_token_id=pair.minus_token_id, minus_text=pair.minus_text, label=label, weight=weight,
        )  # fmt: skip
    name = f"spec.targets[{place}]"
    raise InvalidArgumentError(
        f"{name} is not whole; give token_id, text, difference with two tokens, direction or feature", field=name
    )


def target_to_proto(target: Target) -> targets_pb2.Target:
    """Write a target as it was asked for."""
    found = targets_pb2.Target(label=target.label, weight=target.weight)
    if target.kind == "direction":
        found.direction.values.extend(target.direction)
    elif target.kind == "feature":
        found.feature.CopyFrom(targets_pb2.FeatureOfLayer(layer=target.layer, index=target.index))
    elif target.kind == "difference":
        pair = {"text": target.text} if target.text else {"token_id": target.token_id}
        minus = {"minus_text": target.minus_text} if target.minus_text else {"minus_token_id": target.minus_token_id}
        found.difference.CopyFrom(targets_pb2.TokenDifference(**pair, **minus))
    elif target.text:
        found.text = target.text
    else:
        found.token_id = target.token_id
    return found


def graph_to_proto(request: GraphRequest, operation: str) -> messages_pb2.Graph:
    """A graph as far as it is known before it is complete."""
    settings = request.settings
    return messages_pb2.Graph(
        name=f"graphs/{request.graph_id}",
        spec=messages_pb2.GraphSpec(
            model=f"models/{settings.model}",
            transcoder=f"transcoders/{settings.transcoder}",
            prompt=settings.prompt,
            max_logits=settings.max_logits,
            logit_probability=settings.logit_probability,
            target_token_ids=settings.target_token_ids,
            node_threshold=settings.node_threshold,
            edge_threshold=settings.edge_threshold,
            batch_size=settings.batch_size,
            max_features=settings.max_features,
            targets=[target_to_proto(target) for target in settings.targets],
            position=settings.position if settings.position >= 0 else None,
        ),
        state=messages_pb2.GRAPH_STATE_RUNNING,
        create_time=timestamp(request.create_s),
        operation=operation,
    )


def finished_to_proto(
    request: GraphRequest, operation: str, document: Mapping[str, Any], *, with_json: bool
) -> messages_pb2.Graph:
    """A finished graph."""
    graph = graph_to_proto(request, operation)
    graph.state = messages_pb2.GRAPH_STATE_SUCCEEDED
    graph.prompt_tokens.extend(text for _, text in document["tokens"])
    statistics = dict(document["statistics"])
    stages = statistics.pop("stage_seconds")
    graph.statistics.CopyFrom(messages_pb2.GraphStatistics(**statistics))
    for stage, seconds in stages.items():
        graph.statistics.stage_seconds.add(stage=stage, seconds=seconds)
    graph.interventions.extend(result_to_proto(result) for result in document["interventions"])
    if "faithfulness" in document:
        graph.faithfulness.CopyFrom(faithfulness_to_proto(document["faithfulness"], with_nodes=with_json))
    if with_json:
        graph.json = _encoded(document["json"])
    return graph


def show_partial(graph: messages_pb2.Graph, shown: Mapping[str, Any]) -> None:
    """Add what there is of a graph that is being made."""
    graph.prompt_tokens.extend(text for _, text in shown["tokens"])
    graph.statistics.CopyFrom(messages_pb2.GraphStatistics(**shown["statistics"]))
    graph.json = _encoded(shown["json"])


def _encoded(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def changes_from_proto(request: Any) -> list[Change]:
    """The changes that an InterveneRequest asks for."""
    return [
        Change(
            node_id=item.node_id,
            factor=item.factor if item.WhichOneof("change") == "factor" else None,
            value=item.value if item.WhichOneof("change") == "value" else None,
        )
        for item in request.interventions
    ]


def result_to_proto(result: Mapping[str, Any]) -> messages_pb2.InterventionResult:
    """A stored result of an intervention."""
    return messages_pb2.InterventionResult(
        interventions=[
            messages_pb2.FeatureIntervention(**{key: value for key, value in item.items() if value is not None})
            for item in result["interventions"]
        ],
        effects=[messages_pb2.LogitEffect(**effect) for effect in result["effects"]],
        create_time=timestamp(result["create_s"]),
    )
