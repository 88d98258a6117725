"""
The codec `uniform`: mean removed, one step a layer and stream, entropy coded.

A uniform quantiser followed by an entropy coder is, at a given error, within a quarter of a bit of any other code that
takes values one by one.
The step is found so that the error really made is the wanted fraction of the variance. Channels are stored in the order
of their spread, in groups that have an entropy code each: channels of one spread have one distribution.
Shapes: T tokens of a shard or of a block, D d_model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import InvalidArgumentError
from weft_store.shard.planes import PlaneReader, pack_plane

_TOLERANCE = 0.01
_ACCEPTED = 0.02
_MIN_STEP = float(np.finfo(np.float32).tiny)
_SAMPLED_TOKENS = 256
_CHUNK_TOKENS = 256
_ATTEMPTS = 24


@dataclass(frozen=True, slots=True)
class Quantised:
    """One stream of one layer: codes in zigzag (0, -1, 1, -2 are 0, 1, 2, 3), channels in the stored order."""

    step: np.float32
    mean_D: NDArray[np.float32]
    order_D: NDArray[np.uint16]
    codes_TD: NDArray[np.uint32]
    sum_squared_error: float


def quantise(
    values_TD: NDArray[np.float32],
    mean_D: NDArray[np.float64],
    squared_deviation_D: NDArray[np.float64],
    target_fvu: float,
    what: str,
) -> Quantised:
    """
    Find the step for a wanted FVU, and the codes.

    Args:
        values_TD: Finite values.
        mean_D: Their mean over tokens.
        squared_deviation_D: Sum over tokens of the squared deviation from it.
        target_fvu: Wanted ratio of squared error to squared deviation.
        what: The layer and stream, for errors.

    Raises:
        InvalidArgumentError: No step reaches that FVU within 2 %: the values vary too little or too much for float32.
    """
    order = np.argsort(squared_deviation_D, kind="stable")
    total = float(squared_deviation_D.sum())
    mean = mean_D.astype(np.float32)
    values = np.ascontiguousarray(values_TD[:, order])
    ordered_mean = mean[order]
    step = np.float32(1.0)
    if total > 0:
        step = _first_step(values, ordered_mean, total, target_fvu)
    codes, error = _apply(values, ordered_mean, step, what)
    below: tuple[np.float32, NDArray[np.uint32], float] | None = None
    low, high = 0.0, np.inf
    for _ in range(_ATTEMPTS):
        ratio = error / (target_fvu * total) if total > 0 else 1.0
        if ratio <= 1 + _ACCEPTED and (below is None or error > below[2]):
            below = (step, codes, error)
        if abs(ratio - 1) <= _TOLERANCE:
            break
        low, high = (float(step), high) if ratio < 1 else (low, float(step))
        following = _next_step(float(step), ratio, low, high)
        if following == step:
            break
        step = following
        codes, error = _apply(values, ordered_mean, step, what)
    if below is None:
        raise InvalidArgumentError(
            f"{what} cannot be coded with a fraction of variance unexplained of {target_fvu}: its values vary too "
            "little beside their mean, or too little at all, for float32. Use the codec 'bf16'.",
            field="target_fvu",
        )
    return Quantised(below[0], mean, order.astype(np.uint16), below[1], below[2])


def encode_uniform(codes_TD: NDArray[np.uint32], group_channels: int) -> bytes:
    """Write a block: for each group of channels the number of its planes, then the planes, lowest byte first."""
    parts = []
    for start in range(0, codes_TD.shape[1], group_channels):
        group = np.ascontiguousarray(codes_TD[:, start : start + group_channels])
        num_planes = max(1, (int(group.max()).bit_length() + 7) // 8)
        parts.append(bytes([num_planes]))
        parts.extend(pack_plane((group >> (8 * plane)).astype(np.uint8)) for plane in range(num_planes))
    return b"".join(parts)


def decode_uniform_codes(
    payload: bytes | memoryview, num_tokens: int, order_D: NDArray[np.uint16], group_channels: int, key: str
) -> NDArray[np.signedinteger[Any]]:
    """Read a block's codes, [T, D] in the order of channels, as the narrowest of int8, int16, int32. DataLossError."""
    reader = PlaneReader(payload, key)
    d_model = len(order_D)
    groups: list[NDArray[np.signedinteger[Any]]] = []
    for start in range(0, d_model, group_channels):
        shape = (num_tokens, min(group_channels, d_model - start))
        num_planes = reader.byte()
        if not 1 <= num_planes <= 4:
            raise reader.fault(f"a group of channels has {num_planes} planes")
        zigzag: NDArray[np.unsignedinteger[Any]] = reader.plane(shape[0] * shape[1])
        if num_planes > 1:
            zigzag = zigzag.astype(np.uint16 if num_planes == 2 else np.uint32)
            for shift in range(8, 8 * num_planes, 8):
                zigzag |= reader.plane(zigzag.size).astype(zigzag.dtype) << zigzag.dtype.type(shift)
        groups.append(_unzigzag(zigzag).reshape(shape))
    reader.end()
    codes = np.empty((num_tokens, d_model), max((group.dtype for group in groups), key=lambda kind: kind.itemsize))
    np.concatenate(groups, axis=1, out=codes)
    inverse = np.empty(d_model, np.intp)
    inverse[order_D] = np.arange(d_model)
    return codes.take(inverse, axis=1)


