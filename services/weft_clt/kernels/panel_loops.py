"""
The sparse products of a whole step, target layer by target layer and strip by strip (`panel_rows`).

A strip of a target's error is copied into a panel once and serves all source layers. Threads share out the columns of
the decoder, so that they never write to the same place. Weights and moments may be the bits of bfloat16, int16.
`starts[l, f]` to `starts[l, f + 1]` are the entries of feature f of layer l that are above 0, `nears` has those at 0,
which need gradients only. `pairs` has a row (source, target, block) for every decoder block, sorted by target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft_clt.kernels.adam_rows import make_adam_row, make_adam_strip
from weft_clt.kernels.compiling import compiled
from weft_clt.kernels.panel_rows import (
    make_add_row,
    make_dot_rows,
    make_gather_row,
    make_miss_strip,
    make_move_strip,
    make_near_row,
)
from weft_clt.kernels.threads import WIDEST_BYTES

__all__ = ["adam_flat_loop", "adam_loop", "decode_loop", "gradient_loop", "value_grad_loop"]

_WIDTHS_BYTES = (WIDEST_BYTES, 64, 1)  # narrower reads each index more often
_compiled = compiled()


@_compiled
def _width(left: int, size: int) -> int:
    """Return how many columns the next strip has."""
    for width_bytes in _WIDTHS_BYTES:
        width = max(1, width_bytes // size)
        if width <= left:
            return width
    return 1


_pack_wide, _unpack_wide = (make_move_strip(WIDEST_BYTES, out_of_panel) for out_of_panel in (False, True))
_miss_wide = make_miss_strip(WIDEST_BYTES)


@_compiled
def _pack(given: Any, low: int, high: int, storage: Any) -> None:
    """Lay out columns `low` to `high` as panels, one strip after the other; rows are read in one go."""
    num_rows, wide = given.shape[0], WIDEST_BYTES // given.itemsize
    for row in range(num_rows):
        column = low
        while column < high:
            width = _width(high - column, given.itemsize)
            place = (column - low) * num_rows + row * width
            if width == wide:
                _pack_wide(given, row, column, storage, place)
            else:
                for lane in range(width):
                    storage[place + lane] = given[row, column + lane]
            column += width


@_compiled
def _pack_misses(bias: Any, wanted: Any, low: int, high: int, storage: Any) -> None:
    """Lay out bias - wanted as `_pack` does."""
    num_rows, wide = wanted.shape[0], WIDEST_BYTES // wanted.itemsize
    for row in range(num_rows):
        column = low
        while column < high:
            width = _width(high - column, wanted.itemsize)
            place = (column - low) * num_rows + row * width
            if width == wide:
                _miss_wide(bias, wanted, row, column, storage, place)
            else:
                for lane in range(width):
                    storage[place + lane] = bias[column + lane] - wanted[row, column + lane]
            column += width


@_compiled
def _unpack(storage: Any, low: int, high: int, out: Any) -> None:
    """Undo `_pack`."""
    num_rows, wide = out.shape[0], WIDEST_BYTES // out.itemsize
    for row in range(num_rows):
        column = low
        while column < high:
            width = _width(high - column, out.itemsize)
            place = (column - low) * num_rows + row * width
            if width == wide:
                _unpack_wide(out, row, column, storage, place)
            else:
                for lane in range(width):
                    out[row, column + lane] = storage[place + lane]
            column += width


@_compiled
def _panel(storage: Any, low: int, column: int, width: int, num_rows: int) -> Any:
    """Return the panel of the strip that begins at a column."""
    first = (column - low) * num_rows
    return storage[first : first + num_rows * width].reshape(num_rows, width)


def _decode_of(add_row: Any) -> Callable[..., None]:
    @_compiled
    def walk(
        pairs: Any, starts: Any, token: Any, value: Any, weight: Any, panel: Any, first: int, last: int,
        low: int,
    ) -> None:  # fmt: skip
        for pair in range(first, last):
            source, block = pairs[pair, 0], weight[pairs[pair, 2]]
            for row in range(block.shape[0]):
                start, end = starts[source, row], starts[source, row + 1]
                if start < end:
                    add_row(token, value, start, end, block, row, low, panel)

    return walk


def _value_grad_of(dot_rows: Any, near_row: Any) -> Callable[..., float]:
    @_compiled
    def walk(
        pairs: Any, starts: Any, nears: Any, token: Any, value: Any, weight: Any, panel: Any, first: int, last: int,
        low: int, dots: Any, near_sums: Any,
    ) -> float:  # fmt: skip
        squares, is_apart = 0.0, near_sums.shape[0] > 0
        for pair in range(first, last):
            source, block = pairs[pair, 0], weight[pairs[pair, 2]]
            for row in range(block.shape[0]):
                start, end = starts[source, row], starts[source, row + 1]
                if start < end:
                    squares += dot_rows(token, value, start, end, block, row, low, panel, dots)
                start, end = nears[source, row], nears[source, row + 1]
                if start < end and is_apart:
                    near_sums[source, row] += near_row(token, start, end, block, row, low, panel)
                elif start < end:
                    squares += dot_rows(token, value, start, end, block, row, low, panel, dots)
        return squares

    return walk


def _adam_of(adam_row: Any) -> Callable[..., None]:
    @_compiled
    def walk(
        pairs: Any, starts: Any, token: Any, value: Any, panel: Any, coeffs: Any, weight: Any,
        first_moment: Any, second_moment: Any, first: int, last: int, low: int, scalars: Any, seed: int,
    ) -> None:  # fmt: skip
        for pair in range(first, last):
            source, block = pairs[pair, 0], pairs[pair, 2]
            weights, firsts, seconds = weight[block], first_moment[block], second_moment[block]
            before = block * weights.size
            for row in range(weights.shape[0]):
                start, end = starts[source, row], starts[source, row + 1]
                coeff = coeffs[source, row]
                adam_row(
                    token, value, start, end, panel, coeff, weights, firsts, seconds, row, low, scalars, before, seed
                )

    return walk


def _gradient_of(gather_row: Any) -> Callable[..., None]:
    @_compiled
    def walk(
        pairs: Any, starts: Any, token: Any, value: Any, panel: Any, coeffs: Any, weight: Any, out: Any,
        first: int, last: int, low: int, fresh: bool,
    ) -> None:  # fmt: skip
        for pair in range(first, last):
            source, block = pairs[pair, 0], pairs[pair, 2]
            weights, outs = weight[block], out[block]
            for row in range(weights.shape[0]):
                start, end = starts[source, row], starts[source, row + 1]
                gather_row(token, value, start, end, panel, coeffs[source, row], weights, outs, row, low, fresh)

    return walk


_decode_wide, _decode_lane, _decode_single = (_decode_of(make_add_row(width)) for width in _WIDTHS_BYTES)
_dots_wide, _dots_lane, _dots_single = (
    _value_grad_of(make_dot_rows(width), make_near_row(width)) for width in _WIDTHS_BYTES
)
_adam_wide, _adam_lane, _adam_single = (_adam_of(make_adam_row(width, True)) for width in _WIDTHS_BYTES)
_bare_wide, _bare_lane, _bare_single = (_adam_of(make_adam_row(width, False)) for width in _WIDTHS_BYTES)
_strip_wide, _strip_single = (make_adam_strip(width, True) for width in (WIDEST_BYTES, 1))
_bare_strip_wide, _bare_strip_single = (make_adam_strip(width, False) for width in (WIDEST_BYTES, 1))
_gather_wide, _gather_lane, _gather_single = (_gradient_of(make_gather_row(width)) for width in _WIDTHS_BYTES)


@_compiled
def _last(pairs: Any, first: int) -> int:
    """Return the end of the pairs that have the target of pair `first`."""
    last = first
    while last < pairs.shape[0] and pairs[last, 1] == pairs[first, 1]:
        last += 1
    return last


@_compiled
def decode_loop(
    low: int, high: int, pairs: Any, starts: Any, token: Any, value: Any, weight: Any, bias: Any,
    wanted: Any, error: Any, storage: Any,
) -> None:  # fmt: skip
    """error[k, t] = bias[k] - wanted[k, t] + sum of value * weight[block, feature] over the entries of t."""
    num_tokens, wide, lane = error.shape[1], _width(1 << 30, error.itemsize), 64 // error.itemsize
    first = 0
    while first < pairs.shape[0]:
        last, target = _last(pairs, first), pairs[first, 1]
        _pack_misses(bias[target], wanted[target], low, high, storage)
        column = low
        while column < high:
            width = _width(high - column, error.itemsize)
            panel = _panel(storage, low, column, width, num_tokens)
            if width == wide:
                _decode_wide(pairs, starts, token, value, weight, panel, first, last, column)
            elif width == lane:
                _decode_lane(pairs, starts, token, value, weight, panel, first, last, column)
            else:
                _decode_single(pairs, starts, token, value, weight, panel, first, last, column)
            column += width
        _unpack(storage, low, high, error[target])
        first = last


@_compiled
def value_grad_loop(
    low: int, high: int, pairs: Any, starts: Any, nears: Any, token: Any, value: Any, weight: Any, error: Any,
    dots: Any, near_sums: Any, storage: Any,
) -> float:  # fmt: skip
    """
    dots[n] = sum over targets k of <error[k, t], weight[block, feature]>.

    Where `near_sums` has places, entries at 0 add theirs to the place of their feature, and have no dot.
    Returns the sum of squares of all decoder gradients of the columns.
    """
    num_tokens, wide, lane = error.shape[1], _width(1 << 30, error.itemsize), 64 // error.itemsize
    dots[:] = 0
    squares = 0.0
    first = 0
    while first < pairs.shape[0]:
        last, target = _last(pairs, first), pairs[first, 1]
        _pack(error[target], low, high, storage)
        column = low
        while column < high:
            width = _width(high - column, error.itemsize)
            panel = _panel(storage, low, column, width, num_tokens)
            if width == wide:
                squares += _dots_wide(
                    pairs, starts, nears, token, value, weight, panel, first, last, column, dots, near_sums
                )
            elif width == lane:
                squares += _dots_lane(
                    pairs, starts, nears, token, value, weight, panel, first, last, column, dots, near_sums
                )
            else:
                squares += _dots_single(
                    pairs, starts, nears, token, value, weight, panel, first, last, column, dots, near_sums
                )
            column += width
        first = last
    return squares


@_compiled
def adam_loop(
    low: int, high: int, pairs: Any, starts: Any, token: Any, value: Any, error: Any, coeffs: Any,
    weight: Any, first_moment: Any, second_moment: Any, has_first: bool, scalars: Any, seed: int, storage: Any,
) -> None:  # fmt: skip
    """Update every decoder row by Adam; its gradient is coeff * row + sum of value * error over its entries."""
    num_tokens, wide, lane = error.shape[1], _width(1 << 30, error.itemsize), 64 // error.itemsize
    first = 0
    while first < pairs.shape[0]:
        last, target = _last(pairs, first), pairs[first, 1]
        _pack(error[target], low, high, storage)
        column = low
        while column < high:
            width = _width(high - column, error.itemsize)
            panel = _panel(storage, low, column, width, num_tokens)
            if has_first:
                if width == wide:
                    _adam_wide(pairs, starts, token, value, panel, coeffs, weight, first_moment, second_moment, first, last, column, scalars, seed)  # fmt: skip  # noqa: E501
                elif width == lane:
                    _adam_lane(pairs, starts, token, value, panel, coeffs, weight, first_moment, second_moment, first, last, column, scalars, seed)  # fmt: skip  # noqa: E501
                else:
                    _adam_single(pairs, starts, token, value, panel, coeffs, weight, first_moment, second_moment, first, last, column, scalars, seed)  # fmt: skip  # noqa: E501
            elif width == wide:
                _bare_wide(pairs, starts, token, value, panel, coeffs, weight, first_moment, second_moment, first, last, column, scalars, seed)  # fmt: skip  # noqa: E501
            elif width == lane:
                _bare_lane(pairs, starts, token, value, panel, coeffs, weight, first_moment, second_moment, first, last, column, scalars, seed)  # fmt: skip  # noqa: E501
            else:
                _bare_single(pairs, starts, token, value, panel, coeffs, weight, first_moment, second_moment, first, last, column, scalars, seed)  # fmt: skip  # noqa: E501
            column += width
        first = last


@_compiled
def adam_flat_loop(
    low: int, high: int, param: Any, grad: Any, first_moment: Any, second_moment: Any, has_first: bool, scalars: Any,
    before: int, seed: int,
) -> None:  # fmt: skip
    """Update elements `low` to `high` of a flat tensor by Adam; `before` elements of its storage come before it."""
    wide, index = WIDEST_BYTES // grad.itemsize, low
    while index + wide <= high:
        if has_first:
            _strip_wide(param, grad, first_moment, second_moment, index, scalars, before, seed)
        else:
            _bare_strip_wide(param, grad, first_moment, second_moment, index, scalars, before, seed)
        index += wide
    while index < high:
        if has_first:
            _strip_single(param, grad, first_moment, second_moment, index, scalars, before, seed)
        else:
            _bare_strip_single(param, grad, first_moment, second_moment, index, scalars, before, seed)
        index += 1


@_compiled
def gradient_loop(
    low: int, high: int, pairs: Any, starts: Any, token: Any, value: Any, error: Any, coeffs: Any,
    weight: Any, out: Any, fresh: bool, storage: Any,
) -> None:  # fmt: skip
    """
    out[block, f] += coeff * weight[block, f] + sum of value * error over the entries of feature f.

    Where `fresh`, what was there is written over.
    """
    num_tokens, wide, lane = error.shape[1], _width(1 << 30, error.itemsize), 64 // error.itemsize
    first = 0
    while first < pairs.shape[0]:
        last, target = _last(pairs, first), pairs[first, 1]
        _pack(error[target], low, high, storage)
        column = low
        while column < high:
            width = _width(high - column, error.itemsize)
            panel = _panel(storage, low, column, width, num_tokens)
            if width == wide:
                _gather_wide(pairs, starts, token, value, panel, coeffs, weight, out, first, last, column, fresh)  # fmt: skip  # noqa: E501
            elif width == lane:
                _gather_lane(pairs, starts, token, value, panel, coeffs, weight, out, first, last, column, fresh)  # fmt: skip  # noqa: E501
            else:
                _gather_single(pairs, starts, token, value, panel, coeffs, weight, out, first, last, column, fresh)  # fmt: skip  # noqa: E501
            column += width
        first = last
