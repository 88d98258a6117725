"""Transcoders in other layouts: files of others made a transcoder, and a transcoder written for others."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weft_clt.formats.opening import AUTO, check_writable, detect, open_transcoder
from weft_common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_store import ObjectStore
from weft_store.documents import read_json
from weft_trainer.core.admission import check_new_id
from weft_trainer.core.bucket_files import BucketFiles
from weft_trainer.core.job_running import JobRunner
from weft_trainer.core.ports import RankJob
from weft_trainer.core.transcoders import Transcoders, check_model

__all__ = ["ForeignFiles", "FormatJobs", "formats_prefix"]


@dataclass(frozen=True)
class ForeignFiles:
    """
    Files that are to become a transcoder.

    Args:
        transcoder: Id of the new one.
        prefix: Where they lie in the bucket.
        layout: How, or `auto`.
        model: `models/{model}` that they were made for.
        model_revision: Hex SHA-256 of its checkpoint.
        input_hook: What it reads, where the files do not say it or say it wrong.
    """

    transcoder: str
    prefix: str
    layout: str
    model: str
    model_revision: str
    input_hook: str


def formats_prefix(transcoder: str, layout: str) -> str:
    """Return the folder of a transcoder in another layout, with a slash."""
    return f"transcoders/{transcoder}/formats/{layout}/"


class FormatJobs:
    """
    Converts, in a process of its own.

    Args:
        store: The bucket.
        transcoders: What there is in it.
        runner: Runs the process.
        environment: Makes its settings, from run, attempt and number of ranks.
        worker_module: What a rank runs; its `convert` is what this runs.
    """

    def __init__(
        self,
        store: ObjectStore,
        transcoders: Transcoders,
        runner: JobRunner,
        environment: Callable[[str, int, int], Mapping[str, str]],
        worker_module: str = "weft_trainer.worker",
    ) -> None:
        self._store = store
        self._transcoders = transcoders
        self._runner = runner
        self._environment = environment
        self._worker_module = worker_module

    async def check_files(self, files: ForeignFiles) -> str:
        """
        Check a request and the headers of the files, and return their layout.

        Raises:
            InvalidArgumentError: A field is malformed.
            AlreadyExistsError: The id is taken.
            NotFoundError, FailedPreconditionError, DataLossError: See `weft_clt.formats`.
        """
        check_new_id(files.transcoder, "transcoder_id")
        check_model(files.model, files.model_revision)
        if not files.prefix.strip("/"):
            raise InvalidArgumentError("prefix is empty: give the folder of the files in the bucket.", field="prefix")
        if await self._is_there(files.transcoder):
            raise AlreadyExistsError(
                f"there is a transcoders/{files.transcoder} already: choose another transcoder_id.",
                field="transcoder_id",
            )

        def opened() -> str:
            lying = BucketFiles(self._store, files.prefix)
            layout = detect(lying) if files.layout == AUTO else files.layout
            open_transcoder(lying, layout, input_hook=files.input_hook)
            return layout

        return await asyncio.to_thread(opened)

    async def take_in(self, files: ForeignFiles) -> dict[str, Any]:
        """Make the files a transcoder and return its manifest; one that is there from the same files is returned."""
        result = f"transcoders/{files.transcoder}/manifest.json"
        job = RankJob(
            key=f"transcoders/{files.transcoder}/import",
            module=f"{self._worker_module}.convert",
            num_ranks=0,
            environment={
                **self._environment("", 0, 0),
                "WEFT_WORKER_DIRECTION": "in",
                "WEFT_WORKER_TRANSCODER": files.transcoder,
                "WEFT_WORKER_LAYOUT": files.layout,
                "WEFT_WORKER_SOURCE_PREFIX": files.prefix,
                "WEFT_WORKER_MODEL": files.model,
                "WEFT_WORKER_MODEL_REVISION": files.model_revision,
                "WEFT_WORKER_INPUT_HOOK": files.input_hook,
            },
        )
        async with self._runner.alone(result):
            try:
                manifest, _ = await asyncio.to_thread(read_json, self._store, result)
            except NotFoundError:
                manifest = await self._runner.run(job, result, f"the transcoder in {files.prefix}")
        if manifest.get("imported_from") != files.prefix:
            raise AlreadyExistsError(f"there is another transcoders/{files.transcoder} already: choose another id.")
        return manifest

    async def check_layout(self, transcoder: str, layout: str) -> None:
        """
        Find out whether a transcoder can be written in a layout, as far as its manifest tells.

        Raises:
            NotFoundError: No such transcoder.
            InvalidArgumentError: No such layout.
            FailedPreconditionError: Its features write to later layers, and the layout is of per-layer transcoders.
        """
        manifest = await self._transcoders.get(transcoder)
        check_writable(layout)
        window = int(manifest.get("window", 0)) or int(manifest["num_layers"])
        if layout == "saelens" and window != 1 and manifest["num_layers"] != 1:
            raise FailedPreconditionError(
                f"features of transcoders/{transcoder} write to up to {window} layers, and SAELens has per-layer "
                "transcoders only: give another format.",
                field="format",
            )

    async def write(self, transcoder: str, layout: str) -> dict[str, Any]:
        """Write a transcoder in a layout, unless that was done, and return the document that lists its files."""
        manifest = await self._transcoders.get(transcoder)
        result = f"{formats_prefix(transcoder, layout)}manifest.json"
        job = RankJob(
            key=f"transcoders/{transcoder}/convert-{layout}",
            module=f"{self._worker_module}.convert",
            num_ranks=0,
            environment={
                **self._environment("", 0, 0),
                "WEFT_WORKER_DIRECTION": "out",
                "WEFT_WORKER_TRANSCODER": transcoder,
                "WEFT_WORKER_LAYOUT": layout,
                "WEFT_WORKER_SOURCE_PREFIX": str(manifest["prefix"]),
                "WEFT_WORKER_MODEL": str(manifest["model"]),
            },
        )
        async with self._runner.alone(result):
            try:
                return (await asyncio.to_thread(read_json, self._store, result))[0]
            except NotFoundError:
                return await self._runner.run(job, result, f"transcoders/{transcoder}")

    async def _is_there(self, transcoder: str) -> bool:
        try:
            await self._transcoders.get(transcoder)
        except NotFoundError:
            return False
        return True
