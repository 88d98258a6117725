"""Evaluation and export, with processes that are the test itself."""

import asyncio
import json

import pytest
from fake_ranks import Controller, FakeGroup

from weft_common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_trainer.core.format_jobs import ForeignFiles, FormatJobs
from weft_trainer.core.jobs import CheckpointJobs, CheckpointRef
from weft_trainer.core.transcoders import Transcoders

EVALUATION = "runs/r/checkpoints/00000004/evaluation.json"
BY_RANKS = "runs/r/checkpoints/00000004/evaluation-ranks.json"


async def _saved() -> Controller:
    controller = Controller()
    await controller.create()
    controller.save(2)
    controller.save(4)
    return controller


async def _group(controller: Controller, key: str, start: int = 1) -> FakeGroup:
    async with asyncio.timeout(5):
        while controller.launcher.num_starts < start:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return controller.launcher.groups[key]


async def test_evaluation_runs_on_the_runs_ranks_and_returns_their_document() -> None:
    """The ranks are told the step and the tokens; an evaluation from before is not mistaken for theirs."""
    controller = await _saved()
    controller.store.put(EVALUATION, b'{"step": 4, "tokens": 1}')
    controller.store.put(BY_RANKS, b'{"step": 4, "tokens": 1}')
    evaluating = asyncio.create_task(controller.jobs.evaluate(CheckpointRef("r", 4), 32))
    group = await _group(controller, "runs/r/checkpoints/00000004/evaluation")
    assert group.job is not None
    assert group.job.num_ranks == 2
    told = {
        name: group.job.environment[f"WEFT_WORKER_{name}"] for name in ("MODE", "CHECKPOINT_STEP", "EVALUATION_TOKENS")
    }
    assert told == {"MODE": "evaluate", "CHECKPOINT_STEP": "4", "EVALUATION_TOKENS": "32"}
    with pytest.raises(NotFoundError):
        controller.store.get(BY_RANKS)
    controller.store.put(BY_RANKS, json.dumps({"step": 4, "tokens": 32}).encode())
    group.finish(0)
    assert (await evaluating)["tokens"] == 32
    assert json.loads(controller.store.get(EVALUATION)) == {"step": 4, "tokens": 32}


@pytest.mark.parametrize(
    ("told", "spares", "device"), [("auto", True, "cpu"), ("cuda", True, "cuda"), ("auto", False, "auto")]
)
async def test_evaluation_leaves_the_gpus_of_its_machine_to_the_training(told: str, spares: bool, device: str) -> None:
    """Where nobody said otherwise; pods have GPUs of their own."""
    controller = await _saved()
    jobs = CheckpointJobs(
        controller.store, controller.runs, controller.runner,
        lambda run, attempt, ranks: {"WEFT_WORKER_DEVICE": told}, spares_gpus=spares,
    )  # fmt: skip
    evaluating = asyncio.create_task(jobs.evaluate(CheckpointRef("r", 4), 32))
    group = await _group(controller, "runs/r/checkpoints/00000004/evaluation")
    assert group.job is not None
    assert group.job.environment["WEFT_WORKER_DEVICE"] == device
    controller.store.put(BY_RANKS, b'{"step": 4, "tokens": 32}')
    group.finish(0)
    await evaluating


async def test_evaluation_that_fails_leaves_the_last_one() -> None:
    """Whether the ranks fail or the replacement model after them, what was known before is still known."""
    controller = await _saved()
    last = {"step": 4, "tokens": 1, "explained_variance": 0.5}
    controller.store.put(EVALUATION, json.dumps(last).encode())
    key = "runs/r/checkpoints/00000004/evaluation"
    evaluating = asyncio.create_task(controller.jobs.evaluate(CheckpointRef("r", 4), 32))
    (await _group(controller, key)).finish(42, "no held-out tokens")
    with pytest.raises(FailedPreconditionError, match="no held-out tokens"):
        await evaluating
    assert json.loads(controller.store.get(EVALUATION)) == last
    evaluating = asyncio.create_task(controller.jobs.evaluate(CheckpointRef("r", 4), 32, 64))
    group = await _group(controller, key, 2)
    controller.store.put(BY_RANKS, b'{"step": 4, "tokens": 32}')
    group.finish(0)
    (await _group(controller, "runs/r/checkpoints/00000004/replacement", 3)).finish(42, "no such model")
    with pytest.raises(FailedPreconditionError, match="no such model"):
        await evaluating
    assert [found.evaluation for found in await controller.runs.checkpoints("r")] == [last, {}]


async def test_checkpoint_is_held_before_its_evaluation_goes() -> None:
    """One that is deleted meanwhile keeps what is known of it, and nothing is started."""
    controller = await _saved()
    controller.store.put(EVALUATION, b'{"step": 4, "tokens": 1}')
    controller.store.delete("runs/r/checkpoints/00000004/manifest.json")
    with pytest.raises(NotFoundError, match="no complete checkpoint 4 any more"):
        await controller.jobs.evaluate(CheckpointRef("r", 4), 32)
    assert json.loads(controller.store.get(EVALUATION)) == {"step": 4, "tokens": 1}
    assert controller.launcher.num_starts == 0


