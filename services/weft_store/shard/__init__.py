"""
Compressed activations as immutable objects: header, then blocks that are decoded one by one.

A block is one stream of one layer over one row group. The bytes are specified in `docs/reference/shard-format.md`.
"""

from weft_store.shard.encoding import EncodedShard, encode_shard
from weft_store.shard.layout import STREAMS, CodecSpec, ShardHeader, Stream
from weft_store.shard.reading import CodedStream, ShardReader, verify
from weft_store.shard.statistics import LayerStatistics, StreamStatistics, merge_statistics

__all__ = [
    "STREAMS",
    "CodecSpec",
    "CodedStream",
    "EncodedShard",
    "LayerStatistics",
    "ShardHeader",
    "ShardReader",
    "Stream",
    "StreamStatistics",
    "encode_shard",
    "merge_statistics",
    "verify",
]
