"""
Compressed activations as immutable objects: header, then blocks that are decoded one by one.

A block is one stream of one layer over one row group. The bytes are specified in `docs/reference/shard-format.md`.
"""

from weft_store.shard.basis import Bases, Basis, basis_key, learn_basis
from weft_store.shard.encoding import EncodedBlocks, EncodedShard, encode_blocks, encode_shard
from weft_store.shard.layout import CODECS, STEPPED, STREAMS, CodecSpec, ShardHeader, Stream
from weft_store.shard.reading import CodedStream, ShardReader, verify
from weft_store.shard.statistics import LayerStatistics, StreamStatistics, merge_statistics

__all__ = [
    "CODECS",
    "STEPPED",
    "STREAMS",
    "Bases",
    "Basis",
    "CodecSpec",
    "CodedStream",
    "EncodedBlocks",
    "EncodedShard",
    "LayerStatistics",
    "ShardHeader",
    "ShardReader",
    "Stream",
    "StreamStatistics",
    "basis_key",
    "encode_blocks",
    "encode_shard",
    "learn_basis",
    "merge_statistics",
    "verify",
]
