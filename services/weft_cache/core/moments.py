"""Statistics of shards: whether they can be true, and how they are written as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from weft_common.errors import DataLossError, InvalidArgumentError
from weft_store.shard import STREAMS, LayerStatistics, StreamStatistics


def check(statistics: Sequence[LayerStatistics], *, num_layers: int, d_model: int, num_tokens: int) -> None:
    """
    Refuse statistics that do not fit the shard that they come with.

    Raises:
        InvalidArgumentError: layers, channels or tokens disagree, or a figure is negative or not finite.
    """
    layers = [each.layer for each in statistics]
    if layers != list(range(num_layers)):
        raise InvalidArgumentError(
            f"shard.statistics has layers {_short(layers)}, expected 0 to {num_layers - 1} in order",
            field="shard.statistics",
        )
    for layer in statistics:
        for name in STREAMS:
            _check_stream(f"layer {layer.layer}, {name}", getattr(layer, name), d_model, num_tokens)


def _check_stream(where: str, stream: StreamStatistics, d_model: int, num_tokens: int) -> None:
    if stream.num_tokens != num_tokens:
        raise InvalidArgumentError(
            f"shard.statistics of {where} counts {stream.num_tokens} tokens, the shard has {num_tokens}",
            field="shard.statistics",
        )
    if len(stream.mean) != d_model:
        raise InvalidArgumentError(
            f"shard.statistics of {where} has a mean of {len(stream.mean)} channels, the dataset has d_model {d_model}",
            field="shard.statistics",
        )
    figures = [getattr(stream, each.name) for each in fields(stream) if each.name != "mean"]
    if not all(math.isfinite(figure) and figure >= 0 for figure in figures) or not all(map(math.isfinite, stream.mean)):
        raise InvalidArgumentError(
            f"shard.statistics of {where} has a figure that is negative or not finite; look for NaN in the activations",
            field="shard.statistics",
        )


def to_json(statistics: Sequence[LayerStatistics]) -> list[dict[str, Any]]:
    """Plain values; floats keep every bit."""
    return [
        {"layer": layer.layer, "input": _plain(layer.input), "output": _plain(layer.output)} for layer in statistics
    ]


def _plain(stream: StreamStatistics) -> dict[str, Any]:
    # `asdict` would copy each of the mean's thousands of numbers by itself.
    figures = {each.name: getattr(stream, each.name) for each in fields(stream)}
    return {**figures, "mean": list(map(float, stream.mean))}


def from_json(layers: Sequence[Mapping[str, Any]]) -> list[LayerStatistics]:
    """
    The inverse of `to_json`.

    Raises:
        DataLossError: these are not statistics.
    """
    try:
        return [LayerStatistics(each["layer"], _stream(each["input"]), _stream(each["output"])) for each in layers]
    except (TypeError, KeyError) as error:
        raise DataLossError(f"statistics in the bucket are damaged: {error!r}; delete the dataset") from error


def _stream(data: Mapping[str, Any]) -> StreamStatistics:
    return StreamStatistics(**{**data, "mean": tuple(data["mean"])})


def _short(layers: Sequence[int]) -> str:
    return str(list(layers)) if len(layers) <= 8 else f"{list(layers[:8])} and {len(layers) - 8} more"
