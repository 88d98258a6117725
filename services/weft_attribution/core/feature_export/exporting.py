"""Exports: what an index keeps of features, written as files that other tools read."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from weft_attribution.core.feature_export.describing import Described, describe, token_ids_of
from weft_attribution.core.feature_export.manifests import (
    Source,
    begin_export,
    check_not_going,
    check_same,
    delete_export,
    finish_export,
    read_begun,
    read_export,
    read_files,
)
from weft_attribution.core.feature_export.scratch import Scratch
from weft_attribution.core.feature_export.settings import ExportKeys, ExportLayout, ExportRequest
from weft_attribution.core.feature_export.writing import Progress, Writing
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.token_pieces import TokenPieces
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.waited_threads import in_thread
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError
from weft_store.documents import list_ids
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
        scratch_bytes: Most that an export takes of the temporary folder.
    """

    def __init__(
        self,
        store: ObjectStore,
        runner: ModelRunner,
        models: FrozenWeights,
        indexes: OpenIndexes,
        *,
        scratch_bytes: int = 3 << 30,
    ) -> None:
        self._store, self._runner, self._models, self._indexes = store, runner, models, indexes
        self._scratch_bytes = scratch_bytes

    def look_up(self, asked: ExportRequest) -> tuple[ExportRequest, int]:
        """
        Fill in what a request leaves open, and count its features; the same again gives what was begun before. Blocks.

        Raises:
            InvalidArgumentError: Something is out of its range.
            NotFoundError: No such transcoder, index or layer.
            FailedPreconditionError: There is no index, the transcoder was replaced since, or the id is being deleted.
            AlreadyExistsError: The id stands for another export.
        """
        asked.check()
        check_not_going(self._store, asked.keys)
        begun = read_begun(self._store, asked.keys)
        index_id = asked.index_id or (begun[0].index_id if begun else "")
        if not index_id:
            index_id = str(self._indexes.newest(asked.transcoder)["request"]["index_id"])
        index = self._index(asked.transcoder, index_id)
        sizes = [int(layer["num_features"]) for layer in index["layers"]]
        for layer in asked.layers:
            if not 0 <= layer < len(sizes):
                raise NotFoundError(
                    f"transcoders/{asked.transcoder} has no layer {layer}; its layers are 0 to {len(sizes) - 1}"
                )
        found = replace(
            asked,
            index_id=index_id,
            layers=asked.layers or tuple(range(len(sizes))),
            model_name=asked.model_name or str(index["model"]),
        )
        check_same(begun, found, Source.of(index))
        return found, sum(sizes[layer] for layer in found.layers)

    def _index(self, transcoder: str, index_id: str) -> Mapping[str, Any]:
        """The manifest of an index that is of the transcoder as it is."""
        manifest = self._indexes.manifest(transcoder, index_id)
        if manifest.get("transcoder_mark") != TranscoderReader(self._store, transcoder).mark:
            raise FailedPreconditionError(
                f"transcoders/{transcoder} was replaced since transcoders/{transcoder}/indexes/{index_id} was made; "
                "index it again"
            )
        return manifest

    def _open(self, transcoder: str, index_id: str) -> OpenIndex:
        """An index of our own, since its text may come to lie in a scratch file."""
        return OpenIndex(self._store, self._index(transcoder, index_id))

    async def build(self, request: ExportRequest, progress: Progress) -> Json:
        """
        Write what `look_up` gave, or what is left of it.

        Args:
            request: The export.
            progress: Called with features that are written and all of them.

        Returns:
            Its manifest.

        Raises:
            StorageFullError: The temporary folder cannot take what has to lie there.
        """
        keys = request.keys
        try:
            manifest = await in_thread(self.manifest, request.transcoder, request.export_id)
        except NotFoundError:
            manifest = None
        if manifest is None:
            with tempfile.TemporaryDirectory(prefix="weft-export-") as folder:
                manifest = await self._build(request, Scratch(Path(folder), self._scratch_bytes), progress)
        # Who wrote it may have died right after.
        await in_thread(_clear, self._store, keys.states)
        return manifest

    async def _build(self, request: ExportRequest, scratch: Scratch, progress: Progress) -> Json:
        index = await in_thread(self._open, request.transcoder, request.index_id)
        begun = await in_thread(begin_export, self._store, request, Source.of(index.manifest))
        await in_thread(_keep_text, index, scratch)
        transcoder = TranscoderReader(self._store, request.transcoder)
        weights = await in_thread(self._models.weights, index.model)
        pieces = TokenPieces(self._runner, index.model)

        # The other layout has no place for them.
        with_bars = request.layout is ExportLayout.SAE_DASHBOARD

        def described_part(layer: int, low: int, high: int) -> tuple[list[Described], list[int]]:
            described = describe(index, transcoder, weights, layer, low, high, request.num_logits, with_bars=with_bars)
            return described, token_ids_of(described)

        async def part(layer: int, low: int, high: int) -> tuple[list[Described], dict[int, bytes]]:
            described, token_ids = await in_thread(described_part, layer, low, high)
            return described, await pieces.by_id(token_ids)

        writing = Writing(self._store, request, index, scratch, part, progress)
        await (writing.batches() if request.layout is ExportLayout.SAE_DASHBOARD else writing.layers())
        return await in_thread(finish_export, self._store, request, begun, writing.total, writing.paths)

    def manifest(self, transcoder: str, export_id: str) -> Json:
        """
        The manifest of a whole export; blocks.

        Raises:
            NotFoundError: There is none, or it is not whole yet.
            DataLossError: It is damaged.
        """
        return read_export(self._store, ExportKeys(transcoder, export_id))

    def files(self, transcoder: str, export_id: str) -> list[tuple[str, int]]:
        """
        Path and bytes of each file of a whole export, by path; blocks.

        Raises:
            NotFoundError: There is no such export, or it is not whole yet.
            DataLossError: It is damaged.
        """
        keys = ExportKeys(transcoder, export_id)
        read_export(self._store, keys)
        return read_files(self._store, keys)

    def ids(self, transcoder: str) -> list[str]:
        """Ids of the whole exports of a transcoder; blocks. NotFoundError: no such transcoder."""
        TranscoderReader(self._store, transcoder)
        return list(list_ids(self._store, f"features/{transcoder}/exports/", "/manifest.json"))

    def pieces(self, transcoder: str, export_id: str, path: str) -> Iterator[bytes]:
        """
        A file of an export, piece by piece; blocks.

        Raises:
            NotFoundError: There is no such export, or it has no such file.
            DataLossError: The file ends before it should.
        """
        keys = ExportKeys(transcoder, export_id)
        request = ExportRequest.from_json(self.manifest(transcoder, export_id)["request"])
        key = keys.files + path
        try:
            # Only what this layout calls a file becomes a key.
            size = self._store.info(key).size_bytes if request.is_file(path) else None
        except NotFoundError:
            size = None
        if size is None:
            raise NotFoundError(
                f"transcoders/{transcoder}/exports/{export_id} has no file {path[:100]!r}; ListExportedFiles names "
                "them",
                field="path",
            )
        for offset in range(0, size, PIECE_BYTES):
            wanted = min(PIECE_BYTES, size - offset)
            data = self._store.get(key, offset=offset, length=wanted)
            if len(data) != wanted:
                raise DataLossError(f"{key} is cut short; delete the export and make it anew")
            yield data

    def delete(self, transcoder: str, export_id: str) -> None:
        """Delete an export, whole or not; blocks. NotFoundError: there is nothing of it."""
        delete_export(self._store, ExportKeys(transcoder, export_id))


def _keep_text(index: OpenIndex, scratch: Scratch) -> None:
    if not index.text.is_held:
        index.text.keep_at(scratch.room("tokens.bin", index.text.num_bytes))


def _clear(store: ObjectStore, prefix: str) -> None:
    for info in list(store.list(prefix)):
        store.delete(info.key)
