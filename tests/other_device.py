"""
A device that no machine has: its tensors lie on the host, but say otherwise.

What would fail on a GPU fails here: tensors of both in one operation, NumPy on what is not the host's, a list of it.
What would make the host wait for a GPU is counted. Operations themselves are the host's, so results are the same to the
bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["DEVICE", "Elsewhere", "OtherDevice", "other_device"]

DEVICE = torch.device("meta")
"""Of the kinds that torch knows, the one that computes nothing, so that whatever is not taken over here fails."""

_CROSSING = {"aten::copy_", "aten::_to_copy"}
_WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount", "aten::equal"}
"""Operations whose outcome, or its size, the host needs at once."""


class Elsewhere(torch.Tensor):
    """A tensor of that device; `held` is where its numbers are."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def bare(value: Any) -> Any:
    """What a tensor of the device holds; anything else as it is."""
    return value.held if isinstance(value, Elsewhere) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the host, for tensors of one device or of the other."""
    name = func._schema.name
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    there = len(tensors) > sum(not isinstance(each, Elsewhere) for each in tensors)
    if there and here and name not in _CROSSING:
        raise AssertionError(f"{name} was given tensors of two devices: {[tuple(each.shape) for each in here]}")
    wanted = kwargs.get("device")
    inner = {key: tree_map(bare, value) for key, value in kwargs.items()}
    if wanted is not None:
        inner["device"] = torch.device("cpu")
        there = torch.device(wanted).type == DEVICE.type
    out = func(*tree_map(bare, args), **inner)
    if "out" in kwargs:
        return kwargs["out"]
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    return tree_map(lambda each: Elsewhere(each) if isinstance(each, Tensor) and there else each, out)


@dataclass(eq=False)
class OtherDevice(TorchDispatchMode):
    """While it is entered, the device can be had; counts the operations that the host waits for."""

    waits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        flat = tree_flatten((args, kwargs or {}))[0]
        if any(isinstance(each, Elsewhere) for each in flat):
            masked = name == "aten::index" and any(
                isinstance(each, Tensor) and each.dtype is torch.bool for each in tree_flatten(args[1])[0]
            )
            fetched = name == "aten::_to_copy" and str((kwargs or {}).get("device")) == "cpu"
            if name in _WAITING or masked or fetched:
                self.waits.append(name)
        return _run(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[OtherDevice]:
    """Enter it, without gradients, which the step writes by hand."""
    with torch.no_grad(), OtherDevice() as mode:
        yield mode


def interpreted_elsewhere(launch: Callable[..., Any]) -> Callable[..., Any]:
    """A launch of Triton's interpreter that is given what tensors of the device hold."""

    def unwrapped(executor: Any, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            # An address of the host would be no address there.
            assert not isinstance(value, Tensor) or isinstance(value, Elsewhere), "a kernel was given the host's tensor"
        return launch(executor, *map(bare, args), **{key: bare(value) for key, value in kwargs.items()})

    return unwrapped
