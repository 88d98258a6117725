"""
Loops between codes and symbols, compiled when they are first used and without Python's lock while they run.

Only `coding` calls what is here. Compiled code checks no bounds, so whatever comes from a file is compared with a
length before it is used as a place.
Shapes: T tokens of a block, D d_model, N values of a group of channels, M symbols of it, E escapes of W bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weft_store.shard.compiling import compiled

__all__ = ["pack", "round_rows", "unpack"]

_u = np.uint64  # an index that cannot be negative needs no look at its sign


@compiled()
def pack(
    codes_TD: Any,
    order_D: Any,
    group: Any,
    alphabets: Any,
    few: Any,
    kinds: Any,
    symbols: Any,
    escapes: Any,
    scratch: Any,
) -> Any:
    """
    Make symbols of the codes of a block.

    Args:
        codes_TD: int32.
        order_D: uint64, the channel of each place.
        group: Places of a group; the last may have fewer.
        alphabets: uint32 [kinds, 3]: codes of a symbol, base, and the first code that is no digit, at most 255, the
            kinds in the order in which they are tried; the last has room for any code.
        few: A kind is taken where at most one code in so many is an escape; with no escape digit, where none is.
        kinds: uint8 [groups], filled with codes of a symbol, 0 where all codes are 0.
        symbols, escapes: uint8 and uint32 of one value for each code, filled from their starts.
        scratch: uint8, with room for all codes.

    Returns:
        Bytes of all symbols, and the number of escapes.
    """
    num_tokens, d_model, step = _u(codes_TD.shape[0]), _u(order_D.size), _u(group)
    # In zigzag, 255 for all that are larger: a row is a vector to the processor, and bytes then go to their groups.
    row_D, short_D = np.empty(d_model, np.uint8), order_D.astype(np.uint16)
    for t in range(num_tokens):
        for d in range(d_model):
            code = codes_TD[t, d]
            row_D[d] = np.uint8(min(np.uint32((code << np.int32(1)) ^ (code >> np.int32(31))), np.uint32(255)))
        for index in range(kinds.size):
            first = _u(index) * step
            width = min(step, d_model - first)
            at = first * num_tokens + t * width
            for place in range(width):
                scratch[at + place] = row_D[short_D[first + place]]
    made: Any = _u(0)
    kept: Any = _u(0)
    for index in range(kinds.size):
        first = _u(index) * step
        width = min(step, d_model - first)
        size, begin = num_tokens * width, first * num_tokens
        largest: Any = np.uint8(0)
        for other in range(size):
            largest = max(largest, scratch[begin + other])
        kinds[index] = 0
        if largest == 0:
            continue
        chosen = alphabets.shape[0] - 1
        for kind in range(alphabets.shape[0] - 1):
            direct, over = np.uint8(alphabets[kind, 2]), np.uint32(0)
            if largest >= direct:
                for other in range(size):
                    over += np.uint32(scratch[begin + other] >= direct)
            if over == 0 or (alphabets[kind, 2] < alphabets[kind, 1] and _u(over) * _u(few) <= size):
                chosen = kind
                break
        values, base, direct = _u(alphabets[chosen, 0]), alphabets[chosen, 1], np.uint8(alphabets[chosen, 2])
        kinds[index] = values
        if largest >= direct:
            for t in range(num_tokens):
                for place in range(width):
                    spot = begin + t * width + place
                    if scratch[spot] >= direct:
                        code = codes_TD[t, order_D[first + place]]
                        escapes[kept] = np.uint32((code << np.int32(1)) ^ (code >> np.int32(31)))
                        kept += _u(1)
                        scratch[spot] = direct
        count = (size + values - _u(1)) // values
        whole = size // values
        # Digit by digit for all symbols: loops without a branch are vectors to the processor.
        for m in range(whole):
            symbols[made + m] = scratch[begin + m * values]
        weight = np.uint8(1)
        for i in range(_u(1), values):
            weight = np.uint8(weight * base)
            for m in range(whole):
                symbols[made + m] += np.uint8(scratch[begin + m * values + i] * weight)
        # The last symbol has the digits that are left.
        if count > whole:
            symbol, weight = np.uint8(0), np.uint8(1)
            for other in range(whole * values, size):
                symbol += np.uint8(scratch[begin + other] * weight)
                weight = np.uint8(weight * base)
            symbols[made + whole] = symbol
        made += count
    return made, kept


@compiled(inline="always")
def _digits(symbols: Any, values: Any, base: Any, out: Any) -> Any:
    """Take symbols of some values apart, the lowest digit first; gives the largest symbol."""
    seen = np.uint8(0)
    for m in range(symbols.size):
        symbol = symbols[m]
        seen = symbol if symbol > seen else seen
        for i in range(values):
            out[m * values + i] = symbol % base
            symbol //= base
    return seen


@compiled()
def unpack(content: Any, groups: Any, places: Any, planes_WE: Any, scratch: Any, out_TD: Any) -> int:
    """
    Write the codes of a block to where they belong.

    Args:
        content: uint8, the symbols of all groups.
        groups: int64 [groups, 5]: first place, places, codes of a symbol (0 where all are 0), largest symbol, and the
            digit that stands for the next escape, the largest there is, or above 255 where there is none.
        places: uint64, the channel of each place, below D.
        planes_WE: uint8, the bytes of the escapes, lowest first.
        scratch: uint8, with room for as many of the first group as there are groups, and five more.
        out_TD: Signed integers, wide enough.

    Returns:
        0, or 1 where a symbol is none of its alphabet, or 2 where the escapes are not those of the symbols.
    """
    num_tokens, d_model, wide = _u(out_TD.shape[0]), _u(out_TD.shape[1]), _u(groups[0, 1])
    plain = groups[groups.shape[0] - 1, 1] == groups[0, 1]
    for group in range(groups.shape[0]):
        plain &= groups[group, 2] == 1
    found = content if plain else scratch
    # Digits of all groups, each as if it had the places of the first; where each channel's begin.
    starts_D = np.zeros(d_model, np.uint64)
    read = _u(0)
    for group in range(groups.shape[0]):
        first, width, values = _u(groups[group, 0]), _u(groups[group, 1]), _u(groups[group, 2])
        begin = _u(group) * num_tokens * wide
        for place in range(width):
            starts_D[places[first + place]] = begin + place
        if plain:
            continue
        if values == 0:
            for n in range(num_tokens * wide):
                scratch[begin + n] = 0
            continue
        count = (num_tokens * width + values - _u(1)) // values
        if values == 1:
            for n in range(count):
                scratch[begin + n] = content[read + n]
        else:
            symbols = content[read : read + count]
            out = scratch[begin:]
            # With numbers that the compiler knows a division is a product.
            if values == 2:
                seen = _digits(symbols, 2, 16, out)
            elif values == 3:
                seen = _digits(symbols, 3, 6, out)
            else:
                seen = _digits(symbols, 5, 3, out)
            if seen > groups[group, 3]:
                return 1
        read += count
        if width < wide:
            # From the last to the first: what is read is not yet written over.
            for n in range(num_tokens):
                token = num_tokens - _u(1) - n
                for m in range(width):
                    last = width - _u(1) - m
                    scratch[begin + token * wide + last] = scratch[begin + token * width + last]
    # Bytes come from all over the block; made numbers of in their new order, they are a vector to the processor.
    row_D = np.empty(d_model, np.uint8)
    for t in range(num_tokens):
        begin = t * wide
        for d in range(d_model):
            row_D[d] = found[starts_D[d] + begin]
        for d in range(d_model):
            digit = np.int32(row_D[d])
            out_TD[t, d] = (digit >> np.int32(1)) ^ -(digit & np.int32(1))
    used, num_escapes = _u(0), _u(planes_WE.shape[1])
    for group in range(groups.shape[0]):
        first, width, escape = _u(groups[group, 0]), _u(groups[group, 1]), groups[group, 4]
        at = _u(group) * num_tokens * wide
        for t in range(num_tokens if groups[group, 2] > 0 else _u(0)):
            most = np.uint8(0)
            for place in range(width):
                size = found[at + place]
                most = size if size > most else most
            if most == escape:
                for place in range(width):
                    if found[at + place] != escape:
                        continue
                    if used >= num_escapes:
                        return 2
                    zigzag = np.uint32(0)
                    for plane in range(planes_WE.shape[0]):
                        zigzag |= np.uint32(planes_WE[plane, used]) << np.uint32(8 * plane)
                    used += _u(1)
                    out_TD[t, places[first + place]] = np.int32(zigzag >> np.uint32(1)) ^ -np.int32(
                        zigzag & np.uint32(1)
                    )
            at += wide
    return 0 if used == num_escapes else 2


@compiled()
def round_rows(codes_TD: Any, step: Any, mean_D: Any, bits_TD: Any) -> None:
    """Give the bits of the bfloat16 nearest to each value that a reader makes of its code, ties to even."""
    for t in range(codes_TD.shape[0]):
        for d in range(codes_TD.shape[1]):
            value = np.float32(np.float32(np.float32(codes_TD[t, d]) * step) + mean_D[d])
            bits = np.float32(value).view(np.uint32)
            bits_TD[t, d] = np.uint16(
                (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            )
