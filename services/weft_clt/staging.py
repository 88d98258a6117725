"""
How rows of codes come to the device that makes batches of them.

On the host there is nothing to do. To a GPU they go out of pinned memory, on a stream of their own, so that neither the
rank nor the step that is being computed waits for the copy; whoever wants the batch does.
Shapes: L layers, T tokens of a row group, N rows that are taken of it, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CudaStaging", "HostStaging", "Staging", "staging_for"]


class Staging(Protocol):
    """The way to one device; a batch is filled by one thread and used by another."""

    device: torch.device
    ahead: bool
    """Whether it pays to fill the next batch while this one is used, which takes a second batch of memory."""

    def release(self) -> None:
        """Called by the thread that uses batches: from here on, filling waits for what that thread has launched."""
        ...

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within it a batch is filled; left, the batch is there."""
        ...

    def moved(self, codes_LTD: NDArray[Any], rows_N: NDArray[np.int64]) -> Tensor:
        """Take rows of codes and start to move them; [L, N, D] on the device, of the codes' type."""
        ...


class HostStaging:
    """
    Codes where they are, or copied to a device while everyone waits.

    Args:
        device: By default the host.
    """

    ahead = False

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def release(self) -> None:
        pass

    @contextmanager
    def filling(self) -> Iterator[None]:
        yield

    def moved(self, codes_LTD: NDArray[Any], rows_N: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(codes_LTD.take(rows_N, axis=1)).to(self.device)


class CudaStaging:
    """Codes through pinned memory, beside the stream of the step."""

    ahead = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda: Any = torch.cuda  # torch leaves out the types of these two
        self._stream, self._released = cuda.Stream(device), cuda.Event()

    def release(self) -> None:
        self._released.record(torch.cuda.current_stream(self.device))

    @contextmanager
    def filling(self) -> Iterator[None]:
        self._stream.wait_event(self._released)
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def moved(self, codes_LTD: NDArray[Any], rows_N: NDArray[np.int64]) -> Tensor:
        num_layers, _, d_model = codes_LTD.shape
        kind = torch.from_numpy(np.empty(0, codes_LTD.dtype)).dtype
        pinned_LND = torch.empty(num_layers, rows_N.size, d_model, dtype=kind, pin_memory=True)
        # "clip" spares the copy that numpy makes to keep `out` whole where a row does not exist; all do.
        np.take(codes_LTD, rows_N, axis=1, out=pinned_LND.numpy(), mode="clip")
        # torch keeps pinned memory until the copy out of it is done.
        return pinned_LND.to(self.device, non_blocking=True)


def staging_for(device: torch.device) -> Staging:
    """Choose by the kind of device."""
    return CudaStaging(device) if device.type == "cuda" else HostStaging(device)
