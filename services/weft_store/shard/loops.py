"""
Loops of the entropy coder, compiled when they are first used and without Python's lock while they run.

An interleaved range coder of asymmetric numeral systems: eight states of 32 bits share one stream of 16-bit words, so
that the processor works on eight values at once though each depends on the one before it. Place p of a row belongs to
state p % 8. Only `coding` calls what is here. Compiled code checks no bounds, so whatever comes from a file is compared
with a length before it is used as a place.
Source: Duda 2013, arXiv 1311.2540; interleaving: Giesen 2014, arXiv 1402.3392. Deviations: none.
Shapes: T tokens of a block, D d_model, G groups.
"""

# Python's integers and NumPy's are one type to the compiler.
# mypy: disable-error-code="assignment,return-value,no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np

from weft_store.shard.compiling import compiled

__all__ = ["DIRECT", "SCALE", "count_symbols", "decode", "encode", "expand"]

SCALE = 4096
"""What the frequencies of a model sum to."""
DIRECT = 224
"""Symbols below stand for themselves; symbol 224 + k is a class of numbers that takes k more bits."""
_BITS, _FREQUENCY_AT, _BIAS_AT = np.uint32(12), np.uint32(20), np.uint32(8)
_MASK, _LOW, _WORD = np.uint32(SCALE - 1), np.uint32(1 << 16), np.uint32(16)


@compiled()
def _take(x: Any, p: Any, words: Any, table: Any) -> Any:
    """Take a value off a state: its entry in the table, the state after it, and the place of the next word."""
    entry = table[x & _MASK]
    x = np.uint32((entry >> _FREQUENCY_AT) * (x >> _BITS) + ((entry >> _BIAS_AT) & _MASK))
    word = np.uint32(words[p])
    low = x < _LOW
    return np.int8(entry), np.uint32((x << _WORD) | word) if low else x, p + np.int64(low)


@compiled()
def _fill(frequency: Any, table: Any) -> None:
    """Make a group's table: for each slot frequency (0 for 4096), distance from the value's first slot, and value."""
    slot = 0
    for symbol in range(256):
        often = np.int64(frequency[symbol])
        value = np.uint32(-((symbol + 1) >> 1) & 255 if symbol & 1 else symbol >> 1)
        fixed = np.uint32(((often & _MASK) << _FREQUENCY_AT) | value)
        for distance in range(often):
            table[slot] = np.uint32(fixed | (np.uint32(distance) << _BIAS_AT))
            slot += 1


@compiled()
def decode(words: Any, states: Any, frequencies: Any, table: Any, bounds: Any, order: Any, out: Any) -> int:
    """
    Decode a block.

    Args:
        words: uint16 [W + 16], of which the last 16 are padding.
        states: uint32 [8]; they are those at the end afterwards.
        frequencies: uint16 [G, 256], each group's summing to 4096.
        table: uint32 [4096], overwritten.
        bounds: int64 [G + 1], the places at which groups begin.
        order: int64 [D], the channel of each place; all below D.
        out: int8, int16 or int32 [T, D].

    Returns:
        Words that were used; a number above W where there were too few.
    """
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    p, end = np.int64(0), words.size - 16
    for group in range(bounds.size - 1):
        first, last = bounds[group], bounds[group + 1]
        whole = last - (last - first) % 8
        _fill(frequencies[group], table)
        if table[0] >> _FREQUENCY_AT == 0:  # one value alone, which takes nothing off the states
            alone = np.int8(table[0])
            for t in range(out.shape[0]):
                for at in range(first, last):
                    out[t, order[at]] = alone
            continue
        for t in range(out.shape[0]):
            row = out[t]
            for at in range(first, whole, 8):
                if p > end:
                    return p
                value, x0, p = _take(x0, p, words, table)
                row[order[at]] = value
                value, x1, p = _take(x1, p, words, table)
                row[order[at + 1]] = value
                value, x2, p = _take(x2, p, words, table)
                row[order[at + 2]] = value
                value, x3, p = _take(x3, p, words, table)
                row[order[at + 3]] = value
                value, x4, p = _take(x4, p, words, table)
                row[order[at + 4]] = value
                value, x5, p = _take(x5, p, words, table)
                row[order[at + 5]] = value
                value, x6, p = _take(x6, p, words, table)
                row[order[at + 6]] = value
                value, x7, p = _take(x7, p, words, table)
                row[order[at + 7]] = value
            if whole == last:
                continue
            if p > end:
                return p
            value, x0, p = _take(x0, p, words, table)
            row[order[whole]] = value
            if whole + 1 < last:
                value, x1, p = _take(x1, p, words, table)
                row[order[whole + 1]] = value
            if whole + 2 < last:
                value, x2, p = _take(x2, p, words, table)
                row[order[whole + 2]] = value
            if whole + 3 < last:
                value, x3, p = _take(x3, p, words, table)
                row[order[whole + 3]] = value
            if whole + 4 < last:
                value, x4, p = _take(x4, p, words, table)
                row[order[whole + 4]] = value
            if whole + 5 < last:
                value, x5, p = _take(x5, p, words, table)
                row[order[whole + 5]] = value
            if whole + 6 < last:
                value, x6, p = _take(x6, p, words, table)
                row[order[whole + 6]] = value
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return p


