"""
Parquet files: a row is a record, one of the columns its text.

The footer says what a column of a row group decompresses to, so that is counted before anything of it is read. Strings
stay where Arrow has them, a repeated one once, until each was found short enough.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft_activations.core.records import ReadBudget, Record
from weft_common.errors import FailedPreconditionError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetFiles", "check_column", "text_of"]

_MAX_COLUMN_BYTES = 1 << 29
_BATCH_ROWS = 512


class ParquetFiles:
    """Files of one column that is read and others that are not."""

    suffixes = (".parquet",)

    def records(self, path: Path, name: str, field: str, budget: ReadBudget) -> Iterator[Record]:
        """Read the file's rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                check_column(file.schema_arrow, name, field)
            with pq.ParquetFile(path, read_dictionary=[field]) as file:
                number = 0
                for group in range(file.metadata.num_row_groups):
                    _spend_column(file.metadata.row_group(group), name, field, budget)
                    batches = file.iter_batches(
                        batch_size=_BATCH_ROWS, row_groups=[group], columns=[field], use_threads=False
                    )
                    for batch in batches:
                        budget.spend(0)
                        column = batch.column(0)
                        for row in range(len(column)):
                            number += 1
                            yield Record(number, *text_of(column[row], budget.limits.record_bytes))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise FailedPreconditionError(
                f"{name} is cut off or no Parquet file ({str(error)[:200]}); store it anew and import again",
                field="spec.source",
            ) from None


def text_of(scalar: Any, most_bytes: int) -> tuple[str | None, str]:
    """Take the text out of a value of Arrow, or say why there is none."""
    while hasattr(scalar, "dictionary") and scalar.is_valid:
        scalar = scalar.value
    if not scalar.is_valid:
        return None, "it is null"
    data = scalar.as_buffer()
    if data.size > most_bytes:
        return None, f"it is longer than {most_bytes} bytes"
    try:
        return data.to_pybytes().decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return None, f"it is not UTF-8: {error.reason} at byte {error.start}"


def check_column(schema: "pa.Schema", name: str, field: str) -> None:
    """Refuse a file without that one column of text; names those that there are."""
    import pyarrow as pa

    index = schema.get_field_index(field)
    if index < 0:
        raise FailedPreconditionError(
            f"{name} has no column {field!r}, or several; there are {', '.join(schema.names[:20])}: name one of them",
            field="spec.text_field",
        )
    kind = schema.field(index).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise FailedPreconditionError(
            f"column {field!r} of {name} is {kind}; text is expected: name another one as text_field",
            field="spec.text_field",
        )


def _spend_column(group: Any, name: str, field: str, budget: ReadBudget) -> None:
    sizes = [
        column.total_uncompressed_size
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema == field
    ]
    if not sizes or not 0 <= sizes[0] <= _MAX_COLUMN_BYTES:
        raise FailedPreconditionError(
            f"a row group of {name} has {sizes[0] if sizes else 'no'} bytes of {field!r}; {_MAX_COLUMN_BYTES} are read "
            "at a time: write the file with smaller row groups",
            field="spec.source",
        )
    budget.spend(sizes[0])
