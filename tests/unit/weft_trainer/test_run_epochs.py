"""What epochs of a run on snapshots go over: settled once, before anybody is dealt a token, whoever asks and dies."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fake_ranks import SPEC, Controller

from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from weft_trainer.core.admission import FIRST_SNAPSHOT_STEPS
from weft_trainer.core.records import Epoch, RunState

ENOUGH = FIRST_SNAPSHOT_STEPS * SPEC["step_tokens"]


def _controller(num_train_tokens: int = ENOUGH, num_held_out_tokens: int = 9) -> Controller:
    """A controller whose dataset is being harvested."""
    controller = Controller()
    controller.catalog.facts = replace(
        controller.catalog.facts,
        sealed=False,
        num_train_tokens=num_train_tokens,
        num_held_out_tokens=num_held_out_tokens,
    )
    return controller


async def _started(**changes: Any) -> Controller:
    controller = _controller()
    await controller.create(take_snapshot=True, **changes)
    await controller.supervisor._open_attempt("r")
    return controller


async def _epochs(controller: Controller) -> tuple[Epoch, ...]:
    return (await controller.runs.get("r")).epochs


async def test_first_snapshot_is_in_the_document_before_the_ranks_start() -> None:
    """The launcher is not asked for anything before; a run over a sealed dataset names none."""
    controller = _controller()
    await controller.create(take_snapshot=True)
    assert controller.catalog.snapshots == []
    seen: list[tuple[Epoch, ...]] = []
    start = controller.launcher.start

    async def watched(*arguments: Any) -> Any:
        seen.append(await _epochs(controller))
        return await start(*arguments)

    controller.launcher.start = watched  # type: ignore[method-assign]
    await controller.supervisor._open_attempt("r")
    assert seen == [(Epoch(0, 1, 0, ENOUGH, ENOUGH),)]
    plain = Controller()
    await plain.create()
    await plain.supervisor._open_attempt("r")
    assert await _epochs(plain) == ()


async def test_start_that_is_repeated_finds_the_first_snapshot() -> None:
    """However much was committed since, the second attempt has the units of the first."""
    controller = await _started()
    controller.catalog.commit(100)
    await controller.runs.change("r", lambda record: replace(record, attempt_open=False))
    await controller.supervisor._open_attempt("r")
    assert (await controller.runs.get("r")).attempt == 2
    assert await _epochs(controller) == (Epoch(0, 1, 0, ENOUGH, ENOUGH),)


async def test_controller_that_died_before_it_wrote_takes_another_snapshot() -> None:
    """What counts is what is in the document."""
    controller = _controller()
    await controller.create(take_snapshot=True)
    await controller.catalog.snapshot("datasets/d")
    controller.catalog.commit(5)
    await controller.supervisor._open_attempt("r")
    assert await _epochs(controller) == (Epoch(0, 2, 0, ENOUGH + 5, ENOUGH + 5),)


async def test_epochs_go_over_what_is_new_then_again_then_over_everything() -> None:
    """New shards by themselves, the seal's too; the last snapshot again where nothing came; at last all, for good."""
    controller = await _started()
    controller.catalog.commit(30)
    assert await controller.epochs.begin("r", 1, 1) == Epoch(1, 2, 1, 30, ENOUGH + 30)
    assert await controller.epochs.begin("r", 1, 2) == Epoch(2, 2, 0, ENOUGH + 30, ENOUGH + 30)
    controller.catalog.commit(0, 7)
    assert await controller.epochs.begin("r", 1, 3) == Epoch(3, 3, 0, ENOUGH + 30, ENOUGH + 30)
    controller.catalog.commit(8)
    assert await controller.epochs.begin("r", 1, 4) == Epoch(4, 4, 3, 8, ENOUGH + 38)
    controller.catalog.commit(2)
    controller.catalog.facts = replace(controller.catalog.facts, sealed=True)
    assert await controller.epochs.begin("r", 1, 5) == Epoch(5, 0, 4, 2, ENOUGH + 40)
    whole = Epoch(6, 0, 0, ENOUGH + 40, ENOUGH + 40)
    assert await controller.epochs.begin("r", 1, 6) == whole
    assert await controller.epochs.begin("r", 1, 9) == replace(whole, index=9)
    assert [epoch.index for epoch in await _epochs(controller)] == [0, 1, 2, 3, 4, 5, 6]


