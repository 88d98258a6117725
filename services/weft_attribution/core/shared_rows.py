"""
One graph's rows over several replicas, through the bucket: who makes the graph hands out rows, and others take some.

    graph-work/{graph}/{attempt}/problem.json           what is explained, the tokens, and which features are active
    graph-work/{graph}/{attempt}/streams.safetensors    the captured streams, so that all start from the same numbers
    graph-work/{graph}/{attempt}/rounds/{round}         row numbers, int64, in the order that they are handed out
    graph-work/{graph}/{attempt}/claims/{round}-{part}  a part that somebody has taken
    graph-work/{graph}/{attempt}/rows/{round}-{part}    its rows in compressed form

Parts are taken by creating their claim, by the maker from the first on, by helpers from the last. Nobody waits: a part
that is claimed and not there when the maker has none left is computed by the maker itself. So a helper may end at any
point, and costs nothing but its own time. Rows are independent, so it does not matter who computes which.

Legend: R rows of a part, N columns.
"""

import json
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save, save_file

from weft_attribution.core.ports import Capture
from weft_attribution.core.targets import Target
from weft_common.errors import AlreadyExistsError, DataLossError, NotFoundError
from weft_store.documents import encode_json
from weft_store.port import ObjectStore

__all__ = ["ROOT", "OpenRound", "SharedRows", "delete_work", "open_round", "parts_of", "read_problem"]

Array = npt.NDArray[Any]
Json = dict[str, Any]
Take = Callable[[Array, Array], None]
Compute = Callable[[Array, Take, Callable[[int], None]], None]
Agrees = Callable[[Array, Array], bool]
"""Given rows and the sums of their edges, whether these are what the targets' values leave for them."""
ROOT = "graph-work/"
_DENSE_ROWS = 64


def parts_of(rows: Array, part_rows: int) -> list[Array]:
    """
    Cut rows into parts of one size, the last may be smaller.

    >>> [len(part) for part in parts_of(np.arange(5), 2)]
    [2, 2, 1]
    """
    return [rows[start : start + part_rows] for start in range(0, len(rows), part_rows)]


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
        _delete_below(self._store, self.prefix)

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
            if len(parts) == 1 or _claim(self._store, self.prefix, number, part):
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
            found = load(self._store.get(_rows_key(self.prefix, number, part)))
            indptr, indices, values = found["indptr"], found["indices"], found["values"]
        except (NotFoundError, SafetensorError, KeyError):
            return False
        if not _is_whole(indptr, indices, values, len(rows), self._num_columns):
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
            if _claim(self.store, self.prefix, self.number, part):
                try:
                    data = _compressed(parts[part], compute, goes_on)
                except _StoppedError:
                    self.store.delete(_claim_key(self.prefix, self.number, part))
                    break
                self.store.put(_rows_key(self.prefix, self.number, part), data)
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


def delete_work(store: ObjectStore, graph_id: str) -> None:
    """Delete what was handed out for a graph by any attempt at it."""
    _delete_below(store, f"{ROOT}{graph_id}/")


def _delete_below(store: ObjectStore, prefix: str) -> None:
    """Delete what says that there is work first, so that nobody begins a part, then the parts."""
    for is_part in (False, True):
        for info in store.list(prefix):
            if is_part or info.key.endswith("/problem.json") or "/rounds/" in info.key:
                store.delete(info.key)


def _claim(store: ObjectStore, prefix: str, number: int, part: int) -> bool:
    try:
        store.put(_claim_key(prefix, number, part), b"{}", if_absent=True)
    except AlreadyExistsError:
        return False
    return True


def _claim_key(prefix: str, number: int, part: int) -> str:
    return f"{prefix}claims/{number:06}-{part:06}"


def _rows_key(prefix: str, number: int, part: int) -> str:
    return f"{prefix}rows/{number:06}-{part:06}"


def _is_whole(indptr: Array, indices: Array, values: Array, num_rows: int, num_columns: int) -> bool:
    """Whether compressed rows are as many as wanted, in order, and of columns that there are."""
    return bool(
        indptr.shape == (num_rows + 1,)
        and indptr[0] == 0
        and (np.diff(indptr) >= 0).all()
        and indices.shape == values.shape == (indptr[-1],)
        and (len(indices) == 0 or (indices.min() >= 0 and indices.max() < num_columns))
        and np.isfinite(values).all()
    )
