"""
What each epoch of a run goes over, as the ranks know it: from the run's document, or from the controller, who writes it
there before it answers.

Every rank asks for itself: how far ranks plan ahead differs, so one that waited for another's question might wait for a
rank that waits for it in the step before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import grpc

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import error_from_rpc
from weft_common.errors import FailedPreconditionError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import read_json
from weft_trainer.core.records import Epoch, epoch_at
from weft_trainer.worker.patience import patiently
from weft_trainer.worker.reads import PlanOver

__all__ = ["RankEpochs", "epochs_seen", "first_snapshot"]

# The cache may have to read the statistics of many shards first; longer than the controller waits for it.
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


def epochs_seen(document: Mapping[str, Any], data: Any) -> list[dict[str, Any]]:
    """
    Return what the epochs of a run went over until a checkpoint, as documents; later ones have no part in it.

    Args:
        document: The run's.
        data: Where the checkpoint's manifest says that the run was in its data; a list of versions without snapshots.
    """
    last = int(data["epoch"]) if isinstance(data, dict) else -1
    seen = [epoch for epoch in _epochs_of(document) if epoch.index <= last]
    return [asdict(replace(epoch, passes=min(epoch.passes, last + 1 - epoch.index))) for epoch in seen]


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

    def over(self, epoch: int) -> PlanOver:
        """
        Return what an epoch goes over.

        Raises:
            FailedPreconditionError: Another attempt is the present one, the dataset was made anew, or there is nobody
                to ask.
            NotFoundError: The dataset is gone.
        """
        if not self._known:
            return PlanOver()
        if epoch_at(self._known, epoch) is None:
            # Another rank may have had it settled since.
            written = patiently(self._read, "the run's document", self._retry_s)
            self._known = max(self._known, written, key=lambda epochs: epochs[-1].end)
        while (found := epoch_at(self._known, epoch)) is None:
            self._known.append(patiently(self._ask, f"epoch {self._known[-1].end}", self._retry_s))
        return PlanOver(found.snapshot, found.since_snapshot, found.create_time)

    def _read(self) -> list[Epoch]:
        return _epochs_of(read_json(self._store, f"runs/{self._run}/run.json")[0])

    def _ask(self) -> Epoch:
        index = self._known[-1].end
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
        found = _epoch_of(answer)
        _log.info("epoch", index=index, snapshot=found.snapshot, since=found.since_snapshot, tokens=found.num_tokens)
        return found


def _epochs_of(document: Mapping[str, Any]) -> list[Epoch]:
    return [Epoch(**entry) for entry in document.get("epochs", ())]


def _epoch_of(epoch: messages_pb2.Epoch) -> Epoch:
    return Epoch(
        index=epoch.index,
        snapshot=epoch.snapshot,
        since_snapshot=epoch.since_snapshot,
        num_tokens=epoch.num_tokens,
        snapshot_tokens=epoch.snapshot_tokens,
        passes=max(1, epoch.passes),
        create_time=epoch.dataset_create_time.ToJsonString() if epoch.HasField("dataset_create_time") else "",
    )
