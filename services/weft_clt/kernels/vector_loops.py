"""
The three sparse products of a step, with what they sum up kept in registers.

A decoder block [F, C] is walked in strips of a few cache lines: a strip of all its rows fits the second-level cache,
and a strip of one output row fits the registers, so each value that is read is multiplied and added once and nothing
else moves. Numba's own loops cannot say "keep this in registers"; the strips are therefore written as LLVM vectors,
which the compiler maps to whatever width the processor has.
Sums within a strip are fused (fmuladd). Indices are int32 and not negative.
Shapes: see `weft_clt.kernels.port`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["decode_grad_loop", "decode_loop", "value_grad_loop"]

_LANE_BYTES = 64
_WIDE_BYTES = 192  # measured: 128 reads each index more often, 256 leaves too few registers for the rest
_MANY = 4

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_compiled = numba.njit(cache=True, nogil=True)


class _Strip:
    """Emits loads and stores of one strip: `count` vectors of `lanes` elements."""

    def __init__(self, context: Any, builder: Any, dtype: Any, width_bytes: int) -> None:
        self.builder = builder
        self.size = dtype.bitwidth // 8
        elements = max(1, width_bytes // self.size)
        self.lanes = min(elements, _LANE_BYTES // self.size)
        self.count = elements // self.lanes
        self.vector = ir.VectorType(context.get_value_type(dtype), self.lanes)
        name = f"llvm.fmuladd.v{self.lanes}f{dtype.bitwidth}"
        self._fmuladd = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(self.vector, [self.vector] * 3), name
        )

    def _place(self, base: Any, part: int) -> Any:
        place = self.builder.gep(base, [ir.Constant(_I64, part * self.lanes)])
        return self.builder.bitcast(place, self.vector.as_pointer())

    def load(self, base: Any) -> list[Any]:
        """Load the strip that begins at a pointer."""
        loads = [self.builder.load(self._place(base, part)) for part in range(self.count)]
        for load in loads:
            load.align = self.size
        return loads

    def store(self, parts: list[Any], base: Any) -> None:
        """Store the strip at a pointer."""
        for part, value in enumerate(parts):
            self.builder.store(value, self._place(base, part)).align = self.size

    def splat(self, value: Any) -> Any:
        """Repeat a scalar in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, undefined, _mask([0] * self.lanes))

    def multiply_add(self, left: Any, right: Any, total: Any) -> Any:
        """Emit left * right + total."""
        return self.builder.call(self._fmuladd, [left, right, total])

    def total(self, vector: Any) -> Any:
        """Sum the lanes, halving."""
        lanes = self.lanes
        while lanes > 1:
            undefined = ir.Constant(vector.type, ir.Undefined)
            lanes //= 2
            low = self.builder.shuffle_vector(vector, undefined, _mask(range(lanes)))
            high = self.builder.shuffle_vector(vector, undefined, _mask(range(lanes, 2 * lanes)))
            vector = self.builder.fadd(low, high)
        return self.builder.extract_element(vector, ir.Constant(_I32, 0))


def _mask(lanes: Any) -> ir.Constant:
    chosen = list(lanes)
    return ir.Constant(ir.VectorType(_I32, len(chosen)), chosen)


class _Matrix:
    """Emits pointers into a C-contiguous matrix."""

    def __init__(self, context: Any, builder: Any, array_type: Any, value: Any) -> None:
        array = context.make_array(array_type)(context, builder, value)
        self._builder, self._data = builder, array.data
        self._width = cgutils.unpack_tuple(builder, array.shape)[1]

    def at(self, row: Any, column: Any) -> Any:
        """Point at an element."""
        offset = self._builder.add(self._builder.mul(row, self._width), column)
        return self._builder.gep(self._data, [offset])


def _element(builder: Any, context: Any, array_type: Any, value: Any, index: Any) -> Any:
    """Point at an element of a contiguous vector."""
    return builder.gep(context.make_array(array_type)(context, builder, value).data, [index])


