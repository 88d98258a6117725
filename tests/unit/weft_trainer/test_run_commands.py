"""What is refused, with which error, and that it says what to do."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
from fake_ranks import SPEC, Controller

from weft_common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    WeftError,
)
from weft_trainer.core.commands import operation_id
from weft_trainer.core.records import RunState


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"num_features": 9}, InvalidArgumentError, "multiple of 2, for example 10"),
        ({"step_tokens": 5}, InvalidArgumentError, "multiple of 2, for example 6"),
        ({"num_steps": 0}, InvalidArgumentError, "give at least 1"),
        ({"activation": "ACTIVATION_UNSPECIFIED"}, InvalidArgumentError, "ACTIVATION_JUMP_RELU"),
        ({"feature_ranks": 4, "num_features": 8}, InvalidArgumentError, "give a divisor of 6"),
        ({"data_ranks": 50, "step_tokens": 400}, InvalidArgumentError, "WEFT_TRAINER_MAX_RANKS"),
        ({"dataset": "datasets/other"}, NotFoundError, "datasets/other"),
        ({"dataset": ""}, InvalidArgumentError, "datasets/"),
        ({"step_tokens": 2000}, FailedPreconditionError, "harvest more, or lower step_tokens"),
    ],
)
async def test_create_refuses_what_cannot_be_trained(
    changes: dict[str, Any], error: type[WeftError], says: str
) -> None:
    """Each refusal has its code and says what to do; nothing is written."""
    controller = Controller()
    with pytest.raises(error, match=says):
        await controller.create(**changes)
    assert await controller.runs.all() == []


@pytest.mark.parametrize(
    ("facts", "says"),
    [({"sealed": False}, "SealDataset"), ({"num_held_out_tokens": 0}, "held-out")],
)
async def test_create_refuses_a_dataset_that_is_not_ready(facts: dict[str, Any], says: str) -> None:
    """An unsealed dataset, or one without held-out tokens, is FAILED_PRECONDITION."""
    controller = Controller()
    controller.catalog.facts = replace(controller.catalog.facts, **facts)
    with pytest.raises(FailedPreconditionError, match=says):
        await controller.create()


async def test_create_refuses_what_the_launcher_refuses() -> None:
    """A cluster that will not take the ranks says so before anything is written."""
    controller = Controller()
    controller.launcher.refuses = InvalidArgumentError("spec.tolerations[0].operator: Unsupported value")
    with pytest.raises(InvalidArgumentError, match="Unsupported value"):
        await controller.create()
    assert await controller.runs.all() == []


@pytest.mark.parametrize("run", ["", "Upper", "a/b", "-a", "a" * 64, "ü", "a\n"])
async def test_create_refuses_an_id_that_is_none(run: str) -> None:
    """Ids are lower-case letters, digits and '-'."""
    with pytest.raises(InvalidArgumentError, match="run_id"):
        await Controller().commands.create(run, SPEC, "", validate_only=False)


async def test_validate_only_changes_nothing() -> None:
    """Everything is checked, nothing is written or started."""
    controller = Controller()
    record = await controller.commands.create("r", SPEC, "", validate_only=True)
    assert record.state is RunState.PENDING
    assert await controller.runs.all() == []
    assert controller.operations == []


async def test_the_same_request_twice_starts_one_run() -> None:
    """A request_id that comes again gives the run that is there; another request is refused."""
    controller = Controller()
    request_id = str(uuid.uuid4())
    first = await controller.commands.create("r", SPEC, request_id, validate_only=False)
    again = await controller.commands.create("r", SPEC, request_id, validate_only=False)
    assert again == first
    assert len(controller.operations) == 1
    with pytest.raises(AlreadyExistsError, match="another run_id"):
        await controller.commands.create("r", {**SPEC, "seed": 2}, request_id, validate_only=False)
    with pytest.raises(AlreadyExistsError):
        await controller.commands.create("r", SPEC, "", validate_only=False)


async def test_a_run_without_operation_is_started_when_the_controller_is_back() -> None:
    """A controller that died between the run and its operation starts it at its next start, once."""
    controller = Controller()
    record = await controller.create()
    await controller.runs.change("r", lambda present: replace(present, operation=""))
    await controller.commands.start_unstarted()
    assert (await controller.runs.get("r")).operation == record.operation
    assert len(set(controller.operations)) == 1


async def test_pause_and_resume_refuse_the_wrong_state() -> None:
    """Only a running run is paused, only a paused or failed one resumed."""
    controller = Controller()
    await controller.create()
    with pytest.raises(FailedPreconditionError, match="only a RUNNING run"):
        await controller.commands.pause("r", 0.1)
    with pytest.raises(FailedPreconditionError, match="PAUSED or FAILED"):
        await controller.commands.resume("r")


async def test_resume_takes_other_ranks() -> None:
    """They are checked like those of a new run, and the spec that the ranks read has them."""
    controller = Controller()
    await controller.create()
    await controller.runs.change("r", lambda record: record.moved(RunState.RUNNING, "reports"))
    await controller.runs.change("r", lambda record: record.moved(RunState.PAUSED, "asked"))
    with pytest.raises(InvalidArgumentError, match="cannot be split evenly"):
        await controller.commands.resume("r", {"feature_ranks": 7, "data_ranks": 0})
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        await controller.commands.resume("r", {"feature_ranks": 0, "data_ranks": -1})
    controller.launcher.refuses = InvalidArgumentError("there are not so many nodes")
    with pytest.raises(InvalidArgumentError, match="not so many nodes"):
        await controller.commands.resume("r", {"feature_ranks": 2, "data_ranks": 0})
    controller.launcher.refuses = None
    assert (await controller.runs.get("r")).state is RunState.PAUSED
    record = await controller.commands.resume("r", {"feature_ranks": 2, "data_ranks": 0})
    assert record.spec == {**SPEC, "feature_ranks": 2}
    assert record.state is RunState.PENDING


async def test_field_that_nothing_reads_is_refused_of_a_new_run_only() -> None:
    """What an earlier version accepted goes on, also with other ranks."""
    controller = Controller()
    with pytest.raises(InvalidArgumentError, match=r"bandwidth: 1\.0 has no meaning with ACTIVATION_TOP_K"):
        await controller.create(bandwidth=1.0)
    await controller.create()
    await controller.runs.change(
        "r", lambda record: replace(record, spec={**record.spec, "bandwidth": 1.0}, state=RunState.PAUSED)
    )
    record = await controller.commands.resume("r", {"feature_ranks": 1, "data_ranks": 1})
    assert record.spec == {**SPEC, "bandwidth": 1.0, "feature_ranks": 1}


async def test_commands_on_an_unknown_run_are_not_found() -> None:
    """Each says that there is no such run."""
    commands = Controller().commands
    for call in (commands.pause("x", 0.1), commands.resume("x"), commands.cancel("x")):
        with pytest.raises(NotFoundError, match="runs/x"):
            await call


@pytest.mark.parametrize("run", ["a", "a" * 63, "a" * 31 + "-" + "b" * 31])
def test_operation_ids_are_short_and_distinct(run: str) -> None:
    """However long a run's id, its operations' ids are ids, one for each count."""
    assert len(operation_id(run, 999)) <= 63
    assert operation_id(run, 0) != operation_id(run, 1)
    assert operation_id(run, 0) != operation_id(run[:-1] + "z", 0)


async def test_checkpoints_are_listed_newest_first_and_only_complete() -> None:
    """A folder without a manifest is no checkpoint."""
    controller = Controller()
    await controller.create()
    controller.save(2)
    controller.save(12, attempt=3)
    controller.store.put("runs/r/checkpoints/00000020/rank0-of-1.safetensors", b"1")
    found = await controller.runs.checkpoints("r")
    assert [(entry.step, entry.attempt) for entry in found] == [(12, 3), (2, 1)]
    assert found[0].size_bytes > 4
    assert await controller.runs.newest_step("r") == 12
