"""
The sparse products of a step, and the update that one of them ends in, for one feature and one strip of columns.

A panel holds a strip of columns of all tokens, one token after the other, so that it stays in the second-level cache
and its rows share no cache set by accident. A feature's entries (token, value) pick rows of the panel; the feature's
own strip, of a weight or a gradient, stays in registers. What is read from the panel is multiplied and added at once.
Sums within a strip are fused (fmuladd). Indices are int32 and not negative. Weights may be the bits of bfloat16, int16;
they are widened where a strip is loaded, and all arithmetic is in the panel's type.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from weft_clt.kernels.vector_code import I64, Matrix, Strip, count_up, element

__all__ = [
    "AHEAD",
    "GROUP",
    "any_above",
    "make_add_row",
    "make_dot_rows",
    "make_gather_row",
    "make_miss_strip",
    "make_move_strip",
    "make_near_row",
    "sum_panel",
]

AHEAD = 8
"""Features; far enough ahead that a strip of a weight has come from memory when it is needed."""


def _at(context: Any, builder: Any, given_type: Any, given: Any, index: Any) -> Any:
    return builder.load(element(builder, context, given_type, given, index))


def make_move_strip(width_bytes: int, out_of_panel: bool) -> Any:
    """Make: panels[place ...] = matrix[row, strip], or the other way round."""

    def move_strip(_: Any, matrix: Any, row: Any, low: Any, panels: Any, place: Any) -> Any:
        signature = types.void(matrix, types.int64, types.int64, panels, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            matrix_type, _, _, panels_type, _ = signature.args
            matrix, row, low, panels, place = args
            strip = Strip(context, builder, panels_type.dtype, width_bytes)
            outside = Matrix(context, builder, matrix_type, matrix).at(row, low)
            inside = element(builder, context, panels_type, panels, place)
            source, target = (inside, outside) if out_of_panel else (outside, inside)
            strip.store(strip.load(source), target)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(move_strip)


def make_miss_strip(width_bytes: int) -> Any:
    """Make: panels[place ...] = bias[strip] - wanted[row, strip]."""

    def miss_strip(_: Any, bias: Any, wanted: Any, row: Any, low: Any, panels: Any, place: Any) -> Any:
        signature = types.void(bias, wanted, types.int64, types.int64, panels, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            bias_type, wanted_type, _, _, panels_type, _ = signature.args
            bias, wanted, row, low, panels, place = args
            strip = Strip(context, builder, panels_type.dtype, width_bytes)
            offsets = strip.load(element(builder, context, bias_type, bias, low))
            values = strip.load(Matrix(context, builder, wanted_type, wanted).at(row, low))
            misses = [builder.fsub(offset, value) for offset, value in zip(offsets, values, strict=True)]
            strip.store(misses, element(builder, context, panels_type, panels, place))
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(miss_strip)


def make_add_row(width_bytes: int) -> Any:
    """Make: panel[token[n]] += value[n] * weight[row, strip] for start <= n < end."""

    def add_row(
        _: Any, token: Any, value: Any, start: Any, end: Any, weight: Any, row: Any, low: Any, panel: Any
    ) -> Any:
        signature = types.void(token, value, types.int64, types.int64, weight, types.int64, types.int64, panel)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            token_type, value_type, _, _, weight_type, _, _, panel_type = signature.args
            token, value, start, end, weight, row, low, panel = args
            strip = Strip(context, builder, panel_type.dtype, width_bytes)
            weights, rows = (
                Matrix(context, builder, kind, given) for kind, given in ((weight_type, weight), (panel_type, panel))
            )
            held = strip.load(weights.at(row, low), weights.short)
            strip.prefetch(weights.at(builder.add(row, ir.Constant(I64, AHEAD)), low), weights.short)

            def turn(entry: Any, _: list[Any]) -> list[Any]:
                index = builder.zext(_at(context, builder, token_type, token, entry), I64)
                factor = strip.splat(_at(context, builder, value_type, value, entry))
                place = rows.at(index, ir.Constant(I64, 0))
                parts = strip.load(place)
                strip.store(
                    [strip.multiply_add(factor, own, part) for own, part in zip(held, parts, strict=True)], place
                )
                return []

            count_up(builder, start, end, 1, [], turn)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(add_row)


def make_dot_rows(width_bytes: int) -> Any:
    """
    Make: dots[n] += <panel[token[n]], weight[row, strip]> for start <= n < end.

    Returns the squared norm of sum of value[n] * panel[token[n]], which is the row's gradient.
    """

    def dot_rows(
        _: Any, token: Any, value: Any, start: Any, end: Any, weight: Any, row: Any, low: Any, panel: Any, dots: Any
    ) -> Any:
        signature = panel.dtype(token, value, types.int64, types.int64, weight, types.int64, types.int64, panel, dots)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            token_type, value_type, _, _, weight_type, _, _, panel_type, dots_type = signature.args
            token, value, start, end, weight, row, low, panel, dots = args
            strip = Strip(context, builder, panel_type.dtype, width_bytes)
            weights, rows = (
                Matrix(context, builder, kind, given) for kind, given in ((weight_type, weight), (panel_type, panel))
            )
            held = strip.load(weights.at(row, low), weights.short)
            strip.prefetch(weights.at(builder.add(row, ir.Constant(I64, AHEAD)), low), weights.short)

            def turns(count: int) -> Any:
                def turn(entry: Any, sums: list[Any]) -> list[Any]:
                    entries = [builder.add(entry, ir.Constant(I64, ahead)) for ahead in range(count)]
                    places = []
                    for each in entries:
                        index = builder.zext(_at(context, builder, token_type, token, each), I64)
                        places.append(rows.at(index, ir.Constant(I64, 0)))
                    products = []
                    for each, place in zip(entries, places, strict=True):
                        factor = strip.splat(_at(context, builder, value_type, value, each))
                        product = strip.zero()
                        for part, own in enumerate(held):
                            read = strip.load_part(place, part)
                            product = strip.multiply_add(read, own, product)
                            sums[part] = strip.multiply_add(factor, read, sums[part])
                        products.append(product)
                    for each, total in zip(entries, strip.totals(products), strict=True):
                        target = element(builder, context, dots_type, dots, each)
                        builder.store(builder.fadd(builder.load(target), total), target)
                    return sums

                return turn

            sums = [strip.zero() for _ in held]
            entry, sums = count_up(builder, start, end, 4, sums, turns(4))
            _, sums = count_up(builder, entry, end, 1, sums, turns(1))
            squares = strip.zero()
            for each in sums:
                squares = strip.multiply_add(each, each, squares)
            return strip.total(squares)

        return signature, codegen

    return intrinsic(dot_rows)


def make_near_row(width_bytes: int) -> Any:
    """Make: <sum of panel[token[n]] for start <= n < end, weight[row, strip]>."""

    def near_row(_: Any, token: Any, start: Any, end: Any, weight: Any, row: Any, low: Any, panel: Any) -> Any:
        signature = panel.dtype(token, types.int64, types.int64, weight, types.int64, types.int64, panel)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            token_type, _, _, weight_type, _, _, panel_type = signature.args
            token, start, end, weight, row, low, panel = args
            strip = Strip(context, builder, panel_type.dtype, width_bytes)
            weights, rows = (
                Matrix(context, builder, kind, given) for kind, given in ((weight_type, weight), (panel_type, panel))
            )

            def turns(count: int) -> Any:
                def turn(entry: Any, sums: list[Any]) -> list[Any]:
                    for lane in range(count):
                        each = builder.add(entry, ir.Constant(I64, lane))
                        index = builder.zext(_at(context, builder, token_type, token, each), I64)
                        place = rows.at(index, ir.Constant(I64, 0))
                        for part in range(strip.count):
                            spot = lane * strip.count + part
                            sums[spot] = builder.fadd(strip.load_part(place, part), sums[spot])
                    return sums

                return turn

            # Two chains of sums, so that an addition need not wait for the one before it.
            sums = [strip.zero() for _ in range(2 * strip.count)]
            entry, sums = count_up(builder, start, end, 2, sums, turns(2))
            _, odd = count_up(builder, entry, end, 1, sums[: strip.count], turns(1))
            product = strip.zero()
            for own, left, right in zip(
                strip.load(weights.at(row, low), weights.short), odd, sums[strip.count :], strict=True
            ):
                product = strip.multiply_add(own, builder.fadd(left, right), product)
            return strip.total(product)

        return signature, codegen

    return intrinsic(near_row)


def sum_panel(
    context: Any, builder: Any, strip: Strip, token: tuple[Any, Any], value: tuple[Any, Any], start: Any, end: Any,
    rows: Matrix,
) -> list[Any]:  # fmt: skip
    """Emit the sum of value[n] * panel[token[n]] over start <= n < end; token and value are (type, array)."""

    def turns(count: int) -> Any:
        def turn(entry: Any, sums: list[Any]) -> list[Any]:
            for lane in range(count):
                each = builder.add(entry, ir.Constant(I64, lane))
                index = builder.zext(_at(context, builder, *token, each), I64)
                factor = strip.splat(_at(context, builder, *value, each))
                place = rows.at(index, ir.Constant(I64, 0))
                for part in range(strip.count):
                    spot = lane * strip.count + part
                    sums[spot] = strip.multiply_add(factor, strip.load_part(place, part), sums[spot])
            return sums

        return turn

    # Two chains of sums, so that an addition need not wait for the one before it.
    sums = [strip.zero() for _ in range(2 * strip.count)]
    entry, sums = count_up(builder, start, end, 2, sums, turns(2))
    _, odd = count_up(builder, entry, end, 1, sums[: strip.count], turns(1))
    return [builder.fadd(left, right) for left, right in zip(odd, sums[strip.count :], strict=True)]


def make_gather_row(width_bytes: int) -> Any:
    """
    Make: out[row, strip] += coeff * weight[row, strip] + sum of value[n] * panel[token[n]] for start <= n < end.

    Where `fresh` is true, what was in `out` is written over.
    """

    def gather_row(
        _: Any, token: Any, value: Any, start: Any, end: Any, panel: Any, coeff: Any, weight: Any, out: Any, row: Any,
        low: Any, fresh: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(
            token, value, types.int64, types.int64, panel, panel.dtype, weight, out, types.int64, types.int64,
            types.boolean,
        )  # fmt: skip

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            token_type, value_type, _, _, panel_type, _, weight_type, out_type, _, _, _ = signature.args
            token, value, start, end, panel, coeff, weight, out, row, low, fresh = args
            strip = Strip(context, builder, panel_type.dtype, width_bytes)
            rows, weights = (
                Matrix(context, builder, kind, given) for kind, given in ((panel_type, panel), (weight_type, weight))
            )
            sums = sum_panel(context, builder, strip, (token_type, token), (value_type, value), start, end, rows)
            own = strip.load(weights.at(row, low), weights.short)
            factor = strip.splat(coeff)
            place = Matrix(context, builder, out_type, out).at(row, low)
            # A line that is written is read anyway, so that it costs nothing to read what is then not used.
            fresh = builder.icmp_unsigned("!=", fresh, ir.Constant(fresh.type, 0))
            results = [
                builder.fadd(builder.select(fresh, strip.zero(), before), strip.multiply_add(factor, each, summed))
                for before, each, summed in zip(strip.load(place), own, sums, strict=True)
            ]
            strip.store(results, place)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(gather_row)


GROUP = 32
"""Elements that `any_above` looks at."""


def _any_above(_: Any, matrix: Any, row: Any, column: Any, bound: Any) -> Any:
    """Say whether one of the `GROUP` elements from `matrix[row, column]` on is above the bound."""
    signature = types.boolean(matrix, types.int64, types.int64, matrix.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        matrix, row, column, bound = args
        dtype = signature.args[0].dtype
        strip = Strip(context, builder, dtype, GROUP * dtype.bitwidth // 8)
        limit = strip.splat(bound)
        above = None
        for part in strip.load(Matrix(context, builder, signature.args[0], matrix).at(row, column)):
            larger = builder.fcmp_ordered(">", part, limit)
            above = larger if above is None else builder.or_(above, larger)
        bits = builder.bitcast(above, ir.IntType(strip.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return signature, codegen


any_above: Any = intrinsic(_any_above)
