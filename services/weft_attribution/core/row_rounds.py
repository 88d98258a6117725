"""
A helper's end of rows that several replicas share, see `row_parts`.

Legend: R rows of a part, N columns.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from weft_attribution.core.row_parts import Compute, claim, claim_key, parts_of, rows_part_key
from weft_common.errors import DataLossError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["OpenRound", "open_round", "read_problem"]

Array = npt.NDArray[Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class OpenRound:
    """
    A round that is handed out, from a helper's end.

    Args:
        store: The bucket.
        prefix: The attempt.
        number: The round.
        rows: All of its rows.
        part_rows: Rows of a part.
        num_columns: N.
    """

    store: ObjectStore
    prefix: str
    number: int
    rows: Array
    part_rows: int
    num_columns: int

    def help(self, compute: Compute, goes_on: Callable[[], bool]) -> int:
        """
        Compute parts that nobody has, from the last on.

        Args:
            compute: As of `SharedRows.sweep`.
            goes_on: Asked before each part and within; a part that is not done is given back.

        Returns:
            How many it were.
        """
        parts, helped = parts_of(self.rows, self.part_rows), 0
        for part in range(len(parts) - 1, -1, -1):
            if not goes_on() or not self._is_open():
                break
            if claim(self.store, self.prefix, self.number, part):
                try:
                    data = _compressed(parts[part], compute, goes_on)
                except _StoppedError:
                    self.store.delete(claim_key(self.prefix, self.number, part))
                    break
                self.store.put(rows_part_key(self.prefix, self.number, part), data)
                helped += 1
        if helped and not self._is_open():
            # It ended while this wrote: nobody else deletes what came after.
            for folder in ("claims", "rows"):
                for info in self.store.list(f"{self.prefix}{folder}/"):
                    self.store.delete(info.key)
        return helped

    def _is_open(self) -> bool:
        try:
            self.store.info(f"{self.prefix}problem.json")
        except NotFoundError:
            return False
        return True


class _StoppedError(Exception):
    """A helper has something else to do."""


def _compressed(rows: Array, compute: Compute, goes_on: Callable[[], bool]) -> bytes:
    """Compute a part and write it down."""
    found: dict[int, tuple[Array, Array]] = {}

    def take(done: Array, dense_RN: Array) -> None:
        for row, dense_N in zip(done.tolist(), dense_RN, strict=True):
            column = np.flatnonzero(dense_N != 0)
            found[row] = column.astype("<i4"), dense_N[column].astype("<f4")

    def check(done: int) -> None:
        if not goes_on():
            raise _StoppedError

    compute(rows, take, check)
    ordered = [found[row] for row in rows.tolist()]
    return save(
        {
            "indptr": np.concatenate([[0], np.cumsum([len(column) for column, _ in ordered])]).astype("<i8"),
            "indices": np.concatenate([column for column, _ in ordered]),
            "values": np.concatenate([values for _, values in ordered]),
        }
    )


def open_round(store: ObjectStore, prefix: str, problem: Json) -> OpenRound | None:
    """The round of an attempt that is handed out now, None where there is none."""
    keys = [info.key for info in store.list(f"{prefix}rounds/")]
    if not keys:
        return None
    try:
        raw = store.get(keys[-1])
    except NotFoundError:
        return None
    number, rows = int(keys[-1].rpartition("/")[2]), np.frombuffer(raw, dtype="<i8")
    return OpenRound(store, prefix, number, rows, problem["part_rows"], problem["num_columns"])


def read_problem(store: ObjectStore, prefix: str) -> tuple[Json, dict[str, Array]] | None:
    """
    What an attempt is about and its streams, None where it is over.

    Raises:
        DataLossError: The streams are damaged.
    """
    try:
        problem: Json = json.loads(store.get(f"{prefix}problem.json"))
        with tempfile.TemporaryDirectory(prefix="weft-streams-") as folder:
            path = Path(folder) / "streams"
            store.get_to_file(f"{prefix}streams.safetensors", path)
            return problem, load_file(path)
    except NotFoundError:
        return None
    except (SafetensorError, ValueError) as error:
        raise DataLossError(f"{prefix} is damaged; it goes when its graph is made anew or deleted") from error
