"""
The maker's end of rows that several replicas share, see `row_parts`.

Legend: R rows of a part, N columns.
"""

import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from weft_attribution.core.ports import Capture
from weft_attribution.core.row_parts import (
    ROOT,
    Agrees,
    Compute,
    Take,
    claim,
    delete_below,
    delete_work,
    is_whole,
    parts_of,
    rows_part_key,
)
from weft_attribution.core.targets import Target
from weft_common.errors import NotFoundError
from weft_store.documents import encode_json
from weft_store.port import ObjectStore

__all__ = ["SharedRows"]

Array = npt.NDArray[Any]
_DENSE_ROWS = 64


class SharedRows:
    """
    The maker's end.

    Args:
        store: The bucket.
        graph_id: The graph; what a dead attempt at it left goes.
        part_rows: Rows of a part.
        num_columns: N, for checks of what others computed.
    """

    def __init__(self, store: ObjectStore, graph_id: str, part_rows: int, num_columns: int) -> None:
        delete_work(store, graph_id)
        self._store = store
        self._part_rows, self._num_columns = part_rows, num_columns
        self.prefix = f"{ROOT}{graph_id}/{uuid.uuid4().hex}/"
        self._round = 0
        self.num_helped = 0

    def publish(self, capture: Capture, transcoder: str, targets: Sequence[Target], features: str) -> None:
        """
        Say what there is to compute.

        Args:
            capture: Streams of the prompt.
            transcoder: The transcoder.
            targets: What is explained.
            features: `Building.features_digest`.
        """
        with tempfile.TemporaryDirectory(prefix="weft-streams-") as folder:
            path = Path(folder) / "streams"
            save_file({name: np.ascontiguousarray(array) for name, array in capture.tensors.items()}, path)
            self._store.put_file(f"{self.prefix}streams.safetensors", path)
        problem = {
            "model": asdict(capture.model),
            "tokens": [[token.id, token.text] for token in capture.tokens],
            "transcoder": transcoder,
            "targets": [asdict(target) for target in targets],
            "features": features,
            "part_rows": self._part_rows,
            "num_columns": self._num_columns,
        }
        self._store.put(f"{self.prefix}problem.json", encode_json(problem))

    def close(self) -> None:
        """Take all of it back."""
        delete_below(self._store, self.prefix)

    def sweep(self, rows: Array, compute: Compute, take: Take, check: Callable[[int], None], agrees: Agrees) -> None:
        """
        Compute rows, with whoever helps.

        Args:
            rows: In the order in which neighbours are cheap to compute together.
            compute: Computes some rows here, as `Building.compute` does.
            take: Given rows and their edges, once for every row.
            check: Called with the rows done; may raise to stop.
            agrees: Asked of rows that others computed; those that do not agree are computed here.
        """
        parts = parts_of(rows, self._part_rows)
        number, done = self._round, 0
        self._round += 1
        if len(parts) > 1:
            self._store.put(f"{self.prefix}rounds/{number:06}", rows.astype("<i8").tobytes())
        left: list[int] = []

        def own(part: int) -> None:
            nonlocal done
            compute(parts[part], take, lambda more: check(done + more))
            done += len(parts[part])

        def fetch(part: int) -> bool:
            nonlocal done
            there = self._take_part(number, part, parts[part], take, agrees)
            done += len(parts[part]) * there
            return there

        for part in range(len(parts)):
            if len(parts) == 1 or claim(self._store, self.prefix, number, part):
                own(part)
                check(done)
            else:
                left.append(part)
        for part in left:
            if not fetch(part):
                own(part)
            check(done)
        if len(parts) > 1:
            self._store.delete(f"{self.prefix}rounds/{number:06}")

    def _take_part(self, number: int, part: int, rows: Array, take: Take, agrees: Agrees) -> bool:
        """Take the rows that a helper wrote; False where they are not there, not whole, or of another graph."""
        try:
            found = load(self._store.get(rows_part_key(self.prefix, number, part)))
            indptr, indices, values = found["indptr"], found["indices"], found["values"]
        except (NotFoundError, SafetensorError, KeyError):
            return False
        if not is_whole(indptr, indices, values, len(rows), self._num_columns):
            return False
        pieces = np.split(values.astype(np.float64), indptr[1:-1])
        if not agrees(rows, np.array([piece.sum() for piece in pieces])):
            return False
        for start in range(0, len(rows), _DENSE_ROWS):
            some = rows[start : start + _DENSE_ROWS]
            dense_RN = np.zeros((len(some), self._num_columns), dtype=np.float32)
            for row in range(len(some)):
                inside = slice(int(indptr[start + row]), int(indptr[start + row + 1]))
                dense_RN[row, indices[inside]] = values[inside]
            take(some, dense_RN)
        self.num_helped += len(rows)
        return True
