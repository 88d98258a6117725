"""
Graphs that were made before: the same model, transcoder, prompt and settings give the same rows.

`graph-cache/{digest}.json` names the graph that has them. Thresholds are not among the settings, since a graph is
pruned from its rows, and neither is what changes speed alone.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from weft_attribution.core.ports import ModelInfo, Token
from weft_attribution.core.records import GraphRequest, GraphSettings, graph_key, request_key
from weft_attribution.core.targets import Target
from weft_common.errors import NotFoundError
from weft_store.documents import encode_json, read_json
from weft_store.port import ObjectStore

__all__ = ["GraphCache"]

Json = dict[str, Any]


class GraphCache:
    """
    Which graphs there are, by what they were made of.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def key(self, settings: GraphSettings, info: ModelInfo, tokens: Sequence[Token], targets: Sequence[Target]) -> str:
        """
        Where the name of a graph made of this stands.

        Args:
            settings: How it is asked for.
            info: The model.
            tokens: The prompt up to the position explained.
            targets: What is asked for, texts resolved.
        """
        manifest = self._store.info(f"transcoders/{settings.transcoder}/manifest.json")
        made_of: Json = {
            "model": info.name,
            "revision": info.revision,
            "transcoder": settings.transcoder,
            "manifest": manifest.etag,
            "tokens": [token.id for token in tokens],
            "targets": [asdict(target) for target in targets],
            "max_logits": settings.max_logits,
            "logit_probability": settings.logit_probability,
            "max_features": settings.max_features,
        }
        return f"graph-cache/{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()}.json"

    def find(self, key: str) -> Json | None:
        """The document of a finished graph made of the same, None where there is none or it was deleted."""
        try:
            named, _ = read_json(self._store, key)
            there = GraphRequest.from_json(read_json(self._store, request_key(named["graph_id"]))[0])
            if there.create_s != named["create_s"]:
                return None
            return {"graph_id": there.graph_id, **read_json(self._store, graph_key(there.graph_id))[0]}
        except NotFoundError:
            return None

    def note(self, key: str, request: GraphRequest) -> None:
        """Name a finished graph."""
        self._store.put(key, encode_json({"graph_id": request.graph_id, "create_s": request.create_s}))
