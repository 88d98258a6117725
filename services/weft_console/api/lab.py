"""The lab over HTTP: what fires on a text, and what the model says when some of it is changed."""

from typing import Any

from google.protobuf import field_mask_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.features.v1 import queries_pb2, steering_pb2
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id
from weft_console.api.requests import read_field, read_json
from weft_console.api.while_asked import while_asked
from weft_console.messages import to_json
from weft_console.peers import Peers

__all__ = ["ROUTES"]

# What a browser draws at once; the service tells how many there are besides.
_MAX_FEATURES = 4_000
_MAX_LAYERS = 1_000
_MAX_POSITIONS = 10_000
_MAX_INT = 2**31 - 1
_KINDS = ("factor", "value", "add")
_FIELDS = ("layer", "index", "positions", "activations", "relative_max", "label")
# Activations are drawn, not computed with: four digits halve what is sent.
_DIGITS = 4


async def activations(request: Request) -> Response:
    """Features that fire on a text: the strongest ones, or those that are named."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    transcoder, prompt = _transcoder(body), _prompt(body)
    layers = [_whole(layer, "layers") for layer in read_field(body, "layers", list, [])]
    if len(layers) > _MAX_LAYERS:
        raise InvalidArgumentError(f"layers has {len(layers)} of them; give {_MAX_LAYERS} at most", field="layers")
    asked = queries_pb2.GetActivationsOnPromptRequest(
        transcoder=transcoder,
        prompt=prompt,
        layers=layers,
        features=[_feature(transcoder, feature) for feature in read_field(body, "features", list, [])],
        max_features=min(_whole(body.get("max_features", 0), "max_features") or _MAX_FEATURES, _MAX_FEATURES),
        read_mask=field_mask_pb2.FieldMask(paths=_FIELDS),
    )
    found = await while_asked(request, peers.features.GetActivationsOnPrompt(asked, timeout=peers.slow_s))
    features = []
    for feature in found.features:
        told = to_json(feature)
        told["activations"] = [float(f"{value:.{_DIGITS}g}") for value in feature.activations]
        features.append({name: told[name] for name in _FIELDS})
    return JSONResponse(
        {"tokens": list(found.tokens), "features": features, "num_active_features": found.num_active_features}
    )


async def steer(request: Request) -> Response:
    """Both runs of a text, undisturbed and with changed features."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    transcoder = _transcoder(body)
    asked = steering_pb2.SteerOnPromptRequest(
        transcoder=transcoder,
        prompt=_prompt(body),
        changes=[_change(transcoder, change) for change in read_field(body, "changes", list)],
        max_new_tokens=_whole(body.get("max_new_tokens", 0), "max_new_tokens"),
        num_top_tokens=_whole(body.get("num_top_tokens", 0), "num_top_tokens"),
    )
    steered = await while_asked(request, peers.features.SteerOnPrompt(asked, timeout=peers.slow_s))
    return JSONResponse(to_json(steered))


def _transcoder(body: dict[str, Any]) -> str:
    return f"transcoders/{check_id(read_field(body, 'transcoder', str), field='transcoder')}"


def _prompt(body: dict[str, Any]) -> str:
    prompt = read_field(body, "prompt", str)
    if not prompt.strip():
        raise InvalidArgumentError("the prompt is empty; write the text that the model shall read", field="prompt")
    return prompt


def _feature(transcoder: str, feature: Any) -> str:
    if not isinstance(feature, str):
        raise InvalidArgumentError("a feature is no text; give LAYER-INDEX, such as 12-345", field="features")
    return f"{transcoder}/features/{check_id(feature, field='features')}"


def _change(transcoder: str, change: Any) -> steering_pb2.PromptChange:
    if not isinstance(change, dict):
        raise InvalidArgumentError(
            "a change is no object; give {feature, positions} with one of factor, value and add", field="changes"
        )
    positions = read_field(change, "positions", list, [])
    if len(positions) > _MAX_POSITIONS:
        raise InvalidArgumentError(
            f"positions has {len(positions)} of them; give {_MAX_POSITIONS} at most", field="positions"
        )
    kinds = [kind for kind in _KINDS if kind in change]
    if len(kinds) != 1:
        raise InvalidArgumentError(
            f"a change has {' and '.join(kinds) or 'nothing to do'}; give one of factor, value and add", field="changes"
        )
    return steering_pb2.PromptChange(
        feature=_feature(transcoder, change.get("feature")),
        positions=[_whole(position, "positions") for position in positions],
        **{kinds[0]: read_field(change, kinds[0], float)},
    )


def _whole(value: Any, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_INT:
        raise InvalidArgumentError(f"{field} has {repr(value)[:40]}; give whole numbers from 0", field=field)
    return value


ROUTES = [
    Route("/api/lab/activations", activations, methods=["POST"]),
    Route("/api/lab/steering", steer, methods=["POST"]),
]
