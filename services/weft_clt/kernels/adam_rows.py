"""
Adam's update of one strip while it is in registers: of a decoder row, whose gradient is summed there, or of any tensor.

What is kept as the bits of bfloat16, int16, is widened where it is loaded and rounded at random where it is stored; the
noise, and which bits of it are whose, is that of `dithering`.
Indices are int32 and not negative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from weft_clt.kernels.panel_rows import AHEAD, sum_panel
from weft_clt.kernels.vector_code import I64, Matrix, Strip, element, is_short

__all__ = ["make_adam_row", "make_adam_strip"]

_State = tuple[Any, bool]
"""Where a strip of the parameter, the second moment or the first begins, and whether it is short."""


def _update(
    strip: Strip, states: list[_State], gradient: Callable[[int, Any], Any], scalars: list[Any], place: Any, seed: Any
) -> None:
    """
    Emit the update; parameters and moments are stored when all of them are computed.

    Args:
        states: Of the parameter, the second moment and, where there is one, the first.
        gradient: Emits one vector of the gradient, before clipping, from the parameter's.
        scalars: Those of `loops.adam_loop`, in its order, in every lane.
        place: Elements of the tensor before the strip.
    """
    builder = strip.builder
    scale, beta1, beta2, rest1, rest2, rate, root, epsilon = scalars

    def load(state: int, part: int) -> Any:
        base, short = states[state]
        return (strip.load_short if short else strip.load_part)(base, part)

    news: list[list[Any]] = []
    for part in range(strip.count):
        own = load(0, part)
        grad = builder.fmul(gradient(part, own), scale)
        variance = builder.fmul(load(1, part), beta2)
        variance = strip.multiply_add(builder.fmul(grad, grad), rest2, variance)
        moment = grad
        if len(states) > 2:
            moment = builder.fmul(load(2, part), beta1)
            moment = strip.multiply_add(grad, rest1, moment)
        spread = strip.multiply_add(strip.root(variance), root, epsilon)
        step = builder.fdiv(builder.fmul(rate, moment), spread)
        news.append([builder.fsub(own, step), variance, moment])
    for part, values in enumerate(news):
        randoms: list[Any] = []
        if any(short for _, short in states):
            noise = strip.noise(place, seed, part)
            upper = builder.lshr(noise, ir.Constant(noise.type, [16] * strip.lanes))
            randoms = [noise, upper, strip.hashed(noise)]
        for state, (base, short) in enumerate(states):
            if short:
                strip.store_short(values[state], base, part, randoms[state])
            else:
                strip.store_part(values[state], base, part)


def _scalars(context: Any, builder: Any, strip: Strip, kind: Any, given: Any) -> list[Any]:
    places = (element(builder, context, kind, given, ir.Constant(I64, place)) for place in range(8))
    return [strip.splat(builder.load(place)) for place in places]


def make_adam_row(width_bytes: int, first_moment: bool) -> Any:
    """
    Make one Adam update of weight[row, strip] by the gradient coeff * weight[row] + sum of value[n] * panel[token[n]].

    `scalars` are those of `loops.adam_loop`, in its order. Without a first moment, `first` is not touched. `before` is
    how many elements of the tensor come before row 0.
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
            token, value, start, end, panel, coeff, weight, first, second, row, low, scalars, before, seed = args
            strip = Strip(context, builder, panel_type.dtype, width_bytes)
            rows = Matrix(context, builder, panel_type, panel)
            given = [(weight_type, weight), (second_type, second), (first_type, first)]
            states = [Matrix(context, builder, *each) for each in given[: 3 if first_moment else 2]]
            ahead = builder.add(row, ir.Constant(I64, AHEAD))
            for state in states:
                strip.prefetch(state.at(ahead, low), state.short)
            sums = sum_panel(context, builder, strip, (token_type, token), (value_type, value), start, end, rows)
            factor = strip.splat(coeff)
            _update(
                strip,
                [(state.at(row, low), state.short) for state in states],
                lambda part, own: strip.multiply_add(factor, own, sums[part]),
                _scalars(context, builder, strip, signature.args[11], scalars),
                builder.add(before, states[0].place(row, low)),
                seed,
            )
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(adam_row)


def make_adam_strip(width_bytes: int, first_moment: bool) -> Any:
    """
    Make one Adam update of the strip of a flat tensor that begins at `index`, by a gradient that is in memory.

    The other arguments are those of `make_adam_row`.
    """

    def adam_strip(
        _: Any, param: Any, grad: Any, first: Any, second: Any, index: Any, scalars: Any, before: Any, seed: Any
    ) -> Any:
        signature = types.void(param, grad, first, second, types.int64, scalars, types.int64, types.int64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            param_type, grad_type, first_type, second_type, _, scalars_type, _, _ = signature.args
            param, grad, first, second, index, scalars, before, seed = args
            strip = Strip(context, builder, grad_type.dtype, width_bytes)
            given = [(param_type, param), (second_type, second), (first_type, first)]
            grads = element(builder, context, grad_type, grad, index)
            _update(
                strip,
                [
                    (element(builder, context, kind, array, index), is_short(kind))
                    for kind, array in given[: 3 if first_moment else 2]
                ],
                lambda part, _: strip.load_part(grads, part),
                _scalars(context, builder, strip, scalars_type, scalars),
                builder.add(before, index),
                seed,
            )
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(adam_strip)