def _make_add_rows(width_bytes: int) -> Any:
    """Make: out[row, strip] += sum of value[n] * rows[index[n], strip] over start <= n < end."""

    def add_rows(_: Any, index: Any, value: Any, rows: Any, start: Any, end: Any, out: Any, row: Any, low: Any) -> Any:
        signature = types.void(index, value, rows, types.int64, types.int64, out, types.int64, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            index_type, value_type, rows_type, _, _, out_type, _, _ = signature.args
            index, value, rows, start, end, out, row, low = args
            strip = _Strip(context, builder, out_type.dtype, width_bytes)
            out_place = _Matrix(context, builder, out_type, out).at(row, low)
            given = strip.load(out_place)
            before, body, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.cbranch(builder.icmp_signed("<", start, end), body, after)

            builder.position_at_end(body)
            entry = builder.phi(_I64)
            totals = [builder.phi(strip.vector) for _ in given]
            place = _element(builder, context, index_type, index, entry)
            source = builder.zext(builder.load(place), _I64)
            factor = strip.splat(builder.load(_element(builder, context, value_type, value, entry)))
            parts = strip.load(_Matrix(context, builder, rows_type, rows).at(source, low))
            sums = [strip.multiply_add(factor, part, total) for part, total in zip(parts, totals, strict=True)]
            following = builder.add(entry, ir.Constant(_I64, 1))
            entry.add_incoming(start, before)
            entry.add_incoming(following, body)
            for total, first, later in zip(totals, given, sums, strict=True):
                total.add_incoming(first, before)
                total.add_incoming(later, body)
            builder.cbranch(builder.icmp_signed("<", following, end), body, after)

            builder.position_at_end(after)
            results = [builder.phi(strip.vector) for _ in given]
            for result, first, later in zip(results, given, sums, strict=True):
                result.add_incoming(first, before)
                result.add_incoming(later, body)
            strip.store(results, out_place)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(add_rows)


def _make_add_dots(width_bytes: int, count: int) -> Any:
    """Make: out[n] += <rows[index[n], strip], one[row, strip]> for `count` entries from `entry` on."""

    def add_dots(_: Any, index: Any, rows: Any, entry: Any, one: Any, row: Any, low: Any, out: Any) -> Any:
        signature = types.void(index, rows, types.int64, one, types.int64, types.int64, out)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            index_type, rows_type, _, one_type, _, _, out_type = signature.args
            index, rows, entry, one, row, low, out = args
            strip = _Strip(context, builder, out_type.dtype, width_bytes)
            matrix = _Matrix(context, builder, rows_type, rows)
            held = strip.load(_Matrix(context, builder, one_type, one).at(row, low))
            for ahead in range(count):
                place = builder.add(entry, ir.Constant(_I64, ahead))
                source = builder.zext(builder.load(_element(builder, context, index_type, index, place)), _I64)
                parts = strip.load(matrix.at(source, low))
                total = builder.fmul(parts[0], held[0])
                for left, right in zip(parts[1:], held[1:], strict=True):
                    total = strip.multiply_add(left, right, total)
                target = _element(builder, context, out_type, out, place)
                builder.store(builder.fadd(builder.load(target), strip.total(total)), target)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(add_dots)


_wide_rows, _lane_rows, _single_rows = (_make_add_rows(width) for width in (_WIDE_BYTES, _LANE_BYTES, 1))
_wide_dots, _wide_dot = (_make_add_dots(_WIDE_BYTES, count) for count in (_MANY, 1))
_lane_dots, _lane_dot = (_make_add_dots(_LANE_BYTES, count) for count in (_MANY, 1))
_single_dots, _single_dot = (_make_add_dots(1, count) for count in (_MANY, 1))


def _strip_of(add_rows: Any) -> Callable[..., None]:
    """Make the walk over one strip of all rows of the output."""

    @_compiled
    def walk(starts: Any, ends: Any, index: Any, value: Any, rows: Any, out: Any, low: Any) -> None:
        for row in range(out.shape[0]):
            add_rows(index, value, rows, starts[row], ends[row], out, row, low)

    return walk


def _dots_of(many: Any, one: Any) -> Callable[..., None]:
    """Make the walk over one strip of all entries."""

    @_compiled
    def walk(starts: Any, index: Any, rows: Any, given: Any, out: Any, low: Any) -> None:
        for row in range(given.shape[0]):
            entry = starts[row]
            end = starts[row + 1]
            while entry + _MANY <= end:
                many(index, rows, entry, given, row, low, out)
                entry += _MANY
            while entry < end:
                one(index, rows, entry, given, row, low, out)
                entry += 1

    return walk


_wide_strip, _lane_strip, _single_strip = map(_strip_of, (_wide_rows, _lane_rows, _single_rows))
_wide_walk, _lane_walk = _dots_of(_wide_dots, _wide_dot), _dots_of(_lane_dots, _lane_dot)
_single_walk = _dots_of(_single_dots, _single_dot)


@_compiled
def _sum_rows(starts: Any, ends: Any, index: Any, value: Any, rows: Any, out: Any) -> None:
    wide, lane = _WIDE_BYTES // out.itemsize, _LANE_BYTES // out.itemsize
    low = 0
    while low + wide <= out.shape[1]:
        _wide_strip(starts, ends, index, value, rows, out, low)
        low += wide
    while low + lane <= out.shape[1]:
        _lane_strip(starts, ends, index, value, rows, out, low)
        low += lane
    while low < out.shape[1]:
        _single_strip(starts, ends, index, value, rows, out, low)
        low += 1


@_compiled
def decode_loop(row_start: Any, row_active: Any, feature: Any, value: Any, weight: Any, out: Any) -> None:
    """out[t] += sum of value[n] * weight[feature[n]] over the entries n of token t that are above 0."""
    _sum_rows(row_start, row_active, feature, value, weight, out)


@_compiled
def decode_grad_loop(column_start: Any, column_token: Any, column_value: Any, grad_out: Any, grad_weight: Any) -> None:
    """grad_weight[f] = sum of value * grad_out[token] over the entries of feature f that are above 0."""
    grad_weight[:] = 0
    _sum_rows(column_start[:-1], column_start[1:], column_token, column_value, grad_out, grad_weight)


@_compiled
def value_grad_loop(row_start: Any, feature: Any, weight: Any, grad_out: Any, grad_value: Any) -> None:
    """grad_value[n] += <grad_out[t], weight[feature[n]]> for every entry n of token t."""
    wide, lane = _WIDE_BYTES // weight.itemsize, _LANE_BYTES // weight.itemsize
    low = 0
    while low + wide <= weight.shape[1]:
        _wide_walk(row_start, feature, weight, grad_out, grad_value, low)
        low += wide
    while low + lane <= weight.shape[1]:
        _lane_walk(row_start, feature, weight, grad_out, grad_value, low)
        low += lane
    while low < weight.shape[1]:
        _single_walk(row_start, feature, weight, grad_out, grad_value, low)
        low += 1
