"""Exports: what an index keeps of features, written as files that other tools read."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from weft_attribution.core.feature_export.describing import Described, describe, token_ids_of
from weft_attribution.core.feature_export.settings import ExportKeys, ExportLayout, ExportRequest
from weft_attribution.core.feature_export.writing import Progress, TokenTexts, Writing
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
)
from weft_store.documents import create_json, list_ids, read_json
from weft_store.port import ObjectStore

__all__ = ["PIECE_BYTES", "FeatureExports", "FrozenWeights"]

Json = dict[str, Any]
PIECE_BYTES = 1 << 20


class FrozenWeights(Protocol):
    """The base models' weights by their ids; the call blocks."""

    def weights(self, model: str) -> LinearWeights:
        """The frozen weights of a model."""


class FeatureExports:
    """
    The exports in a bucket.

    Args:
        store: The bucket.
        runner: The base model, for the text of tokens.
        models: Its weights, for logits.
        indexes: Whole indexes.
    """

    def __init__(self, store: ObjectStore, runner: ModelRunner, models: FrozenWeights, indexes: OpenIndexes) -> None:
        self._store, self._runner, self._models, self._indexes = store, runner, models, indexes

    def look_up(self, asked: ExportRequest) -> tuple[ExportRequest, int]:
        """
        Fill in what a request leaves open, and count its features; the same again gives what was begun before. Blocks.

        Raises:
            InvalidArgumentError: Something is out of its range.
            NotFoundError: No such transcoder, index or layer.
            FailedPreconditionError: There is no index, or the transcoder was replaced since.
            AlreadyExistsError: The id stands for another export.
        """
        asked.check()
        begun = self._begun(asked.keys)
        index_id = asked.index_id or (begun.index_id if begun else self._indexes.open(asked.transcoder).index_id)
        index = self._open(asked.transcoder, index_id)
        for layer in asked.layers:
            index.number(layer, 0)
        found = replace(
            asked,
            index_id=index_id,
            layers=asked.layers or tuple(range(index.num_layers)),
            model_name=asked.model_name or index.model,
        )
        if begun is not None and found != begun:
            raise _taken(asked)
        return found, sum(index.num_features(layer) for layer in found.layers)

    def _begun(self, keys: ExportKeys) -> ExportRequest | None:
        try:
            return ExportRequest.from_json(read_json(self._store, keys.request)[0]["request"])
        except NotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise DataLossError(f"{keys.request} is damaged ({error!r}); delete the export") from error

    def _open(self, transcoder: str, index_id: str) -> OpenIndex:
        """An index of our own, since its text may come to lie in a scratch file."""
        manifest = self._indexes.manifest(transcoder, index_id)
        if manifest.get("transcoder_mark") != TranscoderReader(self._store, transcoder).mark:
            raise FailedPreconditionError(
                f"transcoders/{transcoder} was replaced since transcoders/{transcoder}/indexes/{index_id} was made; "
                "index it again"
            )
        return OpenIndex(self._store, manifest)

    async def build(self, request: ExportRequest, progress: Progress) -> Json:
        """
        Write what `look_up` gave, or what is left of it.

        Args:
            request: The export.
            progress: Called with features that are written and all of them.

        Returns:
            Its manifest.
        """
        keys = request.keys
        try:
            manifest = await asyncio.to_thread(self.manifest, request.transcoder, request.export_id)
        except NotFoundError:
            manifest = None
        if manifest is None:
            with tempfile.TemporaryDirectory(prefix="weft-export-") as scratch:
                manifest = await self._build(request, Path(scratch), progress)
        # Who wrote it may have died right after.
        await asyncio.to_thread(_clear, self._store, keys.states)
        return manifest

    async def _build(self, request: ExportRequest, scratch: Path, progress: Progress) -> Json:
        begun = await asyncio.to_thread(self._begin, request)
        index = await asyncio.to_thread(self._open, request.transcoder, request.index_id)
        await asyncio.to_thread(index.text.keep_at, scratch / "tokens.bin")
        transcoder = TranscoderReader(self._store, request.transcoder)
        weights = await asyncio.to_thread(self._models.weights, index.model)
        texts = TokenTexts(self._runner, index.model)

        async def part(layer: int, low: int, high: int) -> tuple[list[Described], dict[int, str]]:
            described = await asyncio.to_thread(
                describe, index, transcoder, weights, layer, low, high, request.num_logits
            )
            return described, await texts(token_ids_of(described))

        writing = Writing(self._store, request, index, scratch, part, progress)
        await (writing.batches() if request.layout is ExportLayout.SAE_DASHBOARD else writing.layers())
        return await asyncio.to_thread(self._finish, request, begun, writing.total)

    def _begin(self, request: ExportRequest) -> Json:
        document = {"create_s": time.time(), "request": request.to_json()}
        try:
            create_json(self._store, request.keys.request, document)
        except AlreadyExistsError:
            document, _ = read_json(self._store, request.keys.request)
            if document.get("request") != request.to_json():
                raise _taken(request) from None
        return document

    def _finish(self, request: ExportRequest, begun: Json, num_features: int) -> Json:
        prefix = request.keys.files
        files = [{"path": info.key[len(prefix) :], "size_bytes": info.size_bytes} for info in self._store.list(prefix)]
        manifest = {**begun, "num_features": num_features, "files": files}
        try:
            create_json(self._store, request.keys.manifest, manifest)
        except AlreadyExistsError:
            manifest, _ = read_json(self._store, request.keys.manifest)
        return manifest

    def manifest(self, transcoder: str, export_id: str) -> Json:
        """
        The manifest of a whole export; blocks.

        Raises:
            NotFoundError: There is none, or it is not whole yet.
            DataLossError: It is damaged.
        """
        keys = ExportKeys(transcoder, export_id)
        try:
            document, _ = read_json(self._store, keys.manifest)
        except NotFoundError:
            raise NotFoundError(
                f"transcoders/{transcoder}/exports/{export_id} is not there, or not whole yet; ListFeatureExports "
                "shows those that there are"
            ) from None
        try:
            ExportRequest.from_json(document["request"])
            float(document["create_s"]), int(document["num_features"])
            for file in document["files"]:
                str(file["path"]), int(file["size_bytes"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataLossError(
                f"{keys.manifest} is damaged ({error!r}); delete the export and make it anew"
            ) from error
        return document

    def ids(self, transcoder: str) -> list[str]:
        """Ids of the whole exports of a transcoder; blocks. NotFoundError: no such transcoder."""
        TranscoderReader(self._store, transcoder)
        return list(list_ids(self._store, f"features/{transcoder}/exports/", "/manifest.json"))

    def pieces(self, transcoder: str, export_id: str, path: str) -> Iterator[bytes]:
        """
        A file of an export, piece by piece; blocks.

        Raises:
            NotFoundError: There is no such export, or it has no such file.
            DataLossError: The file is not as long as the manifest says.
        """
        files = {file["path"]: int(file["size_bytes"]) for file in self.manifest(transcoder, export_id)["files"]}
        if path not in files:
            raise NotFoundError(
                f"transcoders/{transcoder}/exports/{export_id} has no file {path[:100]!r}; GetFeatureExport names them",
                field="path",
            )
        key = ExportKeys(transcoder, export_id).files + path
        for offset in range(0, files[path], PIECE_BYTES):
            wanted = min(PIECE_BYTES, files[path] - offset)
            data = self._store.get(key, offset=offset, length=wanted)
            if len(data) != wanted:
                raise DataLossError(f"{key} is cut short; delete the export and make it anew")
            yield data

    def delete(self, transcoder: str, export_id: str) -> None:
        """Delete an export, whole or not; blocks. NotFoundError: there is nothing of it."""
        keys = ExportKeys(transcoder, export_id)
        there = [info.key for info in self._store.list(keys.prefix)]
        if not there:
            raise NotFoundError(f"transcoders/{transcoder}/exports/{export_id} is not there, so nothing was deleted")
        # Without its manifest nobody reads it; how it was asked for goes last, so that a crash can be made good.
        for key in (keys.manifest, *(key for key in there if key not in (keys.manifest, keys.request)), keys.request):
            self._store.delete(key)


def _taken(request: ExportRequest) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"transcoders/{request.transcoder}/exports/{request.export_id} was asked for otherwise; give this one an id of "
        "its own, or delete that one",
        field="export_id",
    )


def _clear(store: ObjectStore, prefix: str) -> None:
    for info in list(store.list(prefix)):
        store.delete(info.key)
