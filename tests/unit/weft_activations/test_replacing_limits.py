"""A caller in the place of MLPs is bounded as a whole: in bytes, passes and time."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from weft.activations.v1 import messages_pb2, service_pb2
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Floats, MlpStop, ModelInfo, PassPlan, PassScore
from weft_activations.core.replacing_limits import CallBudget, CallLimits
from weft_activations.replacing_dialogue import replace_mlps
from weft_common.errors import DeadlineExceededError, ResourceExhaustedError
from weft_common.tensors import chunk_tensor

_ROWS, _D_MODEL = 2, 4
_INFO = ModelInfo("m", "Tiny", 1, _D_MODEL, 1, 1, 16, 8, "0" * 64, "float32", None, 8, 8, ())
_SCORE = PassScore(1, 1.0, 1.0, 0.0, 1)


class _Passes:
    """One layer, which the caller replaces."""

    def begin(self, plan: PassPlan) -> MlpStop | PassScore:
        return MlpStop(0, None, None, is_replaced=True)

    def go_on(self, output_ND: Floats | None) -> MlpStop | PassScore:
        return _SCORE


class _Backend:
    """A model without weights."""

    def describe(self, model_id: str) -> ModelInfo:
        return _INFO

    def passes(self, model_id: str, sequences: Any, input_hook: str) -> _Passes:
        return _Passes()


@pytest.fixture
def inference() -> Iterator[Inference]:
    """A model thread."""
    backend: Any = _Backend()
    inference = Inference(backend)
    yield inference
    inference.close()


def _start() -> service_pb2.ReplaceMlpsRequest:
    sequences = [messages_pb2.TokenIds(ids=range(_ROWS))]
    start = service_pb2.ReplaceStart(model="models/m", input_hook="mlp_in", sequences=sequences)
    return service_pb2.ReplaceMlpsRequest(start=start)


def _pass() -> list[service_pb2.ReplaceMlpsRequest]:
    chunks = chunk_tensor("layers.0.mlp_out", np.zeros((_ROWS, _D_MODEL), np.float32))
    plan = service_pb2.ReplaceMlpsRequest(plan=service_pb2.ReplacePass(replaced_layers=[0]))
    return [plan, *(service_pb2.ReplaceMlpsRequest(output=chunk) for chunk in chunks)]


async def _passes(count: int, pause_s: float = 0.0) -> AsyncIterator[service_pb2.ReplaceMlpsRequest]:
    yield _start()
    for _ in range(count):
        await asyncio.sleep(pause_s)
        for request in _pass():
            yield request


async def _scores(
    inference: Inference, requests: AsyncIterator[service_pb2.ReplaceMlpsRequest], **limits: Any
) -> list[Any]:
    bounds: dict[str, Any] = {"held_bytes": 1 << 20, "sent_bytes": 1 << 20, "passes": 100, "call_s": 60.0}
    budget = CallBudget(CallLimits(**(bounds | limits)))
    scores = []
    async with budget.within_time():
        async for response in replace_mlps(requests, inference, budget):
            scores.append(response.score.tokens)
    return scores


async def test_call_within_its_bounds_is_answered(inference: Inference) -> None:
    """Bounds that are just enough are enough."""
    sent_bytes = _start().ByteSize() + 3 * sum(request.ByteSize() for request in _pass())
    assert await _scores(inference, _passes(3), passes=3, sent_bytes=sent_bytes) == [1, 1, 1]


async def test_call_has_so_many_passes(inference: Inference) -> None:
    """One more is refused with the setting's name."""
    with pytest.raises(ResourceExhaustedError, match=r"pass 4 .* may have 3.*MAX_REPLACE_PASSES"):
        await _scores(inference, _passes(4), passes=3)


async def test_call_sends_so_many_bytes(inference: Inference) -> None:
    """All messages count, though each pass holds no more than the one before."""
    sent_bytes = _start().ByteSize() + 3 * sum(request.ByteSize() for request in _pass())
    with pytest.raises(ResourceExhaustedError, match="MAX_REPLACE_BYTES"):
        await _scores(inference, _passes(4), sent_bytes=sent_bytes)


async def test_call_takes_so_long(inference: Inference) -> None:
    """A caller that goes on and on, and is never silent for long, comes to an end too."""
    with pytest.raises(DeadlineExceededError, match="MAX_REPLACE_S"):
        await _scores(inference, _passes(1000, pause_s=0.01), call_s=0.1, passes=10_000)


async def test_cancellation_that_meets_a_message_is_heard(inference: Inference) -> None:
    """A call that is cancelled while its next message arrives ends then, not after all that would still come."""
    asked = 0

    async def messages() -> AsyncIterator[service_pb2.ReplaceMlpsRequest]:
        nonlocal asked
        async for request in _passes(50):
            asked += 1
            if asked == 4:
                calling.cancel()
            yield request

    calling = asyncio.create_task(_scores(inference, messages()))
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert asked == 4


async def test_silent_caller_is_left(inference: Inference) -> None:
    """What its batch holds becomes free."""
    with pytest.raises(DeadlineExceededError, match="`plan` was waited for"):
        await _scores(inference, _passes(1, pause_s=30.0), patience_s=0.05)
