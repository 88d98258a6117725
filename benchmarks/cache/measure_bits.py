"""Bits a value and errors of the codecs, beside entropy, bound and peer: nothing here depends on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from activations import Streams, gaussian_bounds
from peer import Peer

from weft_store.shard import CodecSpec, StreamStatistics, encode_shard, learn_basis

__all__ = ["TARGETS", "bit_rows"]

Row = dict[str, Any]
TARGETS = (1e-3, 1e-2)


def bit_rows(taken: Streams, peer: Peer | None, folder: Path, conditions: str) -> Iterator[Row]:
    """
    Yield rows of `{name, ours, peer, ratio, unit, conditions}`, and what the page needs besides.

    Args:
        taken: `mlp_in`, `resid_mid` and `mlp_out`, [L, T, D].
        folder: Has each of them as a file for the peer.
    """
    others = {source: peer.ask("figures", file=str(folder / f"{source}.npy")) for source in taken} if peer else {}
    bounds = {source: [gaussian_bounds(values, TARGETS) for values in layers] for source, layers in taken.items()}
    streams = {source: {"input": taken[source], "output": taken["mlp_out"]} for source in ("mlp_in", "resid_mid")}
    bases = {source: learn_basis(given) for source, given in streams.items()}
    for codec in ("uniform", "klt"):
        for at, target in enumerate(TARGETS):
            coded: dict[str, list[StreamStatistics]] = {}
            for source, given in streams.items():
                basis = bases[source] if codec == "klt" else None
                shard = encode_shard(given, CodecSpec(codec, target), attributes={}, basis=basis)
                coded[source] = [entry.input for entry in shard.statistics]
                coded["mlp_out"] = [entry.output for entry in shard.statistics]
            for source, figures in coded.items():
                what = {"codec": codec, "source": source, "target": target, "conditions": conditions}
                bound_L = [both[at] for both in bounds[source]]
                yield from _rows(taken[source][0].size, figures, bound_L, others.get(source), what)


def _rows(
    size: int, figures: list[StreamStatistics], bounds: list[float], other: dict[str, Any] | None, what: Row
) -> Iterator[Row]:
    bits = np.array([8 * entry.size_bytes / size for entry in figures])
    entropies, bound = np.array([entry.entropy_bits for entry in figures]), np.array(bounds)
    name = f"{what['codec']}, {what['source']}, FVU {what['target']:g}"
    given = {**what, "unit": "bits/value"}

    def row(label: str, ours: float, peer: float, **more: Any) -> Row:
        return {"name": f"{name}: {label}", "ours": ours, "peer": peer, "ratio": peer / ours, **given, **more}

    beside = {"of": "bits", "layers": bits.tolist()}
    yield row("bits beside the entropy of the codes", float(bits.mean()), float(entropies.mean()), **beside,
              beside="entropy", worst=float((bits - entropies).max()), beside_layers=entropies.tolist())  # fmt: skip
    yield row("bits beside the Gaussian bound", float(bits.mean()), float(bound.mean()), **beside,
              beside="bound", worst=float((bits - bound).max()), beside_layers=bounds)  # fmt: skip
    if other is not None:
        yield row("bits beside CLT-Forge's int8 with zstd", float(bits.mean()), other["bits"], of="peer bits")
        fvus = [entry.fvu for entry in figures]
        yield row("worst layer's FVU beside CLT-Forge's", max(fvus), max(other["fvus"]), of="fvu", unit="1",
                  layers=fvus, beside_layers=other["fvus"])  # fmt: skip
