"""From a real MinIO on loopback to tensors, beside raw GET of the same bytes and decoding alone."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from activations import Streams
from measure_rates import to_bf16

from weft_store import ObjectStore, open_store
from weft_store.shard import CodecSpec, ShardReader, encode_shard

__all__ = ["read_rows"]

Row = dict[str, Any]
_SHARDS = 4


def read_rows(streams: Streams, folder: Path, rounds: int, threads: int, conditions: str) -> Iterator[Row]:
    """
    Yield rows of MB of bfloat16 a second, by the clock.

    Args:
        folder: For the server's files.
        threads: That fetch and decode.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from minio_server import running_minio

    megabytes = _SHARDS * 2 * 2 * streams["input"].size / 1e6
    with running_minio(folder) as server, ThreadPoolExecutor(threads) as pool:
        remote = open_store(server.make_bucket("bench"), server.access_key, server.secret_key)
        local = open_store("memory://")
        for codec in ("uniform", "bf16"):
            data = encode_shard(streams, CodecSpec(codec), attributes={}).data
            for shard in range(_SHARDS):
                remote.put(f"{codec}/{shard}", data)
                local.put(f"{codec}/{shard}", data)
            ways = {
                "raw GET": _over(pool, _Places(remote, codec), _fetch),
                "decode alone": _over(pool, _Places(local, codec), _decode),
                "both": _over(pool, _Places(remote, codec), _decode),
            }
            taken: dict[str, list[float]] = {}
            for _ in range(rounds + 1):
                for name, call in ways.items():
                    start_s = time.perf_counter()
                    call()
                    taken.setdefault(name, []).append(time.perf_counter() - start_s)
            rates = {name: megabytes / statistics.median(times[1:]) for name, times in taken.items()}
            slower = min(("raw GET", "decode alone"), key=lambda name: rates[name])
            yield {
                "name": f"{codec}: MinIO to tensors beside the slower of raw GET and decode alone",
                "ours": rates["both"], "peer": rates[slower], "ratio": rates["both"] / rates[slower],
                "unit": "MB/s of bfloat16", "wanted": 0.8, "of": "reads", "rates": rates,
                "conditions": f"{conditions}; {_SHARDS} shards in MinIO on loopback, {threads} threads, row group by "
                f"row group, by the clock, median of {rounds} rounds in which the three take turns; the slower is "
                f"{slower}; the server takes the same cores",
            }  # fmt: skip


class _Places:
    """Row groups of all shards of a codec."""

    def __init__(self, store: ObjectStore, codec: str) -> None:
        self.store = store
        self.readers = {f"{codec}/{shard}": ShardReader(store, f"{codec}/{shard}") for shard in range(_SHARDS)}
        self.all = [
            (key, group) for key, reader in self.readers.items() for group in range(reader.header.num_row_groups)
        ]


def _over(
    pool: ThreadPoolExecutor, places: _Places, work: Callable[[_Places, str, int], object]
) -> Callable[[], object]:
    return lambda: [done.result() for done in [pool.submit(work, places, *place) for place in places.all]]


def _fetch(places: _Places, key: str, group: int) -> None:
    rows = places.readers[key]._index.table_GSL[group]
    places.store.get(key, offset=int(rows["offset"].flat[0]), length=int(rows["length"].sum()))


def _decode(places: _Places, key: str, group: int) -> None:
    for coded in places.readers[key].read_codes(group).values():
        to_bf16(coded, undo_basis=True)
