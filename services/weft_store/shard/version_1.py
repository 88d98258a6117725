"""
What version 1 of the shard format wrote for `uniform`, which is read on.

Codes of a group of channels were cut into bytes, with a plane and a zstd frame for each.
Shapes: T tokens of a block, D d_model.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_store.shard.planes import FrameReader


def decode_uniform_codes(
    payload: bytes | memoryview, num_tokens: int, order_D: NDArray[np.uint16], group_channels: int, key: str
) -> NDArray[np.signedinteger[Any]]:
    """
    Read a block of version 1: codes [T, D] in the order of channels, as the narrowest of int8, int16, int32.

    Raises:
        DataLossError: The block is damaged.
    """
    reader = FrameReader(payload, key)
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


def _unzigzag(zigzag: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.signedinteger[Any]]:
    """Give the signed codes, of the same width."""
    signed = np.dtype(f"i{zigzag.dtype.itemsize}")
    one = zigzag.dtype.type(1)
    codes: NDArray[np.signedinteger[Any]] = (zigzag >> one).view(signed)
    codes ^= -(zigzag & one).view(signed)
    return codes
