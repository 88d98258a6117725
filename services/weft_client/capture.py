"""What a forward pass gave: tensors by hook, with the prompt's tokens."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weft.activations.v1 import messages_pb2


class Capture(Mapping[str, npt.NDArray[Any]]):
    """
    A mapping from hook, layer index included, to a NumPy array; in the order that was asked for.

    Args:
        model: The model that ran.
        tokens: The prompt's tokens.
        arrays: One array a hook.

    >>> Capture(messages_pb2.Model(), [], {"embed": np.zeros((2, 3))})["embed"].shape
    (2, 3)
    """

    def __init__(
        self,
        model: messages_pb2.Model,
        tokens: Sequence[messages_pb2.Token],
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        self.model = model
        self.tokens = list(tokens)
        self._arrays = dict(arrays)

    def __getitem__(self, hook: str) -> npt.NDArray[Any]:
        return self._arrays[hook]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def stacked(self, hook: str) -> npt.NDArray[Any]:
        """
        One hook of all layers, stacked: `stacked("mlp_in")` is [L, P, d_model].

        Raises:
            KeyError: a layer of it was not captured.
        """
        return np.stack([self._arrays[f"layers.{layer}.{hook}"] for layer in range(self.model.num_layers)])

    def torch(self) -> dict[str, Any]:
        """The same as torch tensors, which share memory with the arrays; torch is imported now."""
        from_numpy = importlib.import_module("torch").from_numpy
        return {hook: from_numpy(array) for hook, array in self._arrays.items()}
