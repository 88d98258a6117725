"""What a forward pass gave: tensors by hook, with the prompt's tokens."""

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weft.activations.v1 import components_pb2, messages_pb2
from weft_common.errors import FailedPreconditionError

_LAYER = re.compile(r"(layers|blocks)\.[0-9]+\.")
_DIMS: Mapping[int, str] = {
    components_pb2.DIM_POSITION: "position",
    components_pb2.DIM_MODEL: "model",
    components_pb2.DIM_HEAD: "head",
    components_pb2.DIM_KV_HEAD: "kv_head",
    components_pb2.DIM_HEAD_WIDTH: "head_width",
    components_pb2.DIM_MLP: "neuron",
    components_pb2.DIM_VOCABULARY: "vocabulary",
    components_pb2.DIM_FRAME: "frame",
    components_pb2.DIM_STEP: "step",
    components_pb2.DIM_MEL_BIN: "mel_bin",
}
# A model of speech has two stacks, whose heads and neurons are not as many.
_OF_A_STACK = ("head", "kv_head", "head_width", "neuron")
_SOURCES = {"position": "source", "frame": "source_frame"}


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

    def dims(self, hook: str) -> tuple[str, ...]:
        """
        The names of a hook's dims, outermost first; what attention looks at is `source`, of frames `source_frame`.

        Raises:
            FailedPreconditionError: The service told no components of its model.
        """
        pattern = _LAYER.sub(r"\1.*.", hook)
        component = next((each for each in self.model.components if pattern in (each.name, each.lens_name)), None)
        if component is None:
            raise FailedPreconditionError(
                f"the service did not tell the dims of {hook}; bring client and service to the same version"
            )
        names = [_DIMS[dim] for dim in component.dims]
        if component.name.startswith("encoder."):
            names = [f"encoder_{name}" if name in _OF_A_STACK else name for name in names]
        return tuple(_SOURCES[name] if name in names[:index] else name for index, name in enumerate(names))

    def xarray(self) -> Any:
        """
        The same as an `xarray.Dataset`, tokens along positions and seconds along frames; xarray is imported now.

        Raises:
            FailedPreconditionError: The extra `arrays` is not installed.
        """
        try:
            dataset = importlib.import_module("xarray").Dataset
        except ModuleNotFoundError as error:
            raise FailedPreconditionError(f"datasets need the package {error.name}: install weft[arrays]") from error
        arrays = {hook: (self.dims(hook), array) for hook, array in self._arrays.items()}
        coords: dict[str, Any] = {}
        used = {dim for dims, _ in arrays.values() for dim in dims}
        if "position" in used:
            coords["token"] = ("position", [token.text for token in self.tokens])
        speech = self.model.speech
        for dim, size in (("frame", speech.num_frames), ("step", speech.num_steps)):
            if dim in used:
                length_s = speech.max_samples / speech.sampling_rate
                coords[f"{dim}_s"] = (dim, np.arange(size) * length_s / size)
        return dataset(arrays, coords=coords, attrs={"model": self.model.name, "model_revision": self.model.revision})

    def torch(self) -> dict[str, Any]:
        """The same as torch tensors, which share memory with the arrays; torch is imported now."""
        from_numpy = importlib.import_module("torch").from_numpy
        return {hook: from_numpy(array) for hook, array in self._arrays.items()}
