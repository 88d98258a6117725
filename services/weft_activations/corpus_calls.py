"""The RPCs about corpora: from messages to the core and back."""

import asyncio
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from google.longrunning import operations_pb2

from weft.activations.v1 import corpora_pb2, service_pb2
from weft.common.v1 import operation_pb2
from weft_activations.converting import timestamp
from weft_activations.core.corpus import Corpus, CorpusUpload, corpus_ids, read_corpus, store_corpus
from weft_activations.core.corpus_origin import CorpusOrigin, ImportSpec
from weft_activations.core.importing import CorpusImporter, ImportLimits, ImportProgress
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_common.operations import OperationContext, OperationKind, OperationManager
from weft_common.pages import paginate
from weft_common.resource_names import check_id, parse_name
from weft_store.port import ObjectStore, check_key

__all__ = ["IMPORT_KIND", "CorpusCalls", "import_kind"]

IMPORT_KIND = "import-corpus"
_PAGE_SIZE = 100
_PIECE_BYTES = 1 << 20
_REPORT_S = 1.0
_CLEARED_S = 5.0


def import_kind(importer: CorpusImporter) -> OperationKind:
    """Return the work of an import, which one replica does; another begins it anew where that one dies."""

    async def work(context: OperationContext) -> service_pb2.Corpus:
        request = context.request
        assert isinstance(request, corpora_pb2.ImportCorpusRequest)
        progress, stop, begun_s = ImportProgress(), threading.Event(), time.time()
        running = asyncio.create_task(
            asyncio.to_thread(
                importer.run, request.corpus_id, spec_from_proto(request.spec), progress, stopped=stop.is_set
            )
        )
        # Whoever cancels does not ask for what the thread raises then.
        running.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            while not running.done():
                await asyncio.wait([running], timeout=_REPORT_S)
                await context.report(_metadata(request.corpus_id, progress, begun_s))
            return corpus_to_proto(await running)
        finally:
            # The thread looks at this between two pieces of a file, and clears up what it wrote.
            stop.set()
            await asyncio.wait([running], timeout=_CLEARED_S)

    return OperationKind(work, max_running=1)


class CorpusCalls:
    """
    Answers RPCs.

    Args:
        max_upload_bytes: Most bytes of text of one upload.
    """

    def __init__(
        self,
        store: ObjectStore,
        importer: CorpusImporter,
        limits: ImportLimits,
        operations: OperationManager,
        *,
        max_upload_bytes: int,
    ) -> None:
        self._store = store
        self._importer = importer
        self._limits = limits
        self._operations = operations
        self._max_upload_bytes = max_upload_bytes

    async def upload(self, requests: AsyncIterator[service_pb2.UploadCorpusRequest]) -> service_pb2.Corpus:
        """Store documents."""
        upload = CorpusUpload(max_bytes=self._max_upload_bytes)
        corpus_id = ""
        async for request in requests:
            if not corpus_id:
                corpus_id = check_id(request.corpus_id, field="corpus_id")
            elif request.corpus_id not in ("", corpus_id):
                raise InvalidArgumentError(
                    f"corpus_id changes from {corpus_id!r} to {request.corpus_id!r} within one upload; "
                    "name it once, in the first message",
                    field="corpus_id",
                )
            upload.add(request.document, request.text)
        check_id(corpus_id, field="corpus_id")
        return corpus_to_proto(await asyncio.to_thread(store_corpus, self._store, corpus_id, upload.finish()))

    async def upload_file(
        self, requests: AsyncIterator[corpora_pb2.UploadCorpusFileRequest]
    ) -> corpora_pb2.UploadCorpusFileResponse:
        """Store a file."""
        first = await anext(aiter(requests), corpora_pb2.UploadCorpusFileRequest())
        source = f"corpora/{check_id(first.corpus_id, field='corpus_id')}/files/"
        key = check_key(source + first.file)
        with tempfile.TemporaryDirectory(prefix="weft-upload-") as folder:
            path = Path(folder, "file")
            with path.open("wb") as file:  # noqa: ASYNC230  a file of this machine
                await self._append(file, first.data)
                async for request in requests:
                    if request.corpus_id not in ("", first.corpus_id) or request.file not in ("", first.file):
                        raise InvalidArgumentError(
                            "corpus_id or file changes within one upload; send one file a call, and name it in the "
                            "first message",
                            field="file",
                        )
                    await self._append(file, request.data)
                size_bytes = file.tell()
            await asyncio.to_thread(self._store.put_file, key, path)
        return corpora_pb2.UploadCorpusFileResponse(source=source, size_bytes=size_bytes)

    async def import_files(self, request: corpora_pb2.ImportCorpusRequest) -> operations_pb2.Operation:
        """Start an import."""
        await asyncio.to_thread(self._importer.check, request.corpus_id, spec_from_proto(request.spec))
        # Two requests for one corpus are two operations: the first that is done makes it, the other finds it there.
        asked = uuid.uuid5(uuid.NAMESPACE_OID, request.request_id) if request.request_id else uuid.uuid4()
        return await self._operations.start(
            IMPORT_KIND,
            f"import-{asked.hex}",
            request,
            _metadata(request.corpus_id, ImportProgress(), time.time()),
        )

    async def get(self, name: str) -> service_pb2.Corpus:
        """Describe a corpus."""
        corpus_id = parse_name(name, "corpora")
        return corpus_to_proto(await asyncio.to_thread(read_corpus, self._store, corpus_id))

    async def list(self, page_size: int, page_token: str) -> service_pb2.ListCorporaResponse:
        """Describe a page of corpora."""
        ids = await asyncio.to_thread(corpus_ids, self._store)
        page, token = paginate(ids, page_size, page_token, default_size=_PAGE_SIZE)
        found = await asyncio.to_thread(lambda: [read_corpus(self._store, corpus_id) for corpus_id in page])
        return service_pb2.ListCorporaResponse(corpora=map(corpus_to_proto, found), next_page_token=token)

    async def _append(self, file: IO[bytes], data: bytes) -> None:
        if len(data) > _PIECE_BYTES:
            raise InvalidArgumentError(
                f"a piece has {len(data)} bytes; send pieces of {_PIECE_BYTES} at most", field="data"
            )
        if file.tell() + len(data) > self._limits.file_bytes:
            raise FailedPreconditionError(
                f"the file has more than the {self._limits.file_bytes} bytes that one may have; split it, or raise "
                "WEFT_ACTIVATIONS_MAX_CORPUS_FILE_BYTES",
                field="data",
            )
        await asyncio.to_thread(file.write, data)


