"""Processor time of writing and reading on one core, sides taking turns, so that what else runs meets all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from activations import Streams
from peer import Peer

from weft_store import ObjectStore, open_store
from weft_store.shard import Bases, Basis, CodecSpec, CodedStream, ShardReader, basis_key, encode_shard, learn_basis

__all__ = ["rate_rows"]

Row = dict[str, Any]
_WANTED = {("uniform", "read"): 2.0, ("uniform", "write"): 2.0, ("klt, in its basis", "read"): 1.0}


def rate_rows(streams: Streams, peer: Peer | None, folder: Path, rounds: int, conditions: str) -> Iterator[Row]:
    """
    Yield rows of MB of bfloat16 a second.

    Args:
        streams: `input` and `output`, which the peer's folder has as files.
        folder: For the files that both sides write.
    """
    sides = _sides(streams, folder)
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):
        for name, ways in sides.items():
            for way, call in ways.items():
                taken.setdefault((name, way), []).append(_processor_s(call))
        for way in ("write", "read") if peer else ():
            taken.setdefault(("CLT-Forge", way), []).append(peer.ask(way)["cpu_s"])
    megabytes = 2 * 2 * streams["input"].size / 1e6
    allocator = Path(os.environ.get("LD_PRELOAD", "").split(":", 1)[0]).name or "allocator of the C library"
    # The first round compiles loops and fills caches.
    rates = {what: megabytes / statistics.median(times[1:]) for what, times in taken.items()}
    for (name, way), rate in rates.items():
        if name == "CLT-Forge":
            continue
        other = rates.get(("CLT-Forge", way))
        beside = " beside CLT-Forge's int8 with zstd" if other else ""
        yield {
            "name": f"{name}: {'encode' if way == 'write' else 'decode to bfloat16'}, {allocator}{beside}",
            "ours": rate, "peer": other, "ratio": rate / other if other else None, "unit": "MB/s of bfloat16",
            "wanted": _WANTED.get((name, way)), "of": "rate", "allocator": allocator,
            "conditions": f"{conditions}; both streams, to and from a file, one core, processor time, median of "
            f"{rounds} rounds in which sides take turns; weft reads row group by row group, CLT-Forge its whole file",
        }  # fmt: skip


def _sides(streams: Streams, folder: Path) -> dict[str, dict[str, Callable[[], object]]]:
    store, basis = open_store(f"file://{folder}/bucket"), learn_basis(streams)
    store.put(basis_key("a/shards/klt", basis.sha256), basis.data())
    bases = Bases(store)
    sides: dict[str, dict[str, Callable[[], object]]] = {}
    for codec in ("uniform", "klt", "bf16"):
        given = basis if codec == "klt" else None
        name = "klt, in its basis" if codec == "klt" else codec
        sides[name] = {
            "write": lambda codec=codec, given=given: _write(store, streams, codec, given),
            "read": lambda codec=codec: _read(store, codec, bases, undo_basis=False),
        }
    sides["klt, basis undone on the processor"] = {"read": lambda: _read(store, "klt", bases, undo_basis=True)}
    return sides


def _write(store: ObjectStore, streams: Streams, codec: str, basis: Basis | None) -> None:
    store.put(f"a/shards/{codec}", encode_shard(streams, CodecSpec(codec), attributes={}, basis=basis).data)


def _read(store: ObjectStore, codec: str, bases: Bases, *, undo_basis: bool) -> None:
    reader = ShardReader(store, f"a/shards/{codec}", bases)
    for group in range(reader.header.num_row_groups):
        for coded in reader.read_codes(group).values():
            to_bf16(coded, undo_basis=undo_basis)


def to_bf16(coded: CodedStream, *, undo_basis: bool) -> torch.Tensor:
    """Make a tensor of a stream of a row group."""
    return torch.from_numpy(np.ascontiguousarray(coded.bf16_bits(undo_basis=undo_basis))).view(torch.bfloat16)


def _processor_s(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start
