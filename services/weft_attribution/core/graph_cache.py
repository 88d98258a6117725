"""
Graphs that were made before: the same model, transcoder, prompt and settings give the same rows.

`graph-cache/{digest}/{graph}.json` stands for a graph that has them; `graphs/{graph}/rows.json` says where that is.
Every graph has its own entry, so that one that goes takes nobody else's with it. Both are written before the graph is
complete, and go while it is deleted. Thresholds are not among the settings, since a graph is pruned from its rows, and
neither is what changes speed alone.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from weft_attribution.core.ports import ModelInfo, Token
from weft_attribution.core.records import GraphRequest, GraphSettings, graph_key, request_key, rows_key
from weft_attribution.core.targets import Target
from weft_common.errors import DataLossError, InvalidArgumentError, NotFoundError
from weft_common.logging import get_logger
from weft_store.documents import encode_json, read_json
from weft_store.port import ObjectStore, check_key

__all__ = ["GraphCache"]

Json = dict[str, Any]
_ROWS_VERSION = 1
_MOST_LOOKED_AT = 16
_WANTED = {"statistics": dict, "json": dict, "tokens": list, "logits": list, "probabilities": list}
_log = get_logger(__name__)


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
        The folder of the graphs made of this.

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
            # Raised where the same settings come to other rows.
            "rows": _ROWS_VERSION,
            "transcoder": settings.transcoder,
            "manifest": manifest.etag,
            "tokens": [token.id for token in tokens],
            "targets": [asdict(target) for target in targets],
            "max_logits": settings.max_logits,
            "logit_probability": settings.logit_probability,
            "max_features": settings.max_features,
        }
        return f"graph-cache/{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()}/"

    def find(self, key: str) -> Json | None:
        """The document of a finished graph made of the same, None where there is none."""
        for entry in islice(self._store.list(key), _MOST_LOOKED_AT):
            try:
                found = self._read(entry.key)
            except (DataLossError, InvalidArgumentError, KeyError, TypeError, ValueError) as error:
                # It only saves work: without it the graph is made anew.
                _log.warning("cached_graph_passed_over", entry=entry.key, reason=repr(error))
                continue
            if found is not None:
                return found
        return None

    def _read(self, entry: str) -> Json | None:
        try:
            named, _ = read_json(self._store, entry)
            there = GraphRequest.from_json(read_json(self._store, request_key(named["graph_id"]))[0])
            if there.create_s != named["create_s"]:
                return None
            document = read_json(self._store, graph_key(there.graph_id))[0]
            if not all(isinstance(document[name], kind) for name, kind in _WANTED.items()):
                raise DataLossError(f"{graph_key(there.graph_id)} is no graph; delete it")
            return {"graph_id": there.graph_id, **document}
        except NotFoundError:
            # Not complete yet, or deleted.
            return None

    def note(self, key: str, request: GraphRequest) -> None:
        """Enter a graph that is about to be complete."""
        self.forget(request.graph_id)
        self._store.put(rows_key(request.graph_id), encode_json({"made_of": key}))
        named = {"graph_id": request.graph_id, "create_s": request.create_s}
        self._store.put(_entry(key, request.graph_id), encode_json(named))

    def forget(self, graph_id: str) -> None:
        """Delete a graph's entry, and last what says where it is."""
        try:
            made_of = str(read_json(self._store, rows_key(graph_id))[0]["made_of"])
            check_key(_entry(made_of, graph_id))
        except NotFoundError:
            return
        except (DataLossError, InvalidArgumentError, KeyError) as error:
            # The entry stays, and leads nowhere once its graph is gone.
            _log.warning("cache_entry_not_found", graph=graph_id, reason=repr(error))
        else:
            self._store.delete(_entry(made_of, graph_id))
        self._store.delete(rows_key(graph_id))


def _entry(key: str, graph_id: str) -> str:
    return f"{key}{graph_id}.json"
