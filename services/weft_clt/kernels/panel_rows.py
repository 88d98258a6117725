"""
The sparse products of a step, and the update that one of them ends in, for one feature and one strip of columns.

A panel holds a strip of columns of all tokens, one token after the other, so that it stays in the second-level cache
and its rows share no cache set by accident. A feature's entries (token, value) pick rows of the panel; the feature's
own strip, of a weight or a gradient, stays in registers. What is read from the panel is multiplied and added at once.
Sums within a strip are fused (fmuladd). Indices are int32 and not negative.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from weft_clt.kernels.vector_code import I64, Matrix, Strip, count_up, element

__all__ = [
    "GROUP",
    "any_above",
    "make_adam_row",
    "make_add_row",
    "make_dot_rows",
    "make_gather_row",
    "make_miss_strip",
    "make_move_strip",
]

_AHEAD = 8  # features; far enough ahead that a strip of a weight has come from memory when it is needed


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
            held = strip.load(weights.at(row, low))
            strip.prefetch(weights.at(builder.add(row, ir.Constant(I64, _AHEAD)), low))

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
            held = strip.load(weights.at(row, low))
            strip.prefetch(weights.at(builder.add(row, ir.Constant(I64, _AHEAD)), low))

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


def _sum_panel(
    context: Any, builder: Any, strip: Strip, token: tuple[Any, Any], value: tuple[Any, Any], start: Any, end: Any,
    rows: Matrix,
) -> list[Any]:  # fmt: skip
    """Emit the sum of value[n] * panel[token[n]] over start <= n < end."""

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
    """Make: out[row, strip] += coeff * weight[row, strip] + sum of value[n] * panel[token[n]] for start <= n < end."""

    def gather_row(
        _: Any, token: Any, value: Any, start: Any, end: Any, panel: Any, coeff: Any, weight: Any, out: Any, row: Any,
        low: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(
            token, value, types.int64, types.int64, panel, panel.dtype, weight, out, types.int64, types.int64
        )

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            token_type, value_type, _, _, panel_type, _, weight_type, out_type, _, _ = signature.args
            token, value, start, end, panel, coeff, weight, out, row, low = args
            strip = Strip(context, builder, panel_type.dtype, width_bytes)
            rows = Matrix(context, builder, panel_type, panel)
            sums = _sum_panel(context, builder, strip, (token_type, token), (value_type, value), start, end, rows)
            own = strip.load(Matrix(context, builder, weight_type, weight).at(row, low))
            factor = strip.splat(coeff)
            place = Matrix(context, builder, out_type, out).at(row, low)
            results = [
                builder.fadd(before, strip.multiply_add(factor, each, summed))
                for before, each, summed in zip(strip.load(place), own, sums, strict=True)
            ]
            strip.store(results, place)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(gather_row)


def make_adam_row(width_bytes: int, first_moment: bool) -> Any:
    """
    Make one Adam update of weight[row, strip] by the gradient coeff * weight[row] + sum of value[n] * panel[token[n]].

    `scalars` are those of `loops.adam_loop`, in its order. Without a first moment, `first` is not touched. Moments may
    be the bits of bfloat16, int16 (`dithering`); `before` is how many elements of the tensor come before row 0.
    """

    def adam_row(
        _: Any, token: Any, value: Any, start: Any, end: Any, panel: Any, coeff: Any, weight: Any, first: Any,
        second: Any, row: Any, low: Any, scalars: Any, before: Any, seed: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(
            token, value, types.int64, types.int64, panel, panel.dtype, weight, first, second, types.int64,
            types.int64, scalars, types.int64, types.int64,
        )  # fmt: skip

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            token_type, value_type, _, _, panel_type, _, weight_type, first_type, second_type = signature.args[:9]
            scalars_type = signature.args[11]
            token, value, start, end, panel, coeff, weight, first, second, row, low, scalars, before, seed = args
            strip = Strip(context, builder, panel_type.dtype, width_bytes)
            rows = Matrix(context, builder, panel_type, panel)
            states = [
                Matrix(context, builder, kind, given)
                for kind, given in ((weight_type, weight), (second_type, second), (first_type, first))[
                    : 3 if first_moment else 2
                ]
            ]
            ahead = builder.add(row, ir.Constant(I64, _AHEAD))
            for state in states:
                strip.prefetch(state.at(ahead, low))

            sums = _sum_panel(context, builder, strip, (token_type, token), (value_type, value), start, end, rows)
            scale, beta1, beta2, rest1, rest2, rate, root, epsilon = (
                strip.splat(_at(context, builder, scalars_type, scalars, ir.Constant(I64, place))) for place in range(8)
            )
            factor = strip.splat(coeff)
            places = [state.at(row, low) for state in states]
            short = second_type.dtype.bitwidth == 16
            load_moment = strip.load_short if short else strip.load_part
            news: list[list[Any]] = [[] for _ in states]
            for part, summed in enumerate(sums):
                own = strip.load_part(places[0], part)
                raw = strip.multiply_add(factor, own, summed)
                grad = builder.fmul(raw, scale)
                variance = builder.fmul(load_moment(places[1], part), beta2)
                variance = strip.multiply_add(builder.fmul(grad, grad), rest2, variance)
                moment = grad
                if first_moment:
                    moment = builder.fmul(load_moment(places[2], part), beta1)
                    moment = strip.multiply_add(grad, rest1, moment)
                spread = strip.multiply_add(strip.root(variance), root, epsilon)
                step = builder.fdiv(builder.fmul(rate, moment), spread)
                news[0].append(builder.fsub(own, step))
                news[1].append(variance)
                if first_moment:
                    news[2].append(moment)
            if not short:
                for parts, place in zip(news, places, strict=True):
                    strip.store(parts, place)
                return context.get_dummy_value()
            strip.store(news[0], places[0])
            place = builder.add(before, states[0].place(row, low))
            for part in range(strip.count):
                noise = strip.noise(place, seed, part)
                upper = builder.lshr(noise, ir.Constant(noise.type, [16] * strip.lanes))
                strip.store_short(news[1][part], places[1], part, upper)
                if first_moment:
                    strip.store_short(news[2][part], places[2], part, strip.hashed(noise))
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(adam_row)


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
