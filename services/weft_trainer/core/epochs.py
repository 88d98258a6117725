"""
What each epoch of a run on snapshots goes over, written into the run's document before any rank is dealt a token of it.

The first epoch's snapshot is settled before the first attempt, and has the units of training. A later epoch is settled
when the first rank comes to it: over what a new snapshot, or the sealed dataset, has and the one before had not; over
the last snapshot again where nothing came; over everything once the dataset is sealed and every token was dealt.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from weft_clt.config import TrainingConfig
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_common.logging import get_logger
from weft_trainer.core.admission import check_data
from weft_trainer.core.ports import DatasetCatalog
from weft_trainer.core.records import Epoch, RunRecord, epoch_at
from weft_trainer.core.reports import check_attempt
from weft_trainer.core.runs import RunRepository

__all__ = ["RunEpochs"]

_log = get_logger(__name__)


class RunEpochs:
    """
    Settles the epochs of runs.

    Args:
        runs: The runs of the bucket.
        catalog: Holds datasets and takes snapshots.
    """

    def __init__(self, runs: RunRepository, catalog: DatasetCatalog) -> None:
        self._runs = runs
        self._catalog = catalog
        # All ranks of a run ask at about the same time; one snapshot is enough for them.
        self._locks: dict[str, asyncio.Lock] = {}

    async def prepare(self, run: str) -> None:
        """
        Hold a run's dataset for as long as the run goes on, and settle the first epoch of one on snapshots.

        Raises:
            NotFoundError: No such dataset or snapshot.
            FailedPreconditionError: It has too few tokens; see `check_data`.
        """
        record = await self._runs.get(run)
        await self._catalog.hold(str(record.spec["dataset"]), record.name)
        if record.epochs or not (record.spec.get("snapshot") or record.spec.get("take_snapshot")):
            return
        batch = TrainingConfig.from_spec(record.spec).batch
        if batch.take_snapshot:
            facts = await self._catalog.snapshot(batch.dataset)
        else:
            facts = await self._catalog.describe(batch.dataset, batch.snapshot)
        check_data(batch, facts)
        tokens = facts.num_train_tokens
        await self._write(run, Epoch(0, facts.snapshot, 0, tokens, tokens, create_time=facts.create_time))

    async def begin(self, run: str, attempt: int, index: int) -> Epoch:
        """
        Tell what an epoch goes over; one that nobody has asked for before is settled now.

        Raises:
            NotFoundError: No such run, or its dataset is gone.
            FailedPreconditionError: Another attempt is the present one, the run is not on snapshots, or its dataset was
                made anew.
            InvalidArgumentError: The epoch before was not begun.
        """
        check_attempt(await self._runs.get(run), attempt)
        async with self._locks.setdefault(run, asyncio.Lock()):
            record = await self._runs.get(run)
            check_attempt(record, attempt)
            if not record.epochs:
                raise FailedPreconditionError(f"{record.name} goes over a sealed dataset: its epochs need no snapshot.")
            found, last = epoch_at(record.epochs, index), record.epochs[-1]
            if found is not None:
                return found
            if index != last.end:
                raise InvalidArgumentError(
                    f"epoch is {index}, but {record.name} is in epoch {last.end - 1}: ask for one after the other.",
                    field="epoch",
                )
            return await self._write(run, await self._next(record), lambda present: check_attempt(present, attempt))

    def forget(self, run: str) -> None:
        """Free the memory of a run that ended."""
        self._locks.pop(run, None)

    async def _next(self, record: RunRecord) -> Epoch:
        last = record.epochs[-1]
        facts = await self._catalog.snapshot(str(record.spec["dataset"]))
        if last.create_time and facts.create_time != last.create_time:
            raise FailedPreconditionError(
                f"{facts.name} is not the one that {record.name} began with: that was made at {last.create_time}, this "
                f"one at {facts.create_time}. Start a new run."
            )
        if 0 < facts.snapshot < last.snapshot or facts.num_train_tokens < last.snapshot_tokens:
            raise FailedPreconditionError(
                f"{facts.name} is not the one that {record.name} began with: it had {last.snapshot_tokens} tokens to "
                f"train on in snapshot {last.snapshot}, and has {facts.num_train_tokens}. Start a new run."
            )
        new = facts.num_train_tokens - last.snapshot_tokens
        return Epoch(
            index=last.end,
            snapshot=facts.snapshot,
            since_snapshot=last.snapshot if new else 0,
            num_tokens=new or facts.num_train_tokens,
            snapshot_tokens=facts.num_train_tokens,
            create_time=facts.create_time,
        )

    async def _write(self, run: str, epoch: Epoch, check: Callable[[RunRecord], None] = lambda record: None) -> Epoch:
        """Append an epoch to a run's document, unless another controller was first; return the one that is there."""

        def change(record: RunRecord) -> RunRecord:
            check(record)
            if epoch_at(record.epochs, epoch.index) is not None:
                return record
            return replace(record, epochs=_appended(record.epochs, epoch))

        written = epoch_at((await self._runs.change(run, change)).epochs, epoch.index)
        assert written is not None
        _log.info(
            "epoch_begins",
            run=run,
            epoch=written.index,
            snapshot=written.snapshot,
            since_snapshot=written.since_snapshot,
            num_tokens=written.num_tokens,
        )
        return written


def _appended(epochs: tuple[Epoch, ...], epoch: Epoch) -> tuple[Epoch, ...]:
    """Append an epoch; one that goes over the same as the last only counts, however long nothing comes."""
    if epochs and replace(epochs[-1], index=epoch.index, passes=1) == epoch:
        return (*epochs[:-1], replace(epochs[-1], passes=epochs[-1].passes + 1))
    return (*epochs, epoch)