@compiled()
def expand(bits: Any, num_bits: int, at: int, first: int, last: int, order: Any, out: Any) -> int:
    """
    Replace the classes among a group's values by the values that the bits beside them tell.

    Args:
        bits: uint8, lowest bit first.
        num_bits: Of them.
        at: The next bit.
        first, last: Places of the group.
        out: int8, int16 or int32 [T, D], wide enough for every class that the group's model knows.

    Returns:
        The next bit after the group; a number above `num_bits` where there were too few.
    """
    for t in range(out.shape[0]):
        for place in range(first, last):
            value = np.int64(out[t, order[place]])
            zigzag = 2 * value if value >= 0 else -2 * value - 1
            if zigzag < DIRECT:
                continue
            width = zigzag - DIRECT
            if at + width > num_bits:
                return num_bits + 1
            number = np.int64(1) << width
            for bit in range(width):
                number |= np.int64((bits[at >> 3] >> (at & 7)) & 1) << bit
                at += 1
            number += DIRECT - 1
            out[t, order[place]] = -((number + 1) >> 1) if number & 1 else number >> 1
    return at


@compiled()
def count_symbols(codes: Any, bounds: Any, order: Any, symbols: Any, counts: Any, bits: Any) -> int:
    """
    Turn a block's codes into symbols, group after group, count them, and write the bits beside classes.

    Args:
        codes: int32 [T, D].
        symbols: uint8 [T * D], filled.
        counts: int64 [G, 256], zero, filled.
        bits: uint8 [at least 4 * T * D], zero, filled with lowest bits first.

    Returns:
        Bits that were written.
    """
    at, used = 0, 0
    for group in range(bounds.size - 1):
        for t in range(codes.shape[0]):
            for place in range(bounds[group], bounds[group + 1]):
                code = np.int64(codes[t, order[place]])
                zigzag = 2 * code if code >= 0 else -2 * code - 1
                if zigzag >= DIRECT:
                    number = zigzag - (DIRECT - 1)
                    width = 0
                    while number >> (width + 1):
                        width += 1
                    for bit in range(width):
                        bits[used >> 3] |= np.uint8(((number >> bit) & 1) << (used & 7))
                        used += 1
                    zigzag = DIRECT + width
                symbols[at] = zigzag
                counts[group, zigzag] += 1
                at += 1
    return used


@compiled()
def encode(symbols: Any, num_tokens: int, bounds: Any, starts: Any, frequencies: Any, words: Any, states: Any) -> int:
    """
    Encode a block from its last symbol to its first.

    Args:
        symbols: uint8 [T * D], by group, then token, then place.
        starts, frequencies: uint32 [G, 256]; a frequency of 4096 is a group of one symbol, which takes no words.
        words: uint16 [T * D], filled from its end.
        states: uint32 [8], 2^16 each; they are those that decoding begins with afterwards.

    Returns:
        The place of the first word.
    """
    p = words.size
    at = symbols.size
    for group in range(bounds.size - 2, -1, -1):
        size = bounds[group + 1] - bounds[group]
        start, frequency = starts[group], frequencies[group]
        if frequency[symbols[at - 1]] == SCALE:
            at -= num_tokens * size
            continue
        for _ in range(num_tokens):
            for place in range(size - 1, -1, -1):
                at -= 1
                symbol = symbols[at]
                often = np.uint32(frequency[symbol])
                x = states[place & 7]
                if x >> _FREQUENCY_AT >= often:
                    p -= 1
                    words[p] = np.uint16(x)
                    x = np.uint32(x >> _WORD)
                quotient = np.uint32(x // often)
                states[place & 7] = np.uint32((quotient << _BITS) + (x - quotient * often) + start[symbol])
    return p
