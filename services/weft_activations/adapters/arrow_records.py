"""
Arrow streams, as `save_to_disk` of Hugging Face's datasets writes them: a row is a record, a column its text.

The file is mapped, not read: a batch is views of it, and costs nothing until a row is taken. That holds where buffers
are not compressed, so batches that are, and dictionaries, are refused by their headers, first of all.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from weft_activations.adapters.parquet_records import check_column, text_of
from weft_activations.core.records import ReadBudget, Record
from weft_common.errors import FailedPreconditionError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowFiles"]

# Of the flatbuffer tables Message and RecordBatch of Arrow's format: the numbers of their fields.
_MESSAGE_HEADER = 2
_BATCH_COMPRESSION = 3


class ArrowFiles:
    """Files of one stream each."""

    suffixes = (".arrow",)

    def records(self, path: Path, name: str, field: str, budget: ReadBudget) -> Iterator[Record]:
        """Read the file's rows."""
        import pyarrow as pa

        try:
            with pa.memory_map(str(path)) as file:
                schema = pa.ipc.read_schema(file)
                check_column(schema, name, field)
                _check_batches(file, name, budget)
                file.seek(0)
                options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(field)], use_threads=False)
                number = 0
                for batch in pa.ipc.open_stream(file, options=options):
                    column = batch.column(0)
                    # Offsets of a damaged file may lead anywhere: each is compared with the buffer it points into.
                    _check_offsets(column)
                    budget.spend(0)
                    for row in range(len(column)):
                        number += 1
                        yield Record(number, *text_of(column[row], budget.limits.record_bytes))
        except (pa.ArrowException, OSError, UnicodeDecodeError, struct.error) as error:
            raise FailedPreconditionError(
                f"{name} is cut off or no Arrow stream ({str(error)[:200]}); store it anew and import again",
                field="spec.source",
            ) from None


def _check_batches(file: "pa.MemoryMappedFile", name: str, budget: ReadBudget) -> None:
    """Look at every message's header, and count its body."""
    import pyarrow as pa

    while True:
        try:
            message = pa.ipc.read_message(file)
        except EOFError:
            return
        if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
            raise FailedPreconditionError(
                f"{name} has a {message.type}{' that is compressed' if message.type == 'record batch' else ''}; only "
                "streams of plain batches are read: write it with save_to_disk, or as Parquet",
                field="spec.source",
            )
        budget.spend(message.body.size)


def _is_compressed(metadata: bytes) -> bool:
    (message,) = struct.unpack_from("<I", metadata, 0)
    header = _field(metadata, message, _MESSAGE_HEADER)
    (offset,) = struct.unpack_from("<I", metadata, header)
    return _field(metadata, header + offset, _BATCH_COMPRESSION) != 0


def _field(data: bytes, table: int, number: int) -> int:
    """Find a field of a flatbuffer's table; 0 where it is left out."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    slot = 4 + 2 * number
    if slot >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, table - back + slot)
    return table + offset if offset else 0


def _check_offsets(column: "pa.Array") -> None:
    import numpy as np
    import pyarrow as pa

    _, offsets, data = column.buffers()
    if not len(column):
        return
    kind = np.dtype("<i8" if pa.types.is_large_string(column.type) else "<i4")
    found = np.frombuffer(offsets, kind, len(column) + 1, column.offset * kind.itemsize)
    if found[0] < 0 or (np.diff(found) < 0).any() or found[-1] > (0 if data is None else data.size):
        raise pa.ArrowInvalid("offsets of strings lead out of their buffer")
