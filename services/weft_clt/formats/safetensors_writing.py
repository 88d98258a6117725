"""Writes a safetensors file piece by piece, so that no tensor has to be in memory as a whole."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from weft_clt.formats.representation import Array, blocks
from weft_clt.formats.safetensors_reading import check_finite
from weft_common.errors import InternalError

__all__ = ["writing_safetensors"]


@contextmanager
def writing_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, integers: Collection[str] = ()
) -> Iterator[Callable[[Array], None]]:
    """
    Open a file for its tensors' values, in the order of `shapes`; each call appends some.

    Args:
        path: Of the file; its folder is made.
        shapes: Of tensors in float32.
        integers: Which of them are int64 instead, and are given as that.

    Raises:
        DataLossError: A value is no finite float32.
        InternalError: On closing, fewer or more values were written than the shapes have.
    """
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        dtype, item = ("I64", 8) if name in integers else ("F32", 4)
        size = item * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)

        def write(array: Array) -> None:
            rows = np.atleast_1d(array)
            for part in blocks(rows.shape[0], math.prod(rows.shape[1:])):
                with np.errstate(over="ignore"):
                    values = np.ascontiguousarray(rows[part], dtype="<i8" if array.dtype == np.int64 else "<f4")
                file.write(check_finite(values, path.name).data)

        yield write
        written = file.tell() - 8 - len(encoded)
    if written != end:
        raise InternalError(f"{path.name} got {written} bytes of values, its shapes have {end}.")
