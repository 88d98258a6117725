"""What a rank knows of epochs: from the run's document first, from the controller where it has to be settled."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest

from weft.training.v1 import messages_pb2, service_pb2
from weft_common.errors import FailedPreconditionError
from weft_store import ObjectStore, open_store
from weft_store.documents import encode_json
from weft_trainer.converting import epoch_to_proto
from weft_trainer.core.records import Epoch
from weft_trainer.worker.epochs import RankEpochs, epochs_seen
from weft_trainer.worker.reads import PlanOver


def _document(*epochs: Epoch) -> dict[str, Any]:
    return {"epochs": [asdict(epoch) for epoch in epochs]}


MADE = "2026-01-02T03:04:05.678901Z"
FIRST, SECOND = Epoch(0, 3, 0, 10, 10, create_time=MADE), Epoch(1, 4, 3, 5, 15, create_time=MADE)
WHOLE = Epoch(2, 0, 0, 20, 20, create_time=MADE)
OVER_FIRST, OVER_SECOND, OVER_WHOLE = PlanOver(3, 0, MADE), PlanOver(4, 3, MADE), PlanOver(0, 0, MADE)


@dataclass
class Controller:
    """Settles what it is asked for."""

    asked: list[int] = field(default_factory=list)

    def BeginEpoch(self, request: service_pb2.BeginEpochRequest, timeout: float) -> messages_pb2.Epoch:  # noqa: N802
        assert (request.run, request.attempt) == ("runs/r", 7)
        self.asked.append(request.epoch)
        return epoch_to_proto((FIRST, SECOND, WHOLE)[request.epoch])


def _rank(document: dict[str, Any], stub: Any = None, store: ObjectStore | None = None) -> RankEpochs:
    if store is None:
        store = open_store("memory://")
        store.put("runs/r/run.json", encode_json(document))
    return RankEpochs(store, stub, run="r", attempt=7, document=document)


def test_run_over_a_sealed_dataset_looks_nothing_up() -> None:
    """Every epoch goes over everything, and nobody is asked."""
    epochs = _rank({}, store=open_store("memory://"))
    assert epochs.first == 0
    assert [epochs.over(index) for index in (0, 5)] == [PlanOver(), PlanOver()]


def test_epochs_of_the_document_are_known() -> None:
    """Also those that another rank had settled since this one started."""
    store = open_store("memory://")
    store.put("runs/r/run.json", encode_json(_document(FIRST, SECOND)))
    epochs = _rank(_document(FIRST), store=store)
    assert epochs.first == 3
    assert [epochs.over(index) for index in (0, 1, 0)] == [OVER_FIRST, OVER_SECOND, OVER_FIRST]


def test_epoch_that_nobody_came_to_is_asked_for_once() -> None:
    """The answer holds; after an epoch over the sealed dataset nothing is asked any more."""
    controller = Controller()
    epochs = _rank(_document(FIRST), controller)
    found = [epochs.over(index) for index in (1, 1, 2, 3, 9)]
    assert found == [OVER_SECOND, OVER_SECOND, OVER_WHOLE, OVER_WHOLE, OVER_WHOLE]
    assert controller.asked == [1, 2]


def test_rank_without_a_controller_says_so() -> None:
    """What is in the document it can do; beyond, it cannot make up a snapshot."""
    epochs = _rank(_document(FIRST))
    assert epochs.over(0) == OVER_FIRST
    with pytest.raises(FailedPreconditionError, match="epoch 1 is not in the document of runs/r"):
        epochs.over(1)


def test_passes_over_the_same_are_known_from_one_entry() -> None:
    """What comes after them is asked for by its own index, also where another rank had more of them counted."""
    repeated = replace(FIRST, passes=2)
    store = open_store("memory://")
    store.put("runs/r/run.json", encode_json(_document(repeated)))
    controller = Controller()
    epochs = _rank(_document(FIRST), controller, store)
    assert [epochs.over(index) for index in (0, 1)] == [OVER_FIRST, OVER_FIRST]
    assert epochs.over(2) == OVER_WHOLE
    assert controller.asked == [2]


def test_epochs_seen_are_those_until_the_checkpoint() -> None:
    """Later ones are left out, passes that came later are not counted; a run without snapshots has none."""
    waited = replace(SECOND, since_snapshot=0, passes=3)
    document = _document(FIRST, waited, replace(WHOLE, index=4))
    seen = [[(each["index"], each["passes"]) for each in epochs_seen(document, {"epoch": last})] for last in (0, 2, 9)]
    assert seen == [[(0, 1)], [(0, 1), (1, 2)], [(0, 1), (1, 3), (4, 1)]]
    assert epochs_seen({}, {"epoch": 3}) == []
    assert epochs_seen({}, [[0, 5]]) == []