def spec_from_proto(spec: corpora_pb2.CorpusImportSpec) -> ImportSpec:
    """Read what is to be imported."""
    return ImportSpec(
        source=spec.source,
        text_field=spec.text_field or "text",
        max_broken=spec.max_broken,
        sample_share=spec.sample_share or 1.0,
        sample_seed=spec.sample_seed,
        max_documents=spec.max_documents,
    )


def corpus_to_proto(corpus: Corpus) -> service_pb2.Corpus:
    """Describe a corpus."""
    return service_pb2.Corpus(
        name=f"corpora/{corpus.corpus_id}",
        num_documents=corpus.num_documents,
        size_bytes=corpus.size_bytes,
        digest=corpus.digest,
        origin=None if corpus.origin is None else _origin_to_proto(corpus.origin),
    )


def _origin_to_proto(origin: CorpusOrigin) -> corpora_pb2.CorpusImport:
    spec = origin.spec
    return corpora_pb2.CorpusImport(
        spec=corpora_pb2.CorpusImportSpec(
            source=spec.source,
            text_field=spec.text_field,
            max_broken=spec.max_broken,
            sample_share=spec.sample_share,
            sample_seed=spec.sample_seed,
            max_documents=spec.max_documents,
        ),
        num_files=len(origin.files),
        file_bytes=sum(file.size_bytes for file in origin.files),
        num_records=origin.num_records,
        num_empty=origin.num_empty,
        num_broken=origin.num_broken,
        broken=[
            corpora_pb2.BrokenRecord(file=each.file, number=each.number, problem=each.problem) for each in origin.broken
        ],
        weft_version=origin.weft_version,
    )


def _metadata(corpus_id: str, progress: ImportProgress, begun_s: float) -> corpora_pb2.CorpusImportMetadata:
    return corpora_pb2.CorpusImportMetadata(
        corpus=f"corpora/{corpus_id}",
        progress=operation_pb2.Progress(
            stage="importing",
            completed=progress.file_bytes,
            total=progress.total_file_bytes,
            unit="bytes",
            create_time=timestamp(begun_s),
            update_time=timestamp(time.time()),
        ),
    )
