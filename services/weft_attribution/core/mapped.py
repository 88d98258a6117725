"""
Tensors in scratch files: pages come into memory when they are used, and go when `release` says so.

A file has no name and its blocks are reserved first, so that a full disk is an error and not a crash.
"""

import mmap
import os
import tempfile

import torch
from torch import Tensor

from weft_common.errors import ResourceExhaustedError

__all__ = ["MappedTensor"]


class MappedTensor:
    """
    A tensor of zeros in a scratch file, to be filled.

    Args:
        shape: Its shape.
        dtype: Its type.

    Raises:
        ResourceExhaustedError: The folder for temporary files has no room for it.

    >>> mapped = MappedTensor((2, 3), torch.float32)
    >>> mapped.tensor[1] = 2
    >>> mapped.release()
    >>> mapped.tensor.sum(dim=1).tolist()
    [0.0, 6.0]
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        count = 1
        for size in shape:
            count *= size
        size_bytes = max(1, count * dtype.itemsize)
        with tempfile.TemporaryFile() as file:
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
                else:
                    file.truncate(size_bytes)
            except OSError as error:
                raise ResourceExhaustedError(
                    f"{tempfile.gettempdir()} has no room for {size_bytes} bytes of decoders ({error.strerror}); make "
                    "room there, set TMPDIR to a larger disk, or raise WEFT_ATTRIBUTION_MEMORY_BYTES"
                ) from error
            self._map = mmap.mmap(file.fileno(), size_bytes)
        flat = torch.frombuffer(self._map, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
        self.tensor: Tensor = flat.view(shape)

    def release(self) -> None:
        """Let its pages go; what was written stays in the file and comes back when it is read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
