"""The dialogue of ReplaceMlps: from messages to the core and back, until the caller has no more passes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np

from weft.activations.v1 import service_pb2
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Floats, MlpStop, PassPlan
from weft_activations.core.replacing import Replacing, open_replacing
from weft_activations.core.replacing_limits import CallBudget
from weft_common.errors import DeadlineExceededError, InvalidArgumentError
from weft_common.resource_names import parse_name
from weft_common.tensors import TensorAssembler, chunk_tensor

__all__ = ["replace_mlps"]

Requests = AsyncIterator[service_pb2.ReplaceMlpsRequest]


async def replace_mlps(
    requests: Requests, inference: Inference, budget: CallBudget
) -> AsyncGenerator[service_pb2.ReplaceMlpsResponse, None]:
    """
    Answer one call.

    Args:
        requests: What the caller says.
        inference: Has the models' thread.
        budget: What the call may take; its time is bounded by whoever sends the answers.

    Raises:
        InvalidArgumentError: A message of another kind than comes next, and all that `Replacing` refuses.
        ResourceExhaustedError: The batch is too large, or the call has had all the bytes or passes that it may.
        DeadlineExceededError: The caller says nothing for too long.
    """
    start = await _next(requests, "start", budget)
    if start is None:
        return
    replacing = await open_replacing(
        inference,
        parse_name(start.start.model, "models", field="start.model"),
        [tuple(sequence.ids) for sequence in start.start.sequences],
        start.start.input_hook,
        max_bytes=budget.limits.held_bytes,
    )
    while (request := await _next(requests, "plan", budget)) is not None:
        budget.take_pass()
        asked = request.plan
        plan = PassPlan(
            read_layers=tuple(asked.read_layers),
            read_output_norms=asked.read_output_norms,
            replaced_layers=tuple(asked.replaced_layers),
            ablated_layers=tuple(asked.ablated_layers),
            kept_rows=tuple(asked.kept_rows),
        )
        stop = await replacing.begin(plan)
        while isinstance(stop, MlpStop):
            hook = f"layers.{stop.layer}."
            for name, array in (
                (hook + start.start.input_hook, stop.input_ND),
                (hook + "mlp_out.norm", stop.output_norm_N),
            ):
                if array is not None:
                    for chunk in chunk_tensor(name, array):
                        yield service_pb2.ReplaceMlpsResponse(chunk=chunk)
            output_ND = await _output(requests, hook + "mlp_out", replacing, budget) if stop.is_replaced else None
            stop = await replacing.go_on(output_ND)
        yield service_pb2.ReplaceMlpsResponse(
            score=service_pb2.ReplaceScore(
                tokens=stop.tokens,
                model_cross_entropy_sum=stop.model_cross_entropy_sum,
                cross_entropy_sum=stop.cross_entropy_sum,
                kl_sum=stop.kl_sum,
                agreed=stop.agreed,
            )
        )


async def _output(requests: Requests, hook: str, replacing: Replacing, budget: CallBudget) -> Floats:
    num_rows, d_model = replacing.output_shape
    assembler = TensorAssembler(4 * num_rows * d_model)
    while True:
        request = await _next(requests, "output", budget)
        if request is None:
            raise InvalidArgumentError(f"the caller went before it gave {hook}", field="output")
        if request.output.tensor_name != hook:
            raise InvalidArgumentError(
                f"a piece of {request.output.tensor_name[:80]!r} came; {hook} is waited for", field="output.tensor_name"
            )
        if (whole := assembler.add(request.output)) is not None:
            return whole[1].astype(np.float32, copy=False)


async def _next(requests: Requests, kind: str, budget: CallBudget) -> service_pb2.ReplaceMlpsRequest | None:
    """Take the next message, which must be of a kind; None where the caller has no more."""
    patience_s = budget.limits.patience_s
    try:
        # Not `wait_for`: Python 3.11's loses a cancellation that comes together with the message.
        async with asyncio.timeout(patience_s) as patience:
            request = await anext(requests)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        if not patience.expired():
            raise
        raise DeadlineExceededError(
            f"nothing came for {patience_s:g} s where `{kind}` was waited for; begin again, with smaller batches"
        ) from None
    budget.take_message(request.ByteSize())
    found = request.WhichOneof("part")
    if found != kind:
        raise InvalidArgumentError(f"a message with {found or 'nothing'} came; `{kind}` was expected next", field=kind)
    return request
