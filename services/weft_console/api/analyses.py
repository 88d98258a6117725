"""Analyses of single forward passes over HTTP: lists of numbers that the page draws as heat maps."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.activations.v1 import analyses_pb2, messages_pb2, service_pb2
from weft.common.v1 import tensor_pb2
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_console.api.requests import page_of, path_id, read_field, read_json
from weft_console.messages import to_json
from weft_console.peers import Peers

if TYPE_CHECKING:
    from weft.activations.v1.service_pb2_grpc import ActivationServiceAsyncStub

__all__ = ["ROUTES", "activations_of", "collected", "floats", "texts_of"]

# What a browser draws at once, in cells.
_MAX_CELLS = 40_000
_MAX_TOKENS = 256
_TOP_TOKENS = 3
_COMPONENTS = ("resid_pre", "attn_out", "mlp_out")


async def list_models(request: Request) -> Response:
    answer = await activations_of(request).ListModels(service_pb2.ListModelsRequest(**page_of(request)))
    return JSONResponse(to_json(answer))


async def logit_lens(request: Request) -> Response:
    """Most likely tokens by depth and position, with probabilities, and divergences from the model's own prediction."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    call = activations_of(request).LogitLens(
        analyses_pb2.LogitLensRequest(
            model=path_id(request, "models"), prompt=_prompt(body, "prompt"), num_top_tokens=_TOP_TOKENS
        ),
        timeout=peers.slow_s,
    )
    first, *rest = await collected(call, lambda header: (header.tokens, len(header.depths) * len(header.positions)))
    header = first.header
    top: list[list[Any]] = [[] for _ in header.depths]
    kl: list[list[float]] = [[] for _ in header.depths]
    for part in rest:
        block, count = part.block, header.num_top_tokens
        shares, divergences = floats(block.top_probabilities), floats(block.kl)
        for depth in range(len(header.depths)):
            for at in range(depth * block.num_positions, (depth + 1) * block.num_positions):
                kl[depth].append(divergences[at])
                each = range(at * count, (at + 1) * count)
                top[depth].append([{"text": block.top_tokens[i].text, "probability": shares[i]} for i in each])
    return JSONResponse({"tokens": texts_of(header.tokens), "depths": list(header.depths), "top": top, "kl": kl})


