"""The operation that imports a corpus, without a service around it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from weft.activations.v1 import corpora_pb2
from weft_activations.core.corpus_origin import ImportSpec
from weft_activations.core.importing import ImportProgress
from weft_activations.corpus_calls import import_kind
from weft_common.errors import CancelledError
from weft_common.operation_kinds import OperationContext, packed_any
from weft_common.operation_store import Record


class EndlessImporter:
    """Imports until it is called off, and takes a moment to clear up."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cleared = False

    def run(self, corpus_id: str, spec: ImportSpec, progress: ImportProgress, stopped: Callable[[], bool]) -> Any:
        progress.total_file_bytes = 7
        self.begun.set()
        while not stopped():
            threading.Event().wait(0.001)
        self.cleared = True
        raise CancelledError("the import was called off")


async def test_cancelled_import_has_cleared_up_when_it_ends() -> None:
    """The thread hears of the end, and is waited for; nothing that it raises then is lost or shown."""
    importer: Any = EndlessImporter()
    request = corpora_pb2.ImportCorpusRequest(corpus_id="c", spec=corpora_pb2.CorpusImportSpec(source="corpora/c/"))
    metadata = packed_any(corpora_pb2.CorpusImportMetadata())
    record = Record(kind="", request=packed_any(request), metadata=metadata, create_s=0.0, update_s=0.0, request_id="")

    async def report(name: str, message: Message) -> None:
        return

    context = OperationContext("operations/x-1", "1", record, report)
    work = asyncio.ensure_future(import_kind(importer).handler(context))
    await asyncio.to_thread(importer.begun.wait, 30)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert importer.cleared
