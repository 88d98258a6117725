"""Work on a checkpoint that ends with one document in the bucket: evaluation and export."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from weft_common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_store import ObjectStore
from weft_store.documents import encode_json, read_json
from weft_trainer.core.admission import check_new_id
from weft_trainer.core.job_running import JobRunner
from weft_trainer.core.ports import RankJob
from weft_trainer.core.records import RunRecord
from weft_trainer.core.retention import hold
from weft_trainer.core.runs import RunRepository, checkpoint_prefix

__all__ = ["CheckpointJobs", "CheckpointRef", "parse_checkpoint"]

_DEVICE = "WEFT_WORKER_DEVICE"
_NAME = re.compile(r"runs/(?P<run>[a-z0-9-]{1,63})(/checkpoints/(?P<step>[0-9]{1,18}))?")


@dataclass(frozen=True)
class CheckpointRef:
    """
    A complete checkpoint.

    Args:
        run: Id of its run.
        step: Its step.
    """

    run: str
    step: int


def parse_checkpoint(name: str) -> tuple[str, int | None]:
    """
    Read `runs/{run}/checkpoints/{step}`, or `runs/{run}` for the newest.

    >>> parse_checkpoint("runs/demo/checkpoints/60"), parse_checkpoint("runs/demo")
    (('demo', 60), ('demo', None))
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidArgumentError(
            f"checkpoint is {name[:120]!r}: give runs/{{run}}/checkpoints/{{step}}, or runs/{{run}} for the newest.",
            field="checkpoint",
        )
    return match["run"], int(match["step"]) if match["step"] else None


