"""
What is committed to an open dataset, without reading again what one of its snapshots lists.

A bucket answers one read after the other in its own time: records and statistics are read by a few threads at once, and
never more of them than those threads hold are in memory.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from weft_cache.core import layout
from weft_cache.core.records import ShardRecord
from weft_common.errors import NotFoundError
from weft_store import ObjectStore
from weft_store.documents import read_json

__all__ = ["committed", "listed", "newest_listed", "read_all", "snapshot_numbers"]

# As many as the S3 client keeps connections.
_READ_THREADS = 16


def read_all(store: ObjectStore, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Read documents, in the order of their keys, a few at once. NotFoundError."""
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="documents") as threads:
        waiting: deque[Future[tuple[dict[str, Any], str]]] = deque()
        for key in keys:
            if len(waiting) >= _READ_THREADS:
                yield waiting.popleft().result()[0]
            waiting.append(threads.submit(read_json, store, key))
        while waiting:
            yield waiting.popleft().result()[0]


def snapshot_numbers(store: ObjectStore, dataset_id: str) -> set[int]:
    """Numbers of all snapshots that lie under a dataset's name."""
    keys = (item.key for item in store.list(layout.snapshots_prefix(dataset_id)))
    return {number for key in keys if (number := layout.snapshot_number(key)) is not None}


def listed(store: ObjectStore, dataset_id: str, create_time: str, number: int) -> tuple[ShardRecord, ...] | None:
    """Shards of a snapshot; None where there is none, or only one of a deleted dataset of the same name."""
    try:
        document, _ = read_json(store, layout.snapshot_key(dataset_id, number))
    except NotFoundError:
        return None
    if document["dataset_create_time"] != create_time:
        return None
    return tuple(ShardRecord.from_json(each) for each in document["shards"])


def newest_listed(store: ObjectStore, dataset_id: str, create_time: str) -> tuple[ShardRecord, ...]:
    """Shards of the newest snapshot; empty where there is none."""
    newest = max(snapshot_numbers(store, dataset_id), default=0)
    return (listed(store, dataset_id, create_time, newest) if newest else None) or ()


def committed(store: ObjectStore, dataset_id: str, known: Sequence[ShardRecord]) -> Iterator[ShardRecord]:
    """
    Shards of an open dataset, in no order.

    Args:
        known: Of one of its snapshots: a commit of an open dataset never changes, so these records are not read.
    """
    by_index = {shard.index: shard for shard in known}
    unread: list[str] = []
    for item in store.list(layout.commits_prefix(dataset_id)):
        index = layout.commit_index(item.key)
        if index is None:
            continue
        if index in by_index:
            yield by_index[index]
        else:
            unread.append(item.key)
    yield from map(ShardRecord.from_json, read_all(store, unread))
