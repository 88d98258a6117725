"""
Makes a corpus of files in the bucket: reads them record by record, keeps the documents, counts what is none.

Everything that decides which documents there are is a function of the files and the request: files come in order of
their keys, records in order within a file, and a sample is drawn by file, place and seed. What is read is a copy on
this machine, whose SHA-256 the manifest has; a file that changes later changes no corpus.
"""

import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from weft_activations.core.corpus import Corpus, manifest_key, read_corpus
from weft_activations.core.corpus_origin import BrokenRecord, CorpusOrigin, ImportSpec, SourceFile
from weft_activations.core.corpus_parts import CorpusPart, write_parts
from weft_activations.core.ports import RecordFormat
from weft_activations.core.records import ReadBudget, ReadLimits, Record
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    WeftError,
)
from weft_common.resource_names import check_id
from weft_store.documents import create_json
from weft_store.port import ObjectInfo, ObjectStore, check_prefix

__all__ = ["CorpusImporter", "ImportLimits", "ImportProgress"]

_MAX_FILES = 10_000
_SHOWN_BROKEN = 20


@dataclass(frozen=True)
class ImportLimits:
    """
    What an import may take in.

    Attributes:
        prefixes: Beginnings of keys that a source must have one of.
        file_bytes: Largest file, as it lies in the bucket.
        corpus_bytes: Most bytes of text of one corpus.
        documents: Most documents of one corpus.
        reading: What it may cost to read the files.
    """

    prefixes: tuple[str, ...]
    file_bytes: int
    corpus_bytes: int
    documents: int
    reading: ReadLimits


@dataclass
class ImportProgress:
    """How far an import is; written by its thread and read by others."""

    file_bytes: int = 0
    total_file_bytes: int = 0


@dataclass
class _Tally:
    """What was found so far."""

    spec: ImportSpec
    files: list[SourceFile] = field(default_factory=list)
    parts: list[CorpusPart] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    size_bytes: int = 0
    num_documents: int = 0
    num_records: int = 0
    num_empty: int = 0
    num_broken: int = 0
    broken: list[BrokenRecord] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return 0 < self.spec.max_documents <= self.num_documents

    def add_broken(self, file: str, record: Record) -> None:
        self.num_broken += 1
        if len(self.broken) < _SHOWN_BROKEN:
            self.broken.append(BrokenRecord(file, record.number, record.problem))
        if self.num_broken > self.spec.max_broken:
            raise FailedPreconditionError(
                f"{file}, record {record.number}: {record.problem}; {self.num_broken} broken records are more than "
                f"max_broken, {self.spec.max_broken}: mend the file or allow more",
                field="spec.max_broken",
            )