def entropy_bits(codes: NDArray[np.uint32]) -> float:
    """Empirical entropy of codes, in bits a value, under one distribution."""
    if codes.size == 0:
        return 0.0
    if int(codes.max()) < 1 << 20:
        counts = np.bincount(codes.ravel())
        counts = counts[counts > 0]
    else:
        counts = np.unique(codes, return_counts=True)[1]
    shares = counts / codes.size
    return float(abs((shares * np.log2(shares)).sum()))


def _zigzag(codes: NDArray[np.int32]) -> NDArray[np.uint32]:
    return ((codes << 1) ^ (codes >> 31)).view(np.uint32)


def _unzigzag(zigzag: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.signedinteger[Any]]:
    """Give the signed codes, of the same width."""
    signed = np.dtype(f"i{zigzag.dtype.itemsize}")
    one = zigzag.dtype.type(1)
    codes: NDArray[np.signedinteger[Any]] = (zigzag >> one).view(signed)
    codes ^= -(zigzag & one).view(signed)
    return codes


def _first_step(values: NDArray[np.float32], mean: NDArray[np.float32], total: float, target_fvu: float) -> np.float32:
    """Find a step on the largest tokens, whose error may be all there is, and an even sample of the others."""
    num_tokens = len(values)
    step = np.sqrt(12 * target_fvu * total / values.size)
    sample, weights = values, np.ones(num_tokens)
    if num_tokens > 2 * _SAMPLED_TOKENS:
        deviation = np.einsum("td,td->t", values - mean, values - mean, dtype=np.float64)
        by_size = np.argsort(deviation, kind="stable")
        largest, others = by_size[-_SAMPLED_TOKENS // 4 :], by_size[: -_SAMPLED_TOKENS // 4]
        even = others[:: max(1, len(others) // _SAMPLED_TOKENS)]
        sample = values[np.concatenate([largest, even])]
        weights = np.concatenate([np.ones(len(largest)), np.full(len(even), len(others) / len(even))])
    low, high = 0.0, np.inf
    for _ in range(_ATTEMPTS):
        with np.errstate(over="ignore", invalid="ignore"):
            deviations = sample - mean
            scale = np.float32(max(step, _MIN_STEP))
            errors = (deviations - np.rint(deviations / scale) * scale).astype(np.float64)
        ratio = float(np.einsum("td,td->t", errors, errors) @ weights) / (target_fvu * total)
        if abs(ratio - 1) < _TOLERANCE / 5:
            break
        low, high = (step, high) if ratio < 1 else (low, step)
        step = float(_next_step(step, ratio, low, high))
    return np.float32(max(step, _MIN_STEP))


def _next_step(step: float, ratio: float, low: float, high: float) -> np.float32:
    """Go where the square law points, or halve the interval where that leads out of it."""
    following = step * min(8.0, max(0.125, ratio**-0.5)) if ratio > 0 else step * 8
    if not low < following < high:
        following = np.sqrt(low * high) if low > 0 and np.isfinite(high) else step * (0.5 if ratio > 1 else 2.0)
    return np.float32(max(following, _MIN_STEP))


def _apply(
    values: NDArray[np.float32], mean: NDArray[np.float32], step: np.float32, what: str
) -> tuple[NDArray[np.uint32], float]:
    """Quantise, and measure the error of exactly what a reader will decode."""
    codes = np.empty(values.shape, np.uint32)
    error = 0.0
    for start in range(0, len(values), _CHUNK_TOKENS):
        chunk = values[start : start + _CHUNK_TOKENS]
        scaled = chunk - mean
        scaled /= step
        np.rint(scaled, out=scaled)
        if scaled.size and max(float(scaled.max()), -float(scaled.min())) >= 2.0**31 - 128:
            raise InvalidArgumentError(
                f"{what} has values of more than 2**31 steps: ask for a larger target_fvu, or for 'bf16'.",
                field="target_fvu",
            )
        codes[start : start + _CHUNK_TOKENS] = _zigzag(scaled.astype(np.int32))
        scaled *= step
        scaled += mean
        difference = np.subtract(scaled, chunk, dtype=np.float64)
        # einsum, since a dot product would wake BLAS's own threads.
        error += float(np.einsum("td,td->", difference, difference))
    return codes, error