class CheckpointJobs:
    """
    Evaluates and exports checkpoints.

    Args:
        store: The bucket.
        runs: The runs in it.
        runner: Runs ranks.
        environment: Makes the settings of ranks, from run, attempt and number of ranks.
        worker_module: What a rank runs; its `export` is what an export runs.
        spares_gpus: Whether evaluations leave GPUs to the training, where nobody said what ranks compute on.
    """

    def __init__(
        self,
        store: ObjectStore,
        runs: RunRepository,
        runner: JobRunner,
        environment: Callable[[str, int, int], Mapping[str, str]],
        worker_module: str = "weft_trainer.worker",
        *,
        spares_gpus: bool = False,
    ) -> None:
        self._store = store
        self._runs = runs
        self._runner = runner
        self._environment = environment
        self._worker_module = worker_module
        self._spares_gpus = spares_gpus

    async def find(self, name: str) -> CheckpointRef:
        """
        Find a checkpoint by its name, or a run's newest.

        Raises:
            NotFoundError: No such run, or the run has no such complete checkpoint.
            FailedPreconditionError: The run has no checkpoint yet.
        """
        run, step = parse_checkpoint(name)
        await self._runs.get(run)
        steps = [found.step for found in await self._runs.checkpoints(run)]
        if not steps:
            raise FailedPreconditionError(
                f"runs/{run} has no complete checkpoint yet: pause it, or wait for its first."
            )
        if step is None:
            return CheckpointRef(run, steps[0])
        if step not in steps:
            there = ", ".join(str(found) for found in steps[:10])
            raise NotFoundError(f"runs/{run} has no complete checkpoint {step}: there are {there}.", field="checkpoint")
        return CheckpointRef(run, step)

    async def check_export(self, transcoder: str) -> None:
        """Refuse an id that is none or is taken."""
        check_new_id(transcoder, "transcoder_id")
        try:
            await asyncio.to_thread(self._store.info, f"transcoders/{transcoder}/manifest.json")
        except NotFoundError:
            return
        raise AlreadyExistsError(
            f"there is a transcoders/{transcoder} already: choose another transcoder_id.", field="transcoder_id"
        )

    def check_replacement(self, run: str) -> None:
        """Refuse to measure the replacement model where nothing can run the base model. FailedPreconditionError."""
        if "WEFT_WORKER_ACTIVATIONS_TARGET" not in self._environment(run, 0, 0):
            raise FailedPreconditionError(
                "the trainer knows no activations service, which runs the replacement model: set "
                "WEFT_TRAINER_ACTIVATIONS_TARGET, or leave replacement_tokens at 0.",
                field="replacement_tokens",
            )

    async def evaluate(self, checkpoint: CheckpointRef, num_tokens: int, replacement_tokens: int = 0) -> dict[str, Any]:
        """
        Evaluate a checkpoint on held-out tokens and return the evaluation's fields; they stay beside the checkpoint.

        The last evaluation stays until this one is complete.

        Args:
            checkpoint: Which one.
            num_tokens: Held-out tokens; 0 means all.
            replacement_tokens: Held-out tokens to run the replacement model on; 0 leaves it out.
        """
        record = await self._runs.get(checkpoint.run)
        prefix = checkpoint_prefix(checkpoint.run, checkpoint.step)
        result, measured = f"{prefix}evaluation.json", f"{prefix}evaluation-ranks.json"
        told = self._environment(checkpoint.run, record.attempt, record.num_ranks)
        spares_gpus = self._spares_gpus and told.get(_DEVICE) == "auto"
        job = RankJob(
            key=f"{prefix}evaluation",
            module=self._worker_module,
            num_ranks=record.num_ranks,
            environment={
                **told,
                **({_DEVICE: "cpu"} if spares_gpus else {}),
                "WEFT_WORKER_MODE": "evaluate",
                "WEFT_WORKER_CHECKPOINT_STEP": str(checkpoint.step),
                "WEFT_WORKER_EVALUATION_TOKENS": str(num_tokens),
            },
        )
        async with self._runner.alone(result), self._held(checkpoint):
            evaluation = await self._measured(job, measured, record)
            if replacement_tokens:
                evaluation["replacement"] = await self._replace(checkpoint, replacement_tokens, record)
            await asyncio.to_thread(self._store.put, result, encode_json(evaluation))
            return evaluation

    async def _measured(self, job: RankJob, key: str, record: RunRecord) -> dict[str, Any]:
        """Run a job and return the document that it leaves; one of an earlier job is not mistaken for its own."""
        await asyncio.to_thread(self._store.delete, key)
        return await self._runner.run(job, key, record.name)

    async def _replace(self, checkpoint: CheckpointRef, num_tokens: int, record: RunRecord) -> dict[str, Any]:
        prefix = checkpoint_prefix(checkpoint.run, checkpoint.step)
        job = RankJob(
            key=f"{prefix}replacement",
            module=f"{self._worker_module}.replacement",
            num_ranks=0,
            environment={
                **self._environment(checkpoint.run, record.attempt, record.num_ranks),
                "WEFT_WORKER_CHECKPOINT_STEP": str(checkpoint.step),
                "WEFT_WORKER_REPLACEMENT_TOKENS": str(num_tokens),
            },
        )
        return await self._measured(job, f"{prefix}replacement.json", record)

    async def export(self, checkpoint: CheckpointRef, transcoder: str) -> dict[str, Any]:
        """Write a checkpoint as a transcoder and return its manifest; one that is there is returned as it is."""
        record = await self._runs.get(checkpoint.run)
        result = f"transcoders/{transcoder}/manifest.json"
        job = RankJob(
            key=f"transcoders/{transcoder}/export",
            module=f"{self._worker_module}.export",
            num_ranks=0,
            environment={
                **self._environment(checkpoint.run, record.attempt, record.num_ranks),
                "WEFT_WORKER_CHECKPOINT_STEP": str(checkpoint.step),
                "WEFT_WORKER_TRANSCODER": transcoder,
            },
        )
        async with self._runner.alone(result):
            try:
                manifest, _ = await asyncio.to_thread(read_json, self._store, result)
            except NotFoundError:
                async with self._held(checkpoint):
                    manifest = await self._runner.run(job, result, record.name)
        if manifest.get("run") != record.name:
            raise AlreadyExistsError(f"there is another transcoders/{transcoder} already: choose another id.")
        return manifest

    @asynccontextmanager
    async def _held(self, checkpoint: CheckpointRef) -> AsyncIterator[None]:
        """Keep a checkpoint from being deleted while ranks read it. NotFoundError where it is gone already."""
        stack = ExitStack()
        try:
            await asyncio.to_thread(stack.enter_context, hold(self._store, checkpoint.run, checkpoint.step))
            yield
        finally:
            await asyncio.to_thread(stack.close)
