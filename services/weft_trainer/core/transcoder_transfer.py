"""Files of transcoders on their way between a client and the bucket."""

import asyncio
import re
from collections.abc import AsyncIterator

from weft_clt.formats.opening import check_writable
from weft_common.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from weft_store import ObjectStore
from weft_store.documents import read_json
from weft_trainer.core.admission import check_new_id
from weft_trainer.core.format_jobs import formats_prefix
from weft_trainer.core.scratch import ScratchFolder

__all__ = ["TranscoderTransfer", "check_file", "is_uploaded", "uploads_prefix"]

PIECE_BYTES = 1 << 20
_STALE_S = 86_400.0
"""Of an upload that nobody has added to for so long."""
_UPLOADS = "uploads/transcoders/"
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}")


def uploads_prefix(transcoder: str, upload: str = "") -> str:
    """
    Return where the files of an upload lie until they are converted, with a slash; no id has a dot in it.

    >>> uploads_prefix("t", "a1"), uploads_prefix("t")
    ('uploads/transcoders/t.a1/', 'uploads/transcoders/t/')
    """
    return f"{_UPLOADS}{transcoder}.{upload}/" if upload else f"{_UPLOADS}{transcoder}/"


def is_uploaded(prefix: str, transcoder: str) -> bool:
    """Tell whether files were uploaded to become this transcoder; others were put into the bucket by somebody else."""
    return prefix.startswith((f"{_UPLOADS}{transcoder}/", f"{_UPLOADS}{transcoder}."))


def check_file(file: str) -> str:
    """
    Return the path of a file, or raise InvalidArgumentError where it could lead out of its folder.

    >>> check_file("layer_0/cfg.json")
    'layer_0/cfg.json'
    """
    if not _FILE.fullmatch(file):
        raise InvalidArgumentError(
            f"file is {file[:80]!r}: give a path of at most 8 parts of letters, digits, '.', '_' and '-', none of them "
            "starting with '.', joined by '/'.",
            field="file",
        )
    return file


class TranscoderTransfer:
    """
    Takes files in and gives them out, a piece at a time.

    Args:
        store: The bucket.
        max_upload_bytes: Most bytes of all files on their way in, which are held in the temporary folder.
    """

    def __init__(self, store: ObjectStore, max_upload_bytes: int) -> None:
        self._store, self._max_upload_bytes = store, max_upload_bytes
        self._held_bytes = 0

    async def upload(
        self, transcoder: str, file: str, pieces: AsyncIterator[bytes], *, upload: str = "", clear: bool = False
    ) -> tuple[str, int]:
        """
        Store a file as a whole, or not at all.

        Args:
            transcoder: Id that its folder will become.
            file: Path below that folder.
            pieces: Its bytes.
            upload: Names the upload of the folder: files of different ones lie apart.
            clear: Delete what this upload held before, and other uploads of this transcoder that were left behind.

        Returns:
            The prefix of all files of this upload, and the file's size.

        Raises:
            InvalidArgumentError: An id, the file's path, or the size of a piece is refused.
            ResourceExhaustedError: All files on their way in are too large together.
        """
        check_new_id(transcoder, "transcoder_id")
        prefix = uploads_prefix(transcoder, check_new_id(upload, "upload") if upload else "")
        check_file(file)
        size_bytes = 0
        try:
            with ScratchFolder() as scratch:
                path = scratch.path / "file"
                with path.open("wb") as written:
                    async for piece in pieces:
                        self._check_piece(file, len(piece))
                        self._held_bytes += len(piece)
                        size_bytes += len(piece)
                        await asyncio.to_thread(written.write, piece)
                if clear:
                    await asyncio.to_thread(self._clear, prefix)
                await asyncio.to_thread(self._store.put_file, prefix + file, path)
                if clear:
                    await asyncio.to_thread(self._clear_stale, transcoder, prefix, file)
        finally:
            self._held_bytes -= size_bytes
        return prefix, size_bytes

    def _check_piece(self, file: str, num_bytes: int) -> None:
        if num_bytes > PIECE_BYTES:
            raise InvalidArgumentError(
                f"a piece of {file!r} has {num_bytes} bytes: give pieces of at most {PIECE_BYTES}.", field="data"
            )
        if self._held_bytes + num_bytes > self._max_upload_bytes:
            raise ResourceExhaustedError(
                f"with {file!r}, uploads would hold more than {self._max_upload_bytes} bytes of this machine: wait for "
                "others to end, raise WEFT_TRAINER_MAX_UPLOAD_BYTES and what the temporary folder may take, or copy "
                "the files into the bucket and give their prefix.",
                field="data",
            )

    def _clear(self, prefix: str) -> None:
        for info in list(self._store.list(prefix)):
            self._store.delete(info.key)

    def _clear_stale(self, transcoder: str, own: str, file: str) -> None:
        """Delete what other uploads of a transcoder left, by the bucket's clock: that of a file just stored."""
        now_s = self._store.info(own + file).modified_s
        newest_s: dict[str, float] = {}
        for info in self._store.list(f"{_UPLOADS}{transcoder}."):
            prefix = "/".join(info.key.split("/", 3)[:3]) + "/"
            newest_s[prefix] = max(info.modified_s, newest_s.get(prefix, 0.0))
        for prefix, modified_s in newest_s.items():
            if prefix != own and now_s - modified_s > _STALE_S:
                self._clear(prefix)

    async def read(self, transcoder: str, layout: str, file: str) -> AsyncIterator[bytes]:
        """Read a file that was written for others, by pieces. InvalidArgumentError; NotFoundError where it was not."""
        check_writable(layout)
        prefix = formats_prefix(transcoder, layout)
        try:
            document, _ = await asyncio.to_thread(read_json, self._store, f"{prefix}manifest.json")
        except NotFoundError:
            raise NotFoundError(
                f"transcoders/{transcoder} was not written as {layout[:40]!r}: call ConvertTranscoder first.",
                field="format",
            ) from None
        sizes = {entry["path"]: int(entry["size_bytes"]) for entry in document["files"]}
        if file not in sizes:
            raise NotFoundError(
                f"transcoders/{transcoder} has no file {file[:80]!r} as {layout}: ConvertTranscoder names them.",
                field="file",
            )
        for offset in range(0, sizes[file], PIECE_BYTES):
            length = min(PIECE_BYTES, sizes[file] - offset)
            yield await asyncio.to_thread(self._store.get, prefix + file, offset=offset, length=length)
