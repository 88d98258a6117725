"""
Loops that make the models of a block and read them again, compiled when they are first used.

A model is the frequencies of 256 symbols in one group of channels; they sum to 4096.
Shapes: G groups.
"""

# Python's integers and NumPy's are one type to the compiler.
# mypy: disable-error-code="assignment,return-value,no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np

from weft_store.shard.compiling import compiled

__all__ = ["read_models", "scale_counts", "write_models"]

SCALE = 4096


@compiled()
def read_models(data: Any, rest: int, bounds: Any, frequencies: Any) -> int:
    """
    Read the models of a block.

    Args:
        data: uint8, all of a block.
        rest: Where the models begin in it; they end with `data`.
        bounds: int64 [G + 1], filled with the places at which groups begin and end.
        frequencies: uint16 [G, 256], zero, filled.

    Returns:
        The largest symbol that occurs, or -1 where the bytes are no models.
    """
    at, largest = rest, 0
    for group in range(frequencies.shape[0]):
        if at + 2 > data.size:
            return -1
        places = np.int64(data[at]) | np.int64(data[at + 1]) << 8
        if places == 0:
            return -1
        bounds[group + 1] = bounds[group] + places
        at += 2
        left, symbol = SCALE, 0
        while left > 0:
            if at >= data.size or symbol > 255:
                return -1
            often = np.int64(data[at])
            at += 1
            if often == 0:
                if at >= data.size:
                    return -1
                symbol += 1 + np.int64(data[at])
                at += 1
                continue
            if often >= 128:
                if at >= data.size:
                    return -1
                often = often - 128 | np.int64(data[at]) << 7
                at += 1
            if often == 0 or often > left:
                return -1
            frequencies[group, symbol] = often
            largest = max(largest, symbol)
            left -= often
            symbol += 1
    return largest if at == data.size else -1


@compiled()
def write_models(bounds: Any, frequencies: Any, data: Any) -> int:
    """
    Write the models of a block.

    Args:
        bounds: int64 [G + 1].
        frequencies: int64 [G, 256], each group's summing to 4096.
        data: uint8, room for 520 bytes a group.

    Returns:
        Bytes that were written.
    """
    at = 0
    for group in range(frequencies.shape[0]):
        places = bounds[group + 1] - bounds[group]
        data[at], data[at + 1] = places & 255, places >> 8
        at += 2
        left, zeros = np.int64(SCALE), 0
        for symbol in range(256):
            often = frequencies[group, symbol]
            if often == 0:
                zeros += 1
                continue
            if zeros:
                data[at], data[at + 1] = 0, zeros - 1
                at += 2
                zeros = 0
            if often < 128:
                data[at] = often
                at += 1
            else:
                data[at], data[at + 1] = often & 127 | 128, often >> 7
                at += 2
            left -= often
            if left == 0:
                break
    return at


@compiled()
def scale_counts(counts: Any, frequencies: Any) -> None:
    """
    Scale counts to frequencies that sum to 4096, each that was above 0 at least 1.

    Args:
        counts: int64 [256], not all zero.
        frequencies: int64 [256], filled.
    """
    total, excess = np.int64(0), -SCALE
    for symbol in range(256):
        total += counts[symbol]
    for symbol in range(256):
        often = (counts[symbol] * SCALE + total // 2) // total
        frequencies[symbol] = max(1, often) if counts[symbol] else 0
        excess += frequencies[symbol]
    while excess:
        # Where one slot more or fewer costs the least: what it costs goes with count / frequency.
        best, cost = 0, -1.0
        for symbol in range(256):
            if counts[symbol] and (excess < 0 or frequencies[symbol] > 1):
                here = counts[symbol] / frequencies[symbol]
                if cost < 0 or (here > cost if excess < 0 else here < cost):
                    best, cost = symbol, here
        step = 1 if excess < 0 else -1
        frequencies[best] += step
        excess += step
