"""What an analysis found: arrays whose dims have names, with what stands along each dim."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weft.activations.v1 import messages_pb2
from weft_common.errors import FailedPreconditionError

Dims = tuple[str, ...]
Array = npt.NDArray[Any]


class Analysis(Mapping[str, Array]):
    """
    A mapping from a result's name to its NumPy array.

    Args:
        model: The model that ran.
        tokens: The prompt's tokens; of two prompts those of the one that was run again and again; empty without one.
        arrays: Dims and array of each result.
        coords: Dim and values of what stands along a dim.
        attrs: Numbers and words about the whole.

    >>> found = Analysis(messages_pb2.Model(), [], {"kl": (("depth", "position"), np.zeros((2, 3)))}, {})
    >>> found["kl"].shape, found.dims("kl")
    ((2, 3), ('depth', 'position'))
    """

    def __init__(
        self,
        model: messages_pb2.Model,
        tokens: Sequence[messages_pb2.Token],
        arrays: Mapping[str, tuple[Dims, Array]],
        coords: Mapping[str, tuple[str, Sequence[Any]]],
        attrs: Mapping[str, float | str] | None = None,
    ) -> None:
        self.model = model
        self.tokens = list(tokens)
        self.coords = {name: (dim, list(values)) for name, (dim, values) in coords.items()}
        self.attrs = dict(attrs or {})
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def dims(self, name: str) -> Dims:
        """The names of an array's dims, outermost first."""
        return self._arrays[name][0]

    def xarray(self) -> Any:
        """
        The same as an `xarray.Dataset`; xarray is imported now.

        Raises:
            FailedPreconditionError: The extra `arrays` is not installed.
        """
        try:
            dataset = importlib.import_module("xarray").Dataset
        except ModuleNotFoundError as error:
            raise FailedPreconditionError(f"datasets need the package {error.name}: install weft[arrays]") from error
        attrs = {"model": self.model.name, "model_revision": self.model.revision, **self.attrs}
        return dataset(self._arrays, coords=self.coords, attrs=attrs)


def texts(tokens: Sequence[messages_pb2.Token]) -> list[str]:
    """
    Their texts.

    >>> texts([messages_pb2.Token(id=3, text=" a")])
    [' a']
    """
    return [token.text for token in tokens]


def along(tokens: Sequence[messages_pb2.Token], positions: Sequence[int]) -> dict[str, tuple[str, Sequence[Any]]]:
    """Coordinates of chosen positions: their indices, and the tokens there."""
    chosen = [tokens[position].text for position in positions]
    return {"position": ("position", list(positions)), "token": ("position", chosen)}


def token_array(tokens: Sequence[messages_pb2.Token], shape: Sequence[int]) -> tuple[Array, Array]:
    """Ids and texts of tokens in row-major order."""
    ids = np.reshape(np.array([token.id for token in tokens], np.int64), shape)
    return ids, np.reshape(np.array(texts(tokens), dtype=np.str_), shape)
