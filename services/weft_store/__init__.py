"""The object store: one Protocol, adapters for a folder, memory and S3, documents, and the shard format."""

from weft_store.opening import open_bucket, open_store
from weft_store.operations import ObjectOperationStore
from weft_store.port import ObjectInfo, ObjectStore

__all__ = ["ObjectInfo", "ObjectOperationStore", "ObjectStore", "open_bucket", "open_store"]
