"""The sequences behind a dataset, from the activations service that harvested it."""

import grpc
import numpy as np

from weft.activations.v1 import service_pb2, service_pb2_grpc
from weft_attribution.core.feature_index.sequences import HarvestedSequences
from weft_attribution.core.feature_index.settings import MAX_INDEX_TOKENS
from weft_common.client import error_from_rpc
from weft_common.errors import DataLossError, ResourceExhaustedError

__all__ = ["GrpcSequences"]

_MOST_POSITIONS = 4 * MAX_INDEX_TOKENS
"""Start tokens, separators and what a harvest filters out are read as well."""


class GrpcSequences:
    """
    Speaks to ActivationService.

    Args:
        channel: A channel to it, with its token.
        timeout_s: Deadline of a call; the service may have to tokenise the whole corpus again.
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
        try:
            async for response in self._stub.ReadSequences(request, timeout=self._timeout_s):
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
                skipped.append(np.array([0, *response.skipped_positions], np.int64))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        if header is None:
            raise DataLossError("the activations service ended its sequences early; ask for the index again")
        return HarvestedSequences(header.model_revision, token_ids, skipped, tuple(header.output_norm_limits))
