"""
The codec `bf16`: bfloat16 kept exactly, exponents and the rest in a plane each.

Exponents of activations take few values and compress well; sign and mantissa hardly do.
Shapes: T tokens of a block, D d_model.
"""

import numpy as np
from numpy.typing import NDArray

from weft_store.shard.planes import FrameReader, pack_plane


def round_to_bf16(values_TD: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 to the nearest bfloat16, ties to even; values beyond its range become infinite."""
    bits = values_TD.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def widen_bf16(bits_TD: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Give the float32 of the same value."""
    return (bits_TD.astype(np.uint32) << 16).view(np.float32)


def encode_bf16(bits_TD: NDArray[np.uint16]) -> bytes:
    """Write a block: the plane of exponents, then the plane of signs (highest bit) and mantissas."""
    exponents = (bits_TD >> 7).astype(np.uint8)
    rest = ((bits_TD >> 8) & 0x80 | bits_TD & 0x7F).astype(np.uint8)
    return pack_plane(exponents) + pack_plane(rest)


def decode_bf16_bits(payload: bytes | memoryview, num_tokens: int, d_model: int, key: str) -> NDArray[np.uint16]:
    """Read a block's bits, [T, D]. DataLossError, also where a value is not finite."""
    reader = FrameReader(payload, key)
    exponents = reader.plane(num_tokens * d_model)
    rest = reader.plane(num_tokens * d_model)
    reader.end()
    broken = np.flatnonzero(exponents == 0xFF)
    if broken.size:
        token, channel = divmod(int(broken[0]), d_model)
        raise reader.fault(
            f"it holds {broken.size} values that are not finite, the first at token {token}, channel {channel}"
        )
    bits: NDArray[np.uint16] = (rest & 0x80).astype(np.uint16)
    bits <<= 1
    bits |= exponents
    bits <<= 7
    bits |= rest & 0x7F
    return bits.reshape(num_tokens, d_model)