class CorpusImporter:
    """
    Imports corpora. Calls block.

    Args:
        store: The bucket.
        formats: What files can be read.
        limits: What an import may take in.
        weft_version: Goes into manifests.
    """

    def __init__(
        self, store: ObjectStore, formats: Sequence[RecordFormat], limits: ImportLimits, *, weft_version: str
    ) -> None:
        self._store = store
        self._formats = {suffix: each for each in formats for suffix in each.suffixes}
        self._limits = limits
        self._weft_version = weft_version

    def check(self, corpus_id: str, spec: ImportSpec) -> list[ObjectInfo]:
        """
        Check a request and change nothing.

        Returns:
            The files that would be read, in order.

        Raises:
            InvalidArgumentError: A value is out of range, or the source lies where none may be read.
            NotFoundError: There is no file to read.
            AlreadyExistsError: Another corpus has that name.
            FailedPreconditionError: Too many files, or too large a one.
        """
        check_id(corpus_id, field="corpus_id")
        check_prefix(spec.source)
        if not spec.source.startswith(self._limits.prefixes):
            raise InvalidArgumentError(
                f"source is {spec.source!r}; files are read below {' or '.join(self._limits.prefixes)} only, see "
                "WEFT_ACTIVATIONS_CORPUS_PREFIXES",
                field="spec.source",
            )
        if not 0 < spec.sample_share <= 1:
            raise InvalidArgumentError(
                f"sample_share is {spec.sample_share}; give more than 0 and at most 1", field="spec.sample_share"
            )
        for name in ("max_broken", "max_documents"):
            if getattr(spec, name) < 0:
                raise InvalidArgumentError(f"{name} is below 0; give 0 or more", field=f"spec.{name}")
        with suppress(NotFoundError):
            self._same(read_corpus(self._store, corpus_id), spec)
        return self._files(spec)

    def run(
        self,
        corpus_id: str,
        spec: ImportSpec,
        progress: ImportProgress,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Corpus:
        """
        Import; where the corpus is there already, made from the same request, it is returned.

        Args:
            corpus_id: The new corpus.
            spec: What to read.
            progress: Is kept up to date.
            stopped: Whether somebody called it off.

        Raises:
            FailedPreconditionError: More is broken than the request allows, or a limit is reached; says where.
            CancelledError: It was called off.
            WeftError: As `check`.
        """
        with suppress(NotFoundError):
            return self._same(read_corpus(self._store, corpus_id), spec)
        files = self.check(corpus_id, spec)
        progress.total_file_bytes = sum(info.size_bytes for info in files)
        tally = _Tally(spec)
        budget = ReadBudget(self._limits.reading, stopped=stopped)
        run_id = uuid.uuid4().hex

        def key(index: int) -> str:
            # No two runs write one key: one that is slow to die cannot harm the one that took its place.
            return f"{_parts(corpus_id)}{run_id}-{index:06d}.strings.zst"

        try:
            write_parts(self._store, self._documents(files, tally, budget, progress), key, tally.parts.append)
            budget.spend(0)
            self._commit(corpus_id, tally)
        except BaseException:
            # Nobody will read these: without a manifest they are no corpus.
            with suppress(WeftError):
                for part in tally.parts:
                    self._store.delete(part.key)
            raise
        return read_corpus(self._store, corpus_id)

    def _files(self, spec: ImportSpec) -> list[ObjectInfo]:
        files = []
        for info in self._store.list(spec.source):
            if self._format(info.key) is None:
                continue
            if info.size_bytes > self._limits.file_bytes:
                raise FailedPreconditionError(
                    f"{info.key} has {info.size_bytes} bytes; a file has {self._limits.file_bytes} at most: split it, "
                    "or raise WEFT_ACTIVATIONS_MAX_CORPUS_FILE_BYTES",
                    field="spec.source",
                )
            files.append(info)
            if len(files) > _MAX_FILES:
                raise FailedPreconditionError(
                    f"there are more than {_MAX_FILES} files at {spec.source}; name a longer prefix, or join files",
                    field="spec.source",
                )
        if not files:
            raise NotFoundError(
                f"there is no file to read at {spec.source}; expected names that end in "
                f"{', '.join(sorted(self._formats))}",
                field="spec.source",
            )
        return files

    def _documents(
        self, files: Sequence[ObjectInfo], tally: _Tally, budget: ReadBudget, progress: ImportProgress
    ) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="weft-corpus-") as folder:
            path = Path(folder, "file")
            for info in files:
                if tally.is_full:
                    break
                tally.files.append(self._fetch(info, path))
                budget.begin_file(info.key, path.stat().st_size)
                reader = self._format(info.key)
                assert reader is not None
                records = reader.records(path, info.key, tally.spec.text_field, budget)
                yield from self._kept(info.key, records, tally)
                progress.file_bytes += info.size_bytes

    def _kept(self, key: str, records: Iterator[Record], tally: _Tally) -> Iterator[str]:
        spec = tally.spec
        for record in records:
            tally.num_records += 1
            text = record.text
            if text is None:
                tally.add_broken(key, record)
                continue
            try:
                data = text.encode()
            except UnicodeEncodeError:
                tally.add_broken(key, replace(record, problem="it has half of a surrogate pair, which is no character"))
                continue
            if not data:
                tally.num_empty += 1
                continue
            if not _is_drawn(spec, key, record.number):
                continue
            tally.digest.update(b"%d\n" % len(data) + data)
            tally.size_bytes += len(data)
            tally.num_documents += 1
            self._check_size(key, record, tally)
            yield text
            if tally.is_full:
                return

    def _check_size(self, key: str, record: Record, tally: _Tally) -> None:
        for found, most, what, setting in (
            (tally.size_bytes, self._limits.corpus_bytes, "bytes of text", "MAX_CORPUS_BYTES"),
            (tally.num_documents, self._limits.documents, "documents", "MAX_CORPUS_DOCUMENTS"),
        ):
            if found > most:
                raise FailedPreconditionError(
                    f"by record {record.number} of {key} the corpus has more than {most} {what}; take a smaller "
                    f"sample_share, give max_documents, or raise WEFT_ACTIVATIONS_{setting}"
                )

    def _fetch(self, info: ObjectInfo, path: Path) -> SourceFile:
        try:
            self._store.get_to_file(info.key, path)
        except NotFoundError:
            raise FailedPreconditionError(f"{info.key} is gone since the import began; import again") from None
        size_bytes = path.stat().st_size
        if size_bytes != info.size_bytes:
            raise DataLossError(
                f"{info.key} has {size_bytes} bytes, {info.size_bytes} were listed; it is being written"
            )
        with path.open("rb") as file:
            return SourceFile(info.key, hashlib.file_digest(file, "sha256").hexdigest(), size_bytes)

    def _commit(self, corpus_id: str, tally: _Tally) -> None:
        if not tally.num_documents:
            raise FailedPreconditionError(
                f"the {tally.num_records} records of {len(tally.files)} files give no document: {tally.num_broken} are "
                f"broken, {tally.num_empty} empty, the others not drawn; name other files or a larger sample_share"
            )
        origin = CorpusOrigin(
            spec=tally.spec,
            files=tuple(tally.files),
            num_records=tally.num_records,
            num_empty=tally.num_empty,
            num_broken=tally.num_broken,
            broken=tuple(tally.broken),
            weft_version=self._weft_version,
        )
        manifest = {
            "corpus": f"corpora/{corpus_id}",
            "digest": tally.digest.hexdigest(),
            "documents": [],
            "num_documents": tally.num_documents,
            "origin": origin.to_json(),
            "parts": [asdict(part) for part in tally.parts],
            "size_bytes": tally.size_bytes,
        }
        try:
            create_json(self._store, manifest_key(corpus_id), manifest)
        except AlreadyExistsError:
            # Another one was faster.
            self._same(read_corpus(self._store, corpus_id), tally.spec)
        kept = {part.key for part in read_corpus(self._store, corpus_id).parts}
        for info in self._store.list(_parts(corpus_id)):
            # Of runs that were killed, or were slower: none can become the corpus any more.
            if info.key not in kept:
                self._store.delete(info.key)

    def _same(self, there: Corpus, spec: ImportSpec) -> Corpus:
        if there.origin is None or there.origin.spec != spec:
            raise AlreadyExistsError(
                f"corpora/{there.corpus_id} is there and was made otherwise; choose another id", field="corpus_id"
            )
        return there

    def _format(self, key: str) -> RecordFormat | None:
        name = key.rpartition("/")[2]
        suffixes = [suffix for suffix in self._formats if name.endswith(suffix)]
        return self._formats[max(suffixes, key=len)] if suffixes else None


def _parts(corpus_id: str) -> str:
    return f"corpora/{corpus_id}/parts/"


def _is_drawn(spec: ImportSpec, key: str, number: int) -> bool:
    if spec.sample_share == 1:
        return True
    drawn = hashlib.sha256(f"{spec.sample_seed}/{key}/{number}".encode()).digest()
    return int.from_bytes(drawn[:8]) < spec.sample_share * 2**64
