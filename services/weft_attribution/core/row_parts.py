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

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_common.errors import AlreadyExistsError
from weft_store.port import ObjectStore

__all__ = [
    "ROOT",
    "Agrees",
    "Compute",
    "Take",
    "claim",
    "claim_key",
    "delete_below",
    "delete_work",
    "is_whole",
    "parts_of",
    "rows_part_key",
]

Array = npt.NDArray[Any]
Take = Callable[[Array, Array], None]
Compute = Callable[[Array, Take, Callable[[int], None]], None]
Agrees = Callable[[Array, Array], bool]
"""Given rows and the sums of their edges, whether these are what the targets' values leave for them."""
ROOT = "graph-work/"


def parts_of(rows: Array, part_rows: int) -> list[Array]:
    """
    Cut rows into parts of one size, the last may be smaller.

    >>> [len(part) for part in parts_of(np.arange(5), 2)]
    [2, 2, 1]
    """
    return [rows[start : start + part_rows] for start in range(0, len(rows), part_rows)]


def delete_work(store: ObjectStore, graph_id: str) -> None:
    """Delete what was handed out for a graph by any attempt at it."""
    delete_below(store, f"{ROOT}{graph_id}/")


def delete_below(store: ObjectStore, prefix: str) -> None:
    """Delete what says that there is work first, so that nobody begins a part, then the parts."""
    for is_part in (False, True):
        for info in store.list(prefix):
            if is_part or info.key.endswith("/problem.json") or "/rounds/" in info.key:
                store.delete(info.key)


def claim(store: ObjectStore, prefix: str, number: int, part: int) -> bool:
    """Take a part; False where somebody has it."""
    try:
        store.put(claim_key(prefix, number, part), b"{}", if_absent=True)
    except AlreadyExistsError:
        return False
    return True


def claim_key(prefix: str, number: int, part: int) -> str:
    """Where a part's claim lies."""
    return f"{prefix}claims/{number:06}-{part:06}"


def rows_part_key(prefix: str, number: int, part: int) -> str:
    """Where a part's rows lie."""
    return f"{prefix}rows/{number:06}-{part:06}"


def is_whole(indptr: Array, indices: Array, values: Array, num_rows: int, num_columns: int) -> bool:
    """Whether compressed rows are as many as wanted, in order, and of columns that there are."""
    return bool(
        indptr.shape == (num_rows + 1,)
        and indptr[0] == 0
        and (np.diff(indptr) >= 0).all()
        and indices.shape == values.shape == (indptr[-1],)
        and (len(indices) == 0 or (indices.min() >= 0 and indices.max() < num_columns))
        and np.isfinite(values).all()
    )
