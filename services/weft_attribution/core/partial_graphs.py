"""
What there is of graphs while they are made: written over as rows come, and gone once the graph is there.

It lies in the bucket, so that any replica can show what another one computes.
"""

from typing import Any

from weft_attribution.core.records import GraphRequest, partial_key
from weft_common.errors import NotFoundError
from weft_store.documents import encode_json, read_json
from weft_store.port import ObjectStore

__all__ = ["PartialGraphs"]

Json = dict[str, Any]


class PartialGraphs:
    """
    The partial graphs in a bucket.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def write(self, request: GraphRequest, shown: Json) -> None:
        """Show `tokens`, `statistics` and `json` until there is more."""
        self._store.put(partial_key(request.graph_id), encode_json({"create_s": request.create_s, **shown}))

    def read(self, request: GraphRequest, seen: str) -> tuple[Json, str] | None:
        """Return what is shown and its mark; None where that is `seen`, where there is nothing, or another graph's."""
        key = partial_key(request.graph_id)
        try:
            if seen and self._store.info(key).etag == seen:
                return None
            shown, mark = read_json(self._store, key)
        except NotFoundError:
            return None
        return (shown, mark) if shown["create_s"] == request.create_s else None

    def delete(self, graph_id: str) -> None:
        """Show nothing any more."""
        self._store.delete(partial_key(graph_id))
