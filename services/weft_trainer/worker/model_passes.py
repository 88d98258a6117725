"""The base model behind the activations service: its sequences, and passes with this process in the place of MLPs."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from weft.activations.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import error_from_rpc
from weft_common.errors import DataLossError
from weft_common.tensors import TensorAssembler, chunk_tensor

__all__ = ["HeldOut", "ModelPasses", "read_held_out"]

_TIMEOUT_S = 3600.0
"""Of all passes of a batch: a large model on a processor takes its time."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences of a dataset, and what its harvest left out."""

    model: str
    model_revision: str
    input_hook: str
    output_norm_limits: NDArray[np.float64]
    """[L]; a token that reaches its layer's limit anywhere was left out. Empty where none was."""
    sequences: list[tuple[int, ...]]
    skipped: list[tuple[int, ...]] = field(default_factory=list)
    """Of each sequence the positions after the first that were left out for their token; empty where none was."""

    def skipped_of(self, index: int) -> list[int]:
        """All positions of a sequence that were left out whatever their norm."""
        return [0, *(self.skipped[index] if self.skipped else ())]


def read_held_out(stub: service_pb2_grpc.ActivationServiceStub, dataset: str, max_tokens: int) -> HeldOut:
    """Read sequences with so many kept tokens in all. NotFoundError, FailedPreconditionError."""
    request = service_pb2.ReadSequencesRequest(dataset=dataset, held_out=True, max_tokens=max_tokens)
    header = service_pb2.SequencesHeader()
    sequences: list[tuple[int, ...]] = []
    skipped: list[tuple[int, ...]] = []
    try:
        for response in stub.ReadSequences(request, timeout=_TIMEOUT_S, wait_for_ready=True):
            if response.WhichOneof("part") == "header":
                header = response.header
            else:
                sequences.append(tuple(response.sequence.ids))
                skipped.append(tuple(response.skipped_positions))
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    return HeldOut(
        header.model, header.model_revision, header.input_hook, np.array(header.output_norm_limits), sequences, skipped
    )


class ModelPasses:
    """
    The passes of one batch; close it to free what the service holds.

    Args:
        sequences: Token ids, of one length.
        input_hook: What an MLP reads, without the layer.
    """

    def __init__(
        self,
        stub: service_pb2_grpc.ActivationServiceStub,
        model: str,
        sequences: Sequence[Sequence[int]],
        input_hook: str,
    ) -> None:
        self._input_hook = input_hook
        self._queue: queue.SimpleQueue[service_pb2.ReplaceMlpsRequest | None] = queue.SimpleQueue()
        start = service_pb2.ReplaceStart(
            model=model, sequences=[messages_pb2.TokenIds(ids=ids) for ids in sequences], input_hook=input_hook
        )
        self._queue.put(service_pb2.ReplaceMlpsRequest(start=start))
        # Reads of a layer come one at a time, with the norms of its outputs.
        self._assembler = TensorAssembler(1 << 31)
        self._responses: Any = stub.ReplaceMlps(self._requests(), timeout=_TIMEOUT_S, wait_for_ready=True)

    def _requests(self) -> Iterator[service_pb2.ReplaceMlpsRequest]:
        while (request := self._queue.get()) is not None:
            yield request

    def run(
        self,
        plan: service_pb2.ReplacePass,
        read: Callable[[int, Floats], None],
        write: Callable[[int], Floats],
        norms: Callable[[int, Floats], None] = lambda layer, norm_N: None,
    ) -> service_pb2.ReplaceScore:
        """
        Run a pass.

        Args:
            plan: What is read, replaced, ablated and kept.
            read: Takes a layer and what its MLP reads, [N, D].
            write: Gives the output of a layer, [N, D].
            norms: Takes a layer and the norms of its own outputs, [N].
        """
        self._queue.put(service_pb2.ReplaceMlpsRequest(plan=plan))
        replaced, read_layers = list(plan.replaced_layers), set(plan.read_layers)
        try:
            # A layer that is not read is not waited for either: its output goes out at once.
            while replaced and replaced[0] not in read_layers:
                self._send(replaced.pop(0), write)
            for response in self._responses:
                if response.WhichOneof("part") == "score":
                    score: service_pb2.ReplaceScore = response.score
                    return score
                whole = self._assembler.add(response.chunk)
                if whole is None:
                    continue
                layer, hook = int(whole[0].split(".")[1]), whole[0].split(".", 2)[2]
                if hook != self._input_hook:
                    norms(layer, whole[1])
                    continue
                read(layer, whole[1])
                while replaced and (replaced[0] == layer or replaced[0] not in read_layers):
                    self._send(replaced.pop(0), write)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        raise DataLossError("the activations service ended a pass without its score; evaluate again")

    def _send(self, layer: int, write: Callable[[int], Floats]) -> None:
        for chunk in chunk_tensor(f"layers.{layer}.mlp_out", write(layer)):
            self._queue.put(service_pb2.ReplaceMlpsRequest(output=chunk))

    def close(self) -> None:
        """End the call."""
        self._queue.put(None)
        self._responses.cancel()
