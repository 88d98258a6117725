"""A shard as whoever wrote it tells the cache of it."""

from dataclasses import asdict

from weft.cache.v1 import messages_pb2
from weft_store.shard.encoding import EncodedShard

__all__ = ["shard_message"]


def shard_message(
    encoded: EncodedShard,
    key: str,
    *,
    index: int,
    num_tokens: int,
    split: "messages_pb2.Split.ValueType",
    row_group_tokens: int,
) -> messages_pb2.Shard:
    """What CommitShard wants of a shard that lies at a key."""
    return messages_pb2.Shard(
        index=index,
        key=key,
        sha256=encoded.sha256,
        size_bytes=len(encoded.data),
        num_tokens=num_tokens,
        split=split,
        row_group_tokens=row_group_tokens,
        statistics=[
            messages_pb2.LayerStatistics(
                layer=each.layer,
                input=messages_pb2.StreamStatistics(**asdict(each.input)),
                output=messages_pb2.StreamStatistics(**asdict(each.output)),
            )
            for each in encoded.statistics
        ],
    )
