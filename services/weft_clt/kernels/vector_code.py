"""
What the compiled sparse products are made of: vectors in registers, written as LLVM code.

Numba's own loops cannot say "keep this in registers". The pieces here emit loads, stores and sums of LLVM vectors,
which the compiler maps to whatever width the processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

__all__ = ["I32", "I64", "Matrix", "Strip", "count_up", "element", "is_short"]

I32, I64 = ir.IntType(32), ir.IntType(64)

_VECTOR_BYTES = 32


class Strip:
    """Emits code on a few neighbouring elements of a row: `count` vectors of `lanes` elements."""

    def __init__(self, context: Any, builder: Any, dtype: Any, width_bytes: int) -> None:
        self.builder = builder
        self.size = dtype.bitwidth // 8
        self.elements = max(1, width_bytes // self.size)
        self.lanes = min(self.elements, _VECTOR_BYTES // self.size)
        self.count = self.elements // self.lanes
        self.scalar = context.get_value_type(dtype)
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self._words = ir.VectorType(I32, self.lanes)
        self._singles = ir.VectorType(ir.FloatType(), self.lanes)
        self._suffix = f"v{self.lanes}f{dtype.bitwidth}"
        self._fmuladd = self._intrinsic("fmuladd", 3)
        self._sqrt = self._intrinsic("sqrt", 1)

    def _intrinsic(self, name: str, count: int) -> Any:
        function = ir.FunctionType(self.vector, [self.vector] * count)
        return cgutils.get_or_insert_function(self.builder.module, function, f"llvm.{name}.{self._suffix}")

    def _place(self, base: Any, part: int) -> Any:
        place = self.builder.gep(base, [ir.Constant(I64, part * self.lanes)])
        return self.builder.bitcast(place, self.vector.as_pointer())

    def load_part(self, base: Any, part: int) -> Any:
        """Load one vector of the strip that begins at a pointer."""
        loaded = self.builder.load(self._place(base, part))
        loaded.align = self.size
        return loaded

    def load(self, base: Any, short: bool = False) -> list[Any]:
        """Load the strip that begins at a pointer; `short` where it is kept as the bits of bfloat16."""
        return [(self.load_short if short else self.load_part)(base, part) for part in range(self.count)]

    def store_part(self, value: Any, base: Any, part: int) -> None:
        """Store one vector of the strip that begins at a pointer."""
        self.builder.store(value, self._place(base, part)).align = self.size

    def store(self, parts: list[Any], base: Any) -> None:
        """Store the strip at a pointer."""
        for part, value in enumerate(parts):
            self.store_part(value, base, part)

    def _short(self, base: Any, part: int) -> Any:
        place = self.builder.gep(base, [ir.Constant(I64, part * self.lanes)])
        return self.builder.bitcast(place, ir.VectorType(ir.IntType(16), self.lanes).as_pointer())

    def load_short(self, base: Any, part: int) -> Any:
        """Load one vector of a strip that is kept as the bits of bfloat16, int16."""
        loaded = self.builder.load(self._short(base, part))
        loaded.align = 2
        bits = self.builder.shl(self.builder.zext(loaded, self._words), self._word(16))
        wide = self.builder.bitcast(bits, self._singles)
        return wide if self.size == 4 else self.builder.fpext(wide, self.vector)

    def store_short(self, value: Any, base: Any, part: int, random: Any) -> None:
        """Store one vector as bfloat16, rounded up or down by 16 random bits; see `dithering`."""
        narrow = value if self.size == 4 else self.builder.fptrunc(value, self._singles)
        noise = self.builder.and_(random, self._word(0xFFFF))
        bits = self.builder.lshr(self.builder.add(self.builder.bitcast(narrow, self._words), noise), self._word(16))
        short = self.builder.trunc(bits, ir.VectorType(ir.IntType(16), self.lanes))
        self.builder.store(short, self._short(base, part)).align = 2

    def noise(self, place: Any, seed: Any, part: int) -> Any:
        """Emit 32 random bits a lane, from the place of the strip's first element in its tensor and the step."""
        builder, word = self.builder, self._words
        first = builder.add(place, ir.Constant(I64, part * self.lanes))
        mixed = builder.mul(builder.trunc(seed, I32), ir.Constant(I32, 0x9E3779B9))
        high = self.hashed(builder.add(builder.trunc(builder.lshr(first, ir.Constant(I64, 32)), I32), mixed))
        start = builder.insert_element(
            ir.Constant(word, ir.Undefined), builder.add(builder.trunc(first, I32), high), ir.Constant(I32, 0)
        )
        spread = builder.shuffle_vector(start, ir.Constant(word, ir.Undefined), _mask([0] * self.lanes))
        return self.hashed(builder.add(spread, ir.Constant(word, list(range(self.lanes)))))

    def hashed(self, word: Any) -> Any:
        """Mix a word of 32 bits, or one a lane."""

        def constant(number: int) -> Any:
            return ir.Constant(I32, number) if word.type == I32 else self._word(number)

        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            word = self.builder.mul(self.builder.xor(word, self.builder.lshr(word, constant(shift))), constant(factor))
        return self.builder.xor(word, self.builder.lshr(word, constant(16)))

    def _word(self, number: int) -> Any:
        return ir.Constant(self._words, [number] * self.lanes)

    def zero(self) -> Any:
        """Return a vector of zeros."""
        return ir.Constant(self.vector, [ir.Constant(self.scalar, 0.0)] * self.lanes)

    def splat(self, value: Any) -> Any:
        """Repeat a scalar in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, _mask([0] * self.lanes))

    def multiply_add(self, left: Any, right: Any, total: Any) -> Any:
        """Emit left * right + total, fused."""
        return self.builder.call(self._fmuladd, [left, right, total])

    def root(self, vector: Any) -> Any:
        """Emit the square root of every lane."""
        return self.builder.call(self._sqrt, [vector])

    def prefetch(self, base: Any, short: bool = False) -> None:
        """Ask for the cache lines of the strip that begins at a pointer; any address will do."""
        byte = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0"
        )
        place = self.builder.bitcast(base, byte)
        for offset in range(0, self.elements * (2 if short else self.size), 64):
            line = self.builder.gep(place, [ir.Constant(I64, offset)])
            self.builder.call(function, [line, ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)])

    def total(self, vector: Any) -> Any:
        """Sum the lanes, halving."""
        lanes = self.lanes
        while lanes > 1:
            lanes //= 2
            vector = self.builder.fadd(self._half(vector, lanes, 0), self._half(vector, lanes, lanes))
        return self.builder.extract_element(vector, ir.Constant(I32, 0))

    def _half(self, vector: Any, lanes: int, first: int) -> Any:
        undefined = ir.Constant(vector.type, ir.Undefined)
        return self.builder.shuffle_vector(vector, undefined, _mask(range(first, first + lanes)))

    def totals(self, vectors: list[Any]) -> list[Any]:
        """Sum the lanes of each of 4 vectors, all at once where they are wide enough."""
        if self.lanes < 4 or len(vectors) != 4:
            return [self.total(vector) for vector in vectors]
        lanes = self.lanes
        halves = vectors
        while lanes > 4:
            lanes //= 2
            halves = [self.builder.fadd(self._half(v, lanes, 0), self._half(v, lanes, lanes)) for v in halves]
        while len(halves) > 1:
            even, odd = _mask([0, 2, 4, 6]), _mask([1, 3, 5, 7])
            halves = [
                self.builder.fadd(
                    self.builder.shuffle_vector(left, right, even), self.builder.shuffle_vector(left, right, odd)
                )
                for left, right in zip(halves[::2], halves[1::2], strict=True)
            ]
        return [self.builder.extract_element(halves[0], ir.Constant(I32, lane)) for lane in range(4)]


def _mask(lanes: Any) -> ir.Constant:
    chosen = list(lanes)
    return ir.Constant(ir.VectorType(I32, len(chosen)), chosen)


class Matrix:
    """Emits pointers into a C-contiguous matrix; `short` where it is the bits of bfloat16, int16."""

    def __init__(self, context: Any, builder: Any, array_type: Any, value: Any) -> None:
        self.short = is_short(array_type)
        array = context.make_array(array_type)(context, builder, value)
        self._builder, self._data = builder, array.data
        self._width = cgutils.unpack_tuple(builder, array.shape)[1]

    def place(self, row: Any, column: Any) -> Any:
        """Count the elements before one."""
        return self._builder.add(self._builder.mul(row, self._width), column)

    def at(self, row: Any, column: Any) -> Any:
        """Point at an element."""
        return self._builder.gep(self._data, [self.place(row, column)])


def is_short(array_type: Any) -> bool:
    """Say whether an array is the bits of bfloat16."""
    return bool(array_type.dtype.bitwidth == 16)


def element(builder: Any, context: Any, array_type: Any, value: Any, index: Any) -> Any:
    """Point at an element of a contiguous vector."""
    return builder.gep(context.make_array(array_type)(context, builder, value).data, [index])


def count_up(
    builder: Any, start: Any, end: Any, stride: int, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> tuple[Any, list[Any]]:
    """
    Emit a loop over whole strides from `start` on while a stride fits before `end`.

    Args:
        carried: Values before the first turn.
        body: Emits one turn for an index and the carried values, and returns their successors; no branches in it.

    Returns:
        The first index that was not reached, and the carried values after the last turn.
    """
    before, turn, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    step = ir.Constant(I64, stride)
    builder.cbranch(builder.icmp_signed("<=", builder.add(start, step), end), turn, after)

    builder.position_at_end(turn)
    index = builder.phi(I64)
    inside = [builder.phi(value.type) for value in carried]
    results = body(index, list(inside))
    following = builder.add(index, step)
    again = builder.icmp_signed("<=", builder.add(following, step), end)
    for phi, first, later in zip([index, *inside], [start, *carried], [following, *results], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, turn)
    builder.cbranch(again, turn, after)

    builder.position_at_end(after)
    outside = [builder.phi(value.type) for value in (start, *carried)]
    for phi, first, later in zip(outside, [start, *carried], [following, *results], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, turn)
    return outside[0], outside[1:]
