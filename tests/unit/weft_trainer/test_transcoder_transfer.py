"""Files of transcoders on their way in and out: what is bounded, and what is refused."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from weft_common.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import encode_json
from weft_trainer.core import transcoder_transfer
from weft_trainer.core.transcoder_transfer import PIECE_BYTES, TranscoderTransfer, is_uploaded


async def _pieces(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads are held."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_uploads_hold_a_bounded_number_of_bytes_together(folder: Path) -> None:
    """Two files that fit by themselves do not fit side by side; what was held is given back, whatever became of it."""
    store = MemoryObjectStore()
    transfer, begun, gate = TranscoderTransfer(store, 10), asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 6
        begun.set()
        await gate.wait()

    first = asyncio.create_task(transfer.upload("t", "a", slow()))
    await asyncio.wait_for(begun.wait(), 60)
    with pytest.raises(ResourceExhaustedError, match="WEFT_TRAINER_MAX_UPLOAD_BYTES"):
        await transfer.upload("t", "b", _pieces(3, 3))
    gate.set()
    assert await first == ("uploads/transcoders/t/", 6)
    assert await transfer.upload("t", "b", _pieces(6, 4)) == ("uploads/transcoders/t/", 10)
    with pytest.raises(InvalidArgumentError, match="give pieces of at most"):
        await transfer.upload("t", "c", _pieces(PIECE_BYTES + 1))
    assert [info.key for info in store.list("uploads/")] == ["uploads/transcoders/t/a", "uploads/transcoders/t/b"]
    assert os.listdir(folder) == []


async def test_uploads_at_once_for_one_transcoder_do_not_mix(folder: Path) -> None:
    """Each client clears, then sends two files of the same names; whatever the order, each finds its own two."""
    store = MemoryObjectStore()
    transfer = TranscoderTransfer(store, 1000)

    async def send(upload: str, file: str, size: int, *, clear: bool) -> str:
        prefix, _ = await transfer.upload("t", file, _pieces(size), upload=upload, clear=clear)
        return prefix

    ours, theirs = await send("a", "one", 1, clear=True), await send("b", "one", 2, clear=True)
    for upload, size in (("a", 1), ("b", 2)):
        await send(upload, "two", size, clear=False)
    for prefix, size in ((ours, 1), (theirs, 2)):
        assert {info.key: info.size_bytes for info in store.list(prefix)} == {
            f"{prefix}one": size,
            f"{prefix}two": size,
        }
        assert is_uploaded(prefix, "t")
        assert not is_uploaded(prefix, "t2")
    with pytest.raises(InvalidArgumentError, match="upload is"):
        await send("../a", "one", 1, clear=True)


async def test_upload_deletes_what_was_left_of_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of the same transcoder, and only long after the last file came."""
    store = MemoryObjectStore()
    transfer = TranscoderTransfer(store, 1000)
    for transcoder, upload in (("t", "left"), ("t-2", "other"), ("t", "new")):
        await transfer.upload(transcoder, "one", _pieces(1), upload=upload, clear=True)
    assert len(list(store.list("uploads/"))) == 3
    monkeypatch.setattr(transcoder_transfer, "_STALE_S", -1.0)
    await transfer.upload("t", "two", _pieces(1), upload="new", clear=False)
    assert len(list(store.list("uploads/"))) == 4
    await transfer.upload("t", "one", _pieces(1), upload="newest", clear=True)
    assert [info.key for info in store.list("uploads/")] == [
        "uploads/transcoders/t-2.other/one",
        "uploads/transcoders/t.newest/one",
    ]


async def test_only_files_that_were_written_in_a_layout_are_read() -> None:
    """Another layout is refused by name, one that was not written and a file that it lacks are not found."""
    store = MemoryObjectStore()
    files = [{"path": "cfg.json", "size_bytes": 3}]
    store.put("transcoders/t/formats/saelens/manifest.json", encode_json({"files": files}))
    store.put("transcoders/t/formats/saelens/cfg.json", b"abc")
    transfer = TranscoderTransfer(store, 10)

    async def read(layout: str, file: str) -> bytes:
        return b"".join([piece async for piece in transfer.read("t", layout, file)])

    assert await read("saelens", "cfg.json") == b"abc"
    for layout in ("", "../..", "gemmascope", "saelens/"):
        with pytest.raises(InvalidArgumentError, match="give one of circuit-tracer"):
            await read(layout, "cfg.json")
    with pytest.raises(NotFoundError, match="call ConvertTranscoder first"):
        await read("clt-forge", "cfg.json")
    with pytest.raises(NotFoundError, match="has no file"):
        await read("saelens", "manifest.json")