async def test_dataset_that_is_sealed_as_it_was_is_gone_over_again() -> None:
    """Where the seal brings nothing new, every token was dealt once already."""
    controller = await _started()
    controller.catalog.facts = replace(controller.catalog.facts, sealed=True)
    assert await controller.epochs.begin("r", 1, 1) == Epoch(1, 0, 0, ENOUGH, ENOUGH)


async def test_epochs_in_which_nothing_comes_are_one_entry() -> None:
    """The document of a run that waits for its harvest does not grow; each pass is still told by its own index."""
    controller = await _started()
    for index in range(1, 40):
        assert await controller.epochs.begin("r", 1, index) == Epoch(index, 1, 0, ENOUGH, ENOUGH)
    assert await _epochs(controller) == (Epoch(0, 1, 0, ENOUGH, ENOUGH, passes=40),)
    assert await controller.epochs.begin("r", 1, 17) == Epoch(17, 1, 0, ENOUGH, ENOUGH)
    with pytest.raises(InvalidArgumentError, match="in epoch 39"):
        await controller.epochs.begin("r", 1, 41)
    controller.catalog.commit(5)
    assert await controller.epochs.begin("r", 1, 40) == Epoch(40, 2, 1, 5, ENOUGH + 5)
    assert [epoch.index for epoch in await _epochs(controller)] == [0, 40]


async def test_dataset_that_was_made_anew_with_more_tokens_is_refused() -> None:
    """Token counts and numbers of snapshots may fit another dataset of the name; the time it was made does not."""
    controller = _controller()
    controller.catalog.facts = replace(controller.catalog.facts, create_time="2026-01-01T00:00:00Z")
    await controller.create(take_snapshot=True)
    await controller.supervisor._open_attempt("r")
    assert [epoch.create_time for epoch in await _epochs(controller)] == ["2026-01-01T00:00:00Z"]
    controller.catalog.commit(30)
    controller.catalog.facts = replace(controller.catalog.facts, create_time="2026-01-02T00:00:00Z")
    with pytest.raises(FailedPreconditionError, match="made at 2026-01-01T00:00:00Z, this one at 2026-01-02"):
        await controller.epochs.begin("r", 1, 1)


async def test_nothing_is_kept_of_runs_that_ended_or_never_were() -> None:
    """Neither a run that is ended from outside nor a name that somebody made up leaves a lock behind."""
    controller = await _started()
    await controller.epochs.begin("r", 1, 0)
    await controller.supervisor.end("r", RunState.CANCELLED, "its operation was cancelled")
    with pytest.raises(NotFoundError):
        await controller.epochs.begin("made-up", 1, 0)
    with pytest.raises(FailedPreconditionError):
        await controller.epochs.begin("r", 7, 0)
    assert controller.epochs._locks == {}


async def test_epoch_that_was_begun_stays_as_it_is() -> None:
    """A rank that comes to it later, or again after a kill, is told the same."""
    controller = await _started()
    controller.catalog.commit(30)
    first = await controller.epochs.begin("r", 1, 1)
    controller.catalog.commit(30)
    again = Controller(controller.store, controller.launcher)
    again.catalog = controller.catalog
    assert await again.epochs.begin("r", 1, 1) == first
    assert await again.epochs.begin("r", 1, 0) == Epoch(0, 1, 0, ENOUGH, ENOUGH)


async def test_ranks_that_ask_at_once_are_told_the_same() -> None:
    """One snapshot serves all ranks of a run, also where two controllers are asked."""
    controller = await _started()
    other = Controller(controller.store, controller.launcher)
    other.epochs._catalog = controller.catalog
    controller.catalog.commit(30)
    asked = [controller.epochs.begin("r", 1, 1) for _ in range(4)] + [other.epochs.begin("r", 1, 1) for _ in range(4)]
    assert set(await asyncio.gather(*asked)) == {Epoch(1, 2, 1, 30, ENOUGH + 30)}
    assert len(await _epochs(controller)) == 2
    assert len(controller.catalog.snapshots) == 2


async def test_run_begins_with_the_snapshot_that_it_names() -> None:
    """Later ones that exist are left to the next epoch."""
    controller = _controller()
    await controller.catalog.snapshot("datasets/d")
    controller.catalog.commit(6)
    await controller.catalog.snapshot("datasets/d")
    await controller.create(snapshot=1)
    await controller.supervisor._open_attempt("r")
    assert await controller.epochs.begin("r", 1, 1) == Epoch(1, 2, 1, 6, ENOUGH + 6)
    assert (await _epochs(controller))[0] == Epoch(0, 1, 0, ENOUGH, ENOUGH)