async def attention_patterns(request: Request) -> Response:
    """The pattern of one head."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    call = activations_of(request).GetAttentionPatterns(
        analyses_pb2.GetAttentionPatternsRequest(
            model=path_id(request, "models"),
            prompt=_prompt(body, "prompt"),
            layers=[read_field(body, "layer", int)],
            heads=[read_field(body, "head", int)],
        ),
        timeout=peers.slow_s,
    )
    first, *rest = await collected(call, lambda header: (header.tokens, len(header.tokens) ** 2))
    tokens = texts_of(first.header.tokens)
    data = b"".join(part.chunk.data for part in rest)
    values, size = struct.unpack(f"<{len(data) // 4}f", data), len(tokens)
    return JSONResponse({"tokens": tokens, "pattern": [values[at * size : (at + 1) * size] for at in range(size)]})


async def sweep_patches(request: Request) -> Response:
    """The share of the metric that comes back, by layer and position, of one component."""
    peers: Peers = request.app.state.peers
    body = await read_json(request)
    component = read_field(body, "component", str, "resid_pre")
    if component not in _COMPONENTS:
        raise InvalidArgumentError(
            f"the page does not patch {component[:40]!r}; give one of {', '.join(_COMPONENTS)}", field="component"
        )
    model = path_id(request, "models")
    token_id = await _token_id(request, model, read_field(body, "token", str), "token")
    metric = analyses_pb2.PatchMetric(kind=analyses_pb2.PATCH_METRIC_KIND_PROBABILITY, token_id=token_id)
    if other := read_field(body, "other", str, ""):
        metric.kind = analyses_pb2.PATCH_METRIC_KIND_LOGIT_DIFFERENCE
        metric.other_token_id = await _token_id(request, model, other, "other")
    call = activations_of(request).SweepPatches(
        analyses_pb2.SweepPatchesRequest(
            model=model,
            clean=_prompt(body, "clean"),
            corrupted=_prompt(body, "corrupted"),
            metric=metric,
            components=[component],
        ),
        timeout=peers.slow_s,
    )
    first, *rest = await collected(call, lambda header: (header.clean_tokens, header.num_cells))
    header = first.header
    span, size = header.clean_metric - header.corrupted_metric, len(header.positions)
    values = [value for part in rest for value in part.cells.values]
    restored = [(value - header.corrupted_metric) / span if span else None for value in values]
    return JSONResponse(
        {
            "clean_tokens": texts_of(header.clean_tokens),
            "corrupted_tokens": texts_of(header.corrupted_tokens),
            "layers": list(header.layers),
            "clean_metric": header.clean_metric,
            "corrupted_metric": header.corrupted_metric,
            "restored": [restored[at * size : (at + 1) * size] for at in range(len(header.layers))],
        }
    )


def floats(tensor: tensor_pb2.Tensor) -> tuple[float, ...]:
    """
    Return the elements of a float32 tensor in row-major order.

    >>> floats(tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2], data=struct.pack("<2f", 1, 2)))
    (1.0, 2.0)
    """
    return struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data)


async def collected(
    call: Any, size: Callable[[Any], tuple[Sequence[Any], int]], *, most_cells: int = _MAX_CELLS
) -> list[Any]:
    """
    Return a call's messages.

    Args:
        call: An open server-streaming call.
        size: Returns the tokens and the number of cells that a header announces.
        most_cells: That are drawn.

    Raises:
        InvalidArgumentError: It is more than a page draws; the call is cancelled.
    """
    messages = []
    try:
        async for part in call:
            if part.HasField("header"):
                tokens, cells = size(part.header)
                _check_cells(cells, len(tokens), most_cells)
            messages.append(part)
    finally:
        call.cancel()
    return messages


def activations_of(request: Request) -> ActivationServiceAsyncStub:
    """Return the activations service, or raise FailedPreconditionError: this console knows none."""
    peers: Peers = request.app.state.peers
    if peers.activations is None:
        raise FailedPreconditionError(
            "this console does not know where the activations service is; set WEFT_CONSOLE_ACTIVATIONS_TARGET"
        )
    return peers.activations


def _prompt(body: dict[str, Any], name: str) -> messages_pb2.Prompt:
    text = read_field(body, name, str)
    if not text.strip():
        raise InvalidArgumentError("the prompt is empty; write what the model shall read", field=name)
    return messages_pb2.Prompt(text=text)


async def _token_id(request: Request, model: str, text: str, field: str) -> int:
    answer = await activations_of(request).Tokenize(
        service_pb2.TokenizeRequest(model=model, text=text, without_special_tokens=True)
    )
    if len(answer.tokens) != 1:
        raise InvalidArgumentError(
            f"{text[:40]!r} is {len(answer.tokens)} tokens; give the text of one, with the space before it if it has "
            "one",
            field=field,
        )
    return answer.tokens[0].id


def _check_cells(cells: int, tokens: int, most_cells: int) -> None:
    if cells > most_cells or tokens > _MAX_TOKENS:
        raise InvalidArgumentError(
            f"the prompt has {tokens} tokens, {cells} cells; it draws {_MAX_TOKENS} tokens and {most_cells} cells at "
            "most, so shorten it, or use `weft analyses`",
            field="prompt",
        )


def texts_of(tokens: Any) -> list[str]:
    """Return tokens' texts."""
    return [token.text for token in tokens]


ROUTES = [
    Route("/api/models", list_models),
    Route("/api/models/{id}/lens", logit_lens, methods=["POST"]),
    Route("/api/models/{id}/patterns", attention_patterns, methods=["POST"]),
    Route("/api/models/{id}/patches", sweep_patches, methods=["POST"]),
]
