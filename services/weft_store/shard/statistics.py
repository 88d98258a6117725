"""
Moments of a shard's streams, layer by layer, and their exact merge.

Everything is float64. Two parts merge by Chan, Golub and LeVeque 1979: means weighted by tokens, squared deviations
added with a term for the distance of the means.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weft_common.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """
    Moments of one stream at one layer; the fields of `weft.cache.v1.StreamStatistics`.

    Attributes:
        num_tokens: Tokens that were counted.
        mean_norm: Mean over tokens of the Euclidean norm, in the model's own units.
        mean: Mean over tokens, by channel.
        sum_squared_deviation: Sum over tokens and channels of the squared deviation from `mean`.
        sum_squared_error: Sum over tokens and channels of the squared error that the codec made.
        size_bytes: Bytes of this stream's blocks.
        entropy_bits: Empirical entropy of the codes, bits a value, under one distribution for the stream; 0 for bf16.
    """

    num_tokens: int
    mean_norm: float
    mean: tuple[float, ...]
    sum_squared_deviation: float
    sum_squared_error: float
    size_bytes: int
    entropy_bits: float

    @property
    def fvu(self) -> float:
        """Fraction of variance that the codec lost; 0 where there is no variance and no error."""
        if self.sum_squared_deviation > 0:
            return self.sum_squared_error / self.sum_squared_deviation
        return 0.0 if self.sum_squared_error == 0 else float("inf")


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Moments of one layer's input and output; the fields of `weft.cache.v1.LayerStatistics`."""

    layer: int
    input: StreamStatistics
    output: StreamStatistics


def merge_statistics(parts: Sequence[Sequence[LayerStatistics]]) -> list[LayerStatistics]:
    """
    Give the statistics of all tokens together from those of the parts, each a list over layers.

    Moments, errors and sizes are exact up to float64's rounding; the entropy is the mean over tokens, because the
    distributions of the codes are not kept.

    Raises:
        InvalidArgumentError: The parts have different layers or widths.
    """
    if not parts:
        return []
    layers = [entry.layer for entry in parts[0]]
    for part in parts:
        if [entry.layer for entry in part] != layers:
            raise InvalidArgumentError(
                f"cannot merge statistics of layers {[entry.layer for entry in part]} with those of {layers}: "
                "expected the same layers in the same order.",
                field="statistics",
            )
    return [
        LayerStatistics(
            layer,
            _merge_streams([part[at].input for part in parts]),
            _merge_streams([part[at].output for part in parts]),
        )
        for at, layer in enumerate(layers)
    ]


def _merge_streams(parts: Sequence[StreamStatistics]) -> StreamStatistics:
    merged = parts[0]
    for part in parts[1:]:
        merged = _merge_pair(merged, part)
    return merged


def _merge_pair(left: StreamStatistics, right: StreamStatistics) -> StreamStatistics:
    size_bytes = left.size_bytes + right.size_bytes
    if left.num_tokens == 0 or right.num_tokens == 0:
        return replace(right if left.num_tokens == 0 else left, size_bytes=size_bytes)
    if len(left.mean) != len(right.mean):
        raise InvalidArgumentError(
            f"cannot merge {len(left.mean)} channels with those of {len(right.mean)}: expected one width.",
            field="statistics",
        )
    num_tokens = left.num_tokens + right.num_tokens
    share = right.num_tokens / num_tokens
    mean = np.array(left.mean)
    distance = np.array(right.mean) - mean
    return StreamStatistics(
        num_tokens=num_tokens,
        mean_norm=left.mean_norm + share * (right.mean_norm - left.mean_norm),
        mean=tuple((mean + share * distance).tolist()),
        sum_squared_deviation=left.sum_squared_deviation
        + right.sum_squared_deviation
        + left.num_tokens * share * float(distance @ distance),
        sum_squared_error=left.sum_squared_error + right.sum_squared_error,
        size_bytes=size_bytes,
        entropy_bits=left.entropy_bits + share * (right.entropy_bits - left.entropy_bits),
    )