async def test_dataset_that_was_sealed_before_the_start_is_taken_whole() -> None:
    """A run that was to take a snapshot is then one over a sealed dataset."""
    controller = _controller()
    await controller.create(take_snapshot=True)
    controller.catalog.facts = replace(controller.catalog.facts, sealed=True)
    await controller.supervisor._open_attempt("r")
    assert await _epochs(controller) == (Epoch(0, 0, 0, ENOUGH, ENOUGH),)
    assert (await controller.epochs.begin("r", 1, 1)).snapshot == 0


@pytest.mark.parametrize(
    ("tokens", "held_out", "says"),
    [
        (ENOUGH - 1, 9, rf"{ENOUGH - 1} tokens to train on, fewer than the {ENOUGH} of 64 steps"),
        (ENOUGH, 0, "no held-out tokens"),
    ],
)
async def test_first_snapshot_that_is_too_small_is_refused(tokens: int, held_out: int, says: str) -> None:
    """The numbers are told before a run is written, of a dataset that grows and of a snapshot."""
    controller = _controller(tokens, held_out)
    with pytest.raises(FailedPreconditionError, match=says):
        await controller.create(take_snapshot=True)
    assert controller.catalog.snapshots == []
    await controller.catalog.snapshot("datasets/d")
    controller.catalog.facts = replace(controller.catalog.facts, sealed=True)
    with pytest.raises(FailedPreconditionError, match=f"snapshot 1 of datasets/d has .*{says.split()[-1]}"):
        await controller.create(snapshot=1)
    assert await controller.runs.all() == []


async def test_sealed_dataset_needs_one_step_only() -> None:
    """It has the units of everything that there will be."""
    controller = _controller(SPEC["step_tokens"])
    controller.catalog.facts = replace(controller.catalog.facts, sealed=True)
    assert (await controller.create(take_snapshot=True)).state is RunState.PENDING


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({}, FailedPreconditionError, "set take_snapshot"),
        ({"snapshot": 1}, NotFoundError, "no snapshot 1"),
        ({"snapshot": -1}, InvalidArgumentError, "no snapshot; give its number"),
        ({"snapshot": 1, "take_snapshot": True}, InvalidArgumentError, "give one of them"),
    ],
)
async def test_create_refuses_what_names_no_snapshot(
    changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    """An open dataset wants a snapshot, by one of the two ways, that is there."""
    controller = _controller()
    with pytest.raises(error, match=says):
        await controller.create(**changes)
    assert await controller.runs.all() == []


async def test_cache_that_is_away_at_the_start_starts_nothing() -> None:
    """The work is tried again later, and the run says why it waits; no attempt is used up."""
    controller = _controller()
    await controller.create(take_snapshot=True)

    async def away(name: str) -> Any:
        raise UnavailableError("the cache does not answer")

    controller.catalog.snapshot = away  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await controller.supervisor._open_attempt("r")
    record = await controller.runs.get("r")
    assert (record.attempt, record.attempt_open, controller.launcher.num_starts) == (0, False, 0)
    assert record.pending_reason == "the cache does not answer"


async def test_epoch_is_refused_to_whoever_has_no_business_with_it() -> None:
    """An older attempt, an epoch that is skipped to, a run without snapshots, a dataset that was made anew."""
    controller = await _started()
    with pytest.raises(FailedPreconditionError, match="attempt 1 is the present one"):
        await controller.epochs.begin("r", 2, 1)
    for index in (-1, 2):
        with pytest.raises(InvalidArgumentError, match="in epoch 0"):
            await controller.epochs.begin("r", 1, index)
    controller.catalog.facts = replace(controller.catalog.facts, num_train_tokens=ENOUGH - 4)
    with pytest.raises(FailedPreconditionError, match="not the one that runs/r began with"):
        await controller.epochs.begin("r", 1, 1)
    assert len(await _epochs(controller)) == 1
    plain = Controller()
    await plain.create()
    await plain.supervisor._open_attempt("r")
    with pytest.raises(FailedPreconditionError, match="need no snapshot"):
        await plain.epochs.begin("r", 1, 1)
