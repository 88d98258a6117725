"""What a rank knows of epochs: from the run's document first, from the controller where it has to be settled."""

from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from weft.training.v1 import messages_pb2, service_pb2
from weft_common.errors import FailedPreconditionError
from weft_store import ObjectStore, open_store
from weft_store.documents import encode_json
from weft_trainer.core.records import Epoch
from weft_trainer.worker.epochs import RankEpochs


def _document(*epochs: Epoch) -> dict[str, Any]:
    return {"epochs": [asdict(epoch) for epoch in epochs]}


FIRST, SECOND, WHOLE = Epoch(0, 3, 0, 10, 10), Epoch(1, 4, 3, 5, 15), Epoch(2, 0, 0, 20, 20)


@dataclass
class Controller:
    """Settles what it is asked for."""

    asked: list[int] = field(default_factory=list)

    def BeginEpoch(self, request: service_pb2.BeginEpochRequest, timeout: float) -> messages_pb2.Epoch:  # noqa: N802
        assert (request.run, request.attempt) == ("runs/r", 7)
        self.asked.append(request.epoch)
        return messages_pb2.Epoch(**asdict((FIRST, SECOND, WHOLE)[request.epoch]))


def _rank(document: dict[str, Any], stub: Any = None, store: ObjectStore | None = None) -> RankEpochs:
    if store is None:
        store = open_store("memory://")
        store.put("runs/r/run.json", encode_json(document))
    return RankEpochs(store, stub, run="r", attempt=7, document=document)


def test_run_over_a_sealed_dataset_looks_nothing_up() -> None:
    """Every epoch goes over everything, and nobody is asked."""
    epochs = _rank({}, store=open_store("memory://"))
    assert epochs.first == 0
    assert [epochs.over(index) for index in (0, 5)] == [(0, 0), (0, 0)]


def test_epochs_of_the_document_are_known() -> None:
    """Also those that another rank had settled since this one started."""
    store = open_store("memory://")
    store.put("runs/r/run.json", encode_json(_document(FIRST, SECOND)))
    epochs = _rank(_document(FIRST), store=store)
    assert epochs.first == 3
    assert [epochs.over(index) for index in (0, 1, 0)] == [(3, 0), (4, 3), (3, 0)]


def test_epoch_that_nobody_came_to_is_asked_for_once() -> None:
    """The answer holds; after an epoch over the sealed dataset nothing is asked any more."""
    controller = Controller()
    epochs = _rank(_document(FIRST), controller)
    assert [epochs.over(index) for index in (1, 1, 2, 3, 9)] == [(4, 3), (4, 3), (0, 0), (0, 0), (0, 0)]
    assert controller.asked == [1, 2]


def test_rank_without_a_controller_says_so() -> None:
    """What is in the document it can do; beyond, it cannot make up a snapshot."""
    epochs = _rank(_document(FIRST))
    assert epochs.over(0) == (3, 0)
    with pytest.raises(FailedPreconditionError, match="epoch 1 is not in the document of runs/r"):
        epochs.over(1)