async def test_evaluation_goes_on_with_the_replacement_model() -> None:
    """One process more measures it; the evaluation beside the checkpoint, and in the list, has its scores then."""
    controller = await _saved()
    evaluating = asyncio.create_task(controller.jobs.evaluate(CheckpointRef("r", 4), 32, 64))
    group = await _group(controller, "runs/r/checkpoints/00000004/evaluation")
    controller.store.put(BY_RANKS, b'{"step": 4, "tokens": 32}')
    group.finish(0)
    group = await _group(controller, "runs/r/checkpoints/00000004/replacement", 2)
    assert group.job is not None
    assert (group.job.module, group.job.num_ranks) == ("weft_trainer.worker.replacement", 0)
    assert group.job.environment["WEFT_WORKER_REPLACEMENT_TOKENS"] == "64"
    controller.store.put("runs/r/checkpoints/00000004/replacement.json", b'{"tokens": 60}')
    group.finish(0)
    wanted = {"step": 4, "tokens": 32, "replacement": {"tokens": 60}}
    assert await evaluating == wanted
    assert json.loads(controller.store.get(EVALUATION)) == wanted
    assert [found.evaluation for found in await controller.runs.checkpoints("r")] == [wanted, {}]


async def test_replacement_model_needs_an_activations_service() -> None:
    """A trainer that was given none refuses before anything starts."""
    controller = await _saved()
    with pytest.raises(FailedPreconditionError, match="WEFT_TRAINER_ACTIVATIONS_TARGET"):
        controller.jobs.check_replacement("r")


async def test_job_is_tried_twice_and_says_why_it_failed() -> None:
    """A process that dies is started once more; the error has the end of its log."""
    controller = await _saved()
    key = "transcoders/t/export"
    exporting = asyncio.create_task(controller.jobs.export(CheckpointRef("r", 4), "t"))
    (await _group(controller, key, 1)).finish(1, "first")
    (await _group(controller, key, 2)).finish(1, "no memory")
    with pytest.raises(InternalError, match="no memory"):
        await exporting


async def test_job_with_bad_configuration_is_not_tried_again() -> None:
    """Exit code 42 is an answer."""
    controller = await _saved()
    exporting = asyncio.create_task(controller.jobs.export(CheckpointRef("r", 4), "t"))
    (await _group(controller, "transcoders/t/export")).finish(42, "not a checkpoint")
    with pytest.raises(FailedPreconditionError, match="not a checkpoint"):
        await exporting
    assert controller.launcher.num_starts == 1


async def test_export_that_was_done_before_is_returned() -> None:
    """An export that is taken up again after it was complete does nothing; another run's is not given away."""
    controller = await _saved()
    controller.store.put("transcoders/t/manifest.json", b'{"run": "runs/r", "num_layers": 3}')
    assert (await controller.jobs.export(CheckpointRef("r", 4), "t"))["num_layers"] == 3
    controller.store.put("transcoders/u/manifest.json", b'{"run": "runs/other"}')
    with pytest.raises(AlreadyExistsError):
        await controller.jobs.export(CheckpointRef("r", 4), "u")
    assert controller.launcher.num_starts == 0


async def test_export_and_conversion_to_one_id_take_turns() -> None:
    """Their files would lie in the same folder; the second finds the first's and says that the id is taken."""
    controller = await _saved()
    formats = FormatJobs(
        controller.store, Transcoders(controller.store), controller.runner, lambda run, attempt, ranks: {}
    )
    files = ForeignFiles("t", "uploads/transcoders/t/", "saelens", "models/m", "0" * 64, "")
    exporting = asyncio.create_task(controller.jobs.export(CheckpointRef("r", 4), "t"))
    group = await _group(controller, "transcoders/t/export")
    converting = asyncio.create_task(formats.take_in(files))
    await asyncio.sleep(0)
    assert controller.launcher.num_starts == 1
    controller.store.put("transcoders/t/manifest.json", b'{"run": "runs/r"}')
    group.finish(0)
    assert (await exporting)["run"] == "runs/r"
    with pytest.raises(AlreadyExistsError, match="choose another id"):
        await converting
    assert controller.launcher.num_starts == 1


async def test_conversion_that_somebody_was_before_is_not_given_away() -> None:
    """Files that were taken over under the same id while it ran are not what was asked for."""
    controller = await _saved()
    formats = FormatJobs(
        controller.store, Transcoders(controller.store), controller.runner, lambda run, attempt, ranks: {}
    )
    files = ForeignFiles("t", "uploads/transcoders/t/", "saelens", "models/m", "0" * 64, "")
    converting = asyncio.create_task(formats.take_in(files))
    group = await _group(controller, "transcoders/t/import")
    controller.store.put("transcoders/t/manifest.json", b'{"prefix": "theirs/"}')
    group.finish(0)
    with pytest.raises(AlreadyExistsError):
        await converting


async def test_cancelled_job_leaves_no_process() -> None:
    """Whoever cancels the operation ends the process with it."""
    controller = await _saved()
    exporting = asyncio.create_task(controller.jobs.export(CheckpointRef("r", 4), "t"))
    group = await _group(controller, "transcoders/t/export")
    exporting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exporting
    assert not group.runs


async def test_checkpoints_are_found_by_name_or_as_the_newest() -> None:
    """Names that stand for nothing say what there is."""
    controller = await _saved()
    assert await controller.jobs.find("runs/r") == CheckpointRef("r", 4)
    assert await controller.jobs.find("runs/r/checkpoints/2") == CheckpointRef("r", 2)
    with pytest.raises(NotFoundError, match="there are 4, 2"):
        await controller.jobs.find("runs/r/checkpoints/3")
    with pytest.raises(NotFoundError):
        await controller.jobs.find("runs/x")
    with pytest.raises(InvalidArgumentError):
        await controller.jobs.find("checkpoints/3")
    bare = Controller()
    await bare.create()
    with pytest.raises(FailedPreconditionError, match="no complete checkpoint yet"):
        await bare.jobs.find("runs/r")
