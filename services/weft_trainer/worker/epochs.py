"""
What each epoch of a run goes over, as the ranks know it: from the run's document, or from the controller, who writes it
there before it answers.

Every rank asks for itself: how far ranks plan ahead differs, so one that waited for another's question might wait for a
rank that waits for it in the step before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from weft.training.v1 import service_pb2, service_pb2_grpc
from weft_common.client import error_from_rpc
from weft_common.errors import FailedPreconditionError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import read_json
from weft_trainer.core.records import Epoch
from weft_trainer.worker.patience import patiently

__all__ = ["RankEpochs", "first_snapshot"]

# The cache may have to read the statistics of many shards first.
_TIMEOUT_S = 180.0

_log = get_logger(__name__)


def first_snapshot(document: Mapping[str, Any]) -> int:
    """
    Return the snapshot that has a run's units and its held-out tokens; 0 where that is the sealed dataset.

    >>> first_snapshot({"epochs": [{"snapshot": 3}, {"snapshot": 5}]}), first_snapshot({})
    (3, 0)
    """
    epochs = document.get("epochs") or [{"snapshot": 0}]
    return int(epochs[0]["snapshot"])


class RankEpochs:
    """
    One rank's view of its run's epochs.

    Args:
        store: The bucket.
        stub: The controller; None where there is none, and all epochs that will be asked for are in the document.
        run: Id of the run.
        attempt: That asks.
        document: The run's, as it was read last.
        retry_s: How long a bucket or a controller that refuses is asked again.
    """

    def __init__(
        self,
        store: ObjectStore,
        stub: service_pb2_grpc.RunReportServiceStub | None,
        *,
        run: str,
        attempt: int,
        document: Mapping[str, Any],
        retry_s: float = 0.0,
    ) -> None:
        self._store, self._stub, self._retry_s = store, stub, retry_s
        self._run, self._attempt = run, attempt
        self.first = first_snapshot(document)
        self._known = _epochs_of(document)

    def over(self, epoch: int) -> tuple[int, int]:
        """
        Return the snapshot that an epoch goes over, and the one whose shards are left out; 0 where there is none.

        Raises:
            FailedPreconditionError: Another attempt is the present one, or there is nobody to ask.
            NotFoundError: The dataset is gone.
        """
        if self._is_unknown(epoch):
            written = patiently(self._read, "the run's document", self._retry_s)
            self._known += written[len(self._known) :]
        while self._is_unknown(epoch):
            self._known.append(patiently(self._ask, f"epoch {len(self._known)}", self._retry_s))
        if epoch >= len(self._known):
            return 0, 0
        found = self._known[epoch]
        return found.snapshot, found.since_snapshot

    def _is_unknown(self, epoch: int) -> bool:
        """Whether an epoch is not settled as far as is known; after one over a sealed dataset all others are."""
        return bool(self._known) and epoch >= len(self._known) and self._known[-1].snapshot > 0

    def _read(self) -> list[Epoch]:
        return _epochs_of(read_json(self._store, f"runs/{self._run}/run.json")[0])

    def _ask(self) -> Epoch:
        index = len(self._known)
        if self._stub is None:
            raise FailedPreconditionError(
                f"epoch {index} is not in the document of runs/{self._run}, and this rank has no controller to ask; "
                "start it with WEFT_WORKER_TRAINER_TARGET."
            )
        request = service_pb2.BeginEpochRequest(run=f"runs/{self._run}", attempt=self._attempt, epoch=index)
        try:
            answer = self._stub.BeginEpoch(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        found = Epoch(**{name: int(getattr(answer, name)) for name in Epoch.__dataclass_fields__})
        _log.info("epoch", index=index, snapshot=found.snapshot, since=found.since_snapshot, tokens=found.num_tokens)
        return found


def _epochs_of(document: Mapping[str, Any]) -> list[Epoch]:
    return [Epoch(**entry) for entry in document.get("epochs", ())]
