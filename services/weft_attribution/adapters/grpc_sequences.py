"""The sequences behind a dataset, from the activations service that harvested it."""

import asyncio
from typing import Any

import grpc
import numpy as np

from weft.activations.v1 import service_pb2, service_pb2_grpc
from weft_attribution.core.feature_index.sequences import HarvestedSequences
from weft_attribution.core.feature_index.settings import MAX_INDEX_TOKENS
from weft_common.client import error_from_rpc
from weft_common.errors import DataLossError, DeadlineExceededError, ResourceExhaustedError

__all__ = ["GrpcSequences"]

_MOST_POSITIONS = 4 * MAX_INDEX_TOKENS
"""Start tokens, separators and what a harvest filters out are read as well."""


class GrpcSequences:
    """
    Speaks to ActivationService.

    Args:
        channel: A channel to it, with its token.
        timeout_s: Longest wait for a message; before the first the service may have to tokenise the whole corpus again.
    """

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = service_pb2_grpc.ActivationServiceStub(channel)
        self._timeout_s = timeout_s

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        request = service_pb2.ReadSequencesRequest(
            dataset=f"datasets/{dataset}", held_out=held_out, max_tokens=max_tokens
        )
        header: service_pb2.SequencesHeader | None = None
        token_ids, skipped, num_positions = [], [], 0
        call = self._stub.ReadSequences(request)
        try:
            while (response := await self._next(call, dataset)) is not None:
                if response.WhichOneof("part") == "header":
                    header = response.header
                    continue
                ids = np.array(response.sequence.ids, np.uint32)
                num_positions += len(ids)
                if num_positions > _MOST_POSITIONS:
                    raise ResourceExhaustedError(
                        f"the sequences of datasets/{dataset} have more than {_MOST_POSITIONS} tokens, with "
                        "those that were not kept; give a smaller max_tokens"
                    )
                token_ids.append(ids)
                skipped.append(
                    np.array(sorted({0, *response.skipped_positions, *response.left_out_positions}), np.int64)
                )
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        finally:
            call.cancel()
        if header is None:
            raise DataLossError("the activations service ended its sequences early; ask for the index again")
        # Where it is told what was left out, nothing has to be found again.
        limits = () if header.tells_left_out else tuple(header.output_norm_limits)
        return HarvestedSequences(header.model_revision, token_ids, skipped, limits)

    async def _next(self, call: Any, dataset: str) -> service_pb2.ReadSequencesResponse | None:
        """The next message; None at the end."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await call.read()
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the activations service told no sequence of datasets/{dataset} for {self._timeout_s:g} s; ask again, "
                "or set WEFT_ATTRIBUTION_ACTIVATIONS_TIMEOUT_S higher"
            ) from error
        return None if response is grpc.aio.EOF else response
