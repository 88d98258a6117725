"""
From activations to the bytes of a shard.

Shapes: L layers, T tokens, D d_model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import InvalidArgumentError
from weft_store.shard.basis import Basis
from weft_store.shard.bf16 import encode_bf16, round_to_bf16, widen_bf16
from weft_store.shard.coding import encode_block
from weft_store.shard.layout import (
    STEPPED,
    STREAMS,
    Block,
    CodecSpec,
    ShardHeader,
    UniformParameters,
    write_index,
)
from weft_store.shard.statistics import LayerStatistics, StreamStatistics
from weft_store.shard.transformed import Transformed, transform_and_quantise
from weft_store.shard.uniform import Moments, Quantised, entropy_bits, largest_size, quantise

# About the symbols that an entropy code of zstd needs to pay for its table.
_GROUP_SYMBOLS = 16384
# Far above any activation, and far enough below float32's range that differences stay in it.
_LARGEST = 2.0**120


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """
    A shard as it goes into the bucket.

    Attributes:
        data: The object.
        sha256: Its hex SHA-256.
        statistics: Moments and codec figures by layer.
    """

    data: bytes
    sha256: str
    statistics: list[LayerStatistics]


@dataclass(frozen=True, slots=True)
class EncodedBlocks:
    """
    A shard whose blocks are not put together yet: the activations are not needed any more.

    Attributes:
        header: What stands before the blocks.
        parameters: Steps, means and orders; None for bfloat16.
        blocks: By row group, stream and layer.
        statistics: Moments and codec figures by layer.
    """

    header: ShardHeader
    parameters: UniformParameters | None
    blocks: Sequence[Block]
    statistics: list[LayerStatistics]

    def shard(self) -> EncodedShard:
        """Put the object together and take its hash, on the calling thread alone."""
        index = write_index(self.header, self.parameters, self.blocks)
        data = b"".join([index, *(block.payload for block in self.blocks)])
        return EncodedShard(data, hashlib.sha256(data).hexdigest(), self.statistics)


def encode_shard(
    streams: Mapping[str, NDArray[np.float32]],
    codec: CodecSpec,
    *,
    row_group_tokens: int = 256,
    attributes: Mapping[str, str],
    basis: Basis | None = None,
    threads: int = 1,
) -> EncodedShard:
    """Encode both streams of all layers, and put the shard together; see `encode_blocks`."""
    return encode_blocks(
        streams, codec, row_group_tokens=row_group_tokens, attributes=attributes, basis=basis, threads=threads
    ).shard()


def encode_blocks(
    streams: Mapping[str, NDArray[np.float32]],
    codec: CodecSpec,
    *,
    row_group_tokens: int = 256,
    attributes: Mapping[str, str],
    basis: Basis | None = None,
    threads: int = 1,
) -> EncodedBlocks:
    """
    Encode both streams of all layers; the bytes do not depend on `threads`.

    Args:
        streams: `input` and `output`, float32 of one shape [L, T, D]; T may be 0.
        codec: How.
        row_group_tokens: Tokens that are decoded together.
        attributes: Text to keep with the shard.
        basis: For `klt`, and only there: what its readers find under `basis_key`.
        threads: Layers of a stream that are encoded at once; each takes the memory of its codes, 4 T D bytes.

    Raises:
        InvalidArgumentError: Wrong streams, shapes or types; values that are not finite; an FVU out of reach.
    """
    num_layers, num_tokens, d_model = _check_streams(streams)
    header = ShardHeader(
        num_layers=num_layers,
        num_tokens=num_tokens,
        d_model=d_model,
        row_group_tokens=row_group_tokens,
        codec=codec.kind,
        target_fvu=float(codec.target_fvu) if codec.kind in STEPPED else 0.0,
        group_channels=_group_channels(row_group_tokens, d_model) if codec.kind in STEPPED else 0,
        attributes=_check_attributes(attributes),
        basis=_check_basis(codec, basis, num_layers, d_model),
    )
    fault = header.fault()
    if fault is not None:
        raise InvalidArgumentError(f"this shard cannot be written: {fault}.", field="row_group_tokens")
    parameters = None
    if codec.kind in STEPPED:
        parameters = UniformParameters(
            np.zeros((len(STREAMS), num_layers), np.float32),
            np.zeros((len(STREAMS), num_layers, d_model), np.float32),
            np.zeros((len(STREAMS), num_layers, d_model), np.uint16),
        )
    # Fresh pages cost as much as a pass over them: the layers that a thread encodes share these.
    shape = (num_tokens, d_model) if parameters is not None else (0, 0)
    spare: SimpleQueue[NDArray[np.int32]] = SimpleQueue()
    for _ in range(threads):
        spare.put(np.empty(shape, np.int32))

    def encode(place: tuple[int, int]) -> tuple[list[Block], StreamStatistics]:
        at, layer = place
        what = f"stream {STREAMS[at]!r} of layer {layer}"
        values_TD = np.ascontiguousarray(streams[STREAMS[at]][layer])
        vectors_DD = basis.vectors_SLCD[place] if basis is not None else None
        codes_TD = spare.get()
        try:
            return _encode_stream(values_TD, header, parameters, vectors_DD, place, codes_TD, what)
        finally:
            spare.put(codes_TD)

    places = [(at, layer) for at in range(len(STREAMS)) for layer in range(num_layers)]
    with ThreadPoolExecutor(threads, "weft-encode") as pool:
        encoded = dict(zip(places, pool.map(encode, places), strict=True))
    blocks = {(group, *place): block for place, (found, _) in encoded.items() for group, block in enumerate(found)}
    return EncodedBlocks(
        header,
        parameters,
        [blocks[place] for place in sorted(blocks)],
        [LayerStatistics(layer, *(encoded[at, layer][1] for at in range(len(STREAMS)))) for layer in range(num_layers)],
    )


def _encode_stream(
    values_TD: NDArray[np.float32],
    header: ShardHeader,
    parameters: UniformParameters | None,
    vectors_DD: NDArray[np.float16] | None,
    place: tuple[int, int],
    codes_TD: NDArray[np.int32],
    what: str,
) -> tuple[list[Block], StreamStatistics]:
    moments = _moments(values_TD, what)
    rows = [
        slice(start, start + header.row_group_tokens) for start in range(0, header.num_tokens, header.row_group_tokens)
    ]
    if parameters is None:
        bits = round_to_bf16(values_TD)
        difference = np.subtract(widen_bf16(bits), values_TD, dtype=np.float64).ravel()
        error, entropy = float(difference @ difference), 0.0
        blocks = [Block.of(encode_bf16(bits[part])) for part in rows]
    else:
        coded: Quantised | Transformed
        if vectors_DD is None:
            coded, of_codes = quantise(values_TD, moments, header.target_fvu, codes_TD, what), moments
        else:
            coded = transform_and_quantise(values_TD, moments, vectors_DD, header.target_fvu, codes_TD, what)
            of_codes = coded.components
        order_D = np.argsort(of_codes.squared_deviation_D, kind="stable").astype(np.uint64)
        parameters.steps_SL[place] = coded.step
        parameters.means_SLD[place] = coded.mean_D
        parameters.orders_SLD[place] = order_D
        error, entropy = coded.sum_squared_error, entropy_bits(codes_TD)
        blocks = [Block.of(encode_block(codes_TD[part], order_D, header.group_channels)) for part in rows]
    return blocks, StreamStatistics(
        num_tokens=header.num_tokens,
        mean_norm=moments.mean_norm,
        mean=tuple(moments.mean_D.tolist()),
        sum_squared_deviation=float(moments.squared_deviation_D.sum()),
        sum_squared_error=error,
        size_bytes=sum(len(block.payload) for block in blocks),
        entropy_bits=entropy,
    )


def _moments(values_TD: NDArray[np.float32], what: str) -> Moments:
    if not largest_size(values_TD) <= _LARGEST:
        raise InvalidArgumentError(
            f"{what} holds values that are not finite, or beyond 2**120: leave those tokens out.", field="streams"
        )
    return Moments.of(values_TD)


def _group_channels(row_group_tokens: int, d_model: int) -> int:
    return min(d_model, max(1, round(_GROUP_SYMBOLS / max(1, row_group_tokens))))


def _check_basis(codec: CodecSpec, basis: Basis | None, num_layers: int, d_model: int) -> str:
    if (basis is None) == (codec.kind == "klt"):
        raise InvalidArgumentError(
            f"codec {codec.kind!r} {'needs a' if basis is None else 'has no'} basis: 'klt' has one, learned by "
            "`learn_basis`, and no other codec does.",
            field="basis",
        )
    if basis is None:
        return ""
    expected = (len(STREAMS), num_layers, d_model, d_model)
    if basis.vectors_SLCD.shape != expected:
        raise InvalidArgumentError(
            f"the basis has the shape {list(basis.vectors_SLCD.shape)}, expected {list(expected)}: learn it from "
            "activations of the same model.",
            field="basis",
        )
    return basis.sha256


def _check_streams(streams: Mapping[str, NDArray[Any]]) -> tuple[int, int, int]:
    if set(streams) != set(STREAMS):
        raise InvalidArgumentError(
            f"a shard has the streams {', '.join(STREAMS)}; got {', '.join(sorted(streams)) or 'none'}.",
            field="streams",
        )
    for stream in STREAMS:
        array = streams[stream]
        if array.dtype != np.float32 or array.ndim != 3 or array.shape != streams[STREAMS[0]].shape:
            raise InvalidArgumentError(
                f"stream {stream!r} is {array.dtype} of shape {list(array.shape)}: expected float32 of one shape "
                "[layers, tokens, d_model] for both streams.",
                field="streams",
            )
    num_layers, num_tokens, d_model = streams[STREAMS[0]].shape
    return num_layers, num_tokens, d_model


def _check_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    if not all(isinstance(name, str) and isinstance(value, str) for name, value in attributes.items()):
        raise InvalidArgumentError(
            "attributes of a shard are text: expected a mapping from str to str.", field="attributes"
        )
    return dict(attributes)
