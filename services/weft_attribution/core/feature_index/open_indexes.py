"""Which indexes there are, and which one answers; the last ones asked for stay open."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from weft_attribution.core.feature_index.manifests import list_indexes, read_manifest
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_index.settings import IndexKeys
from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["OpenIndexes"]

Json = Mapping[str, Any]
_OPEN_INDEXES = 64
_LOOK_S = 2.0
_KNOWN_TRANSCODERS = 256


class OpenIndexes:
    """
    Indexes in a bucket; the newest whole one of a transcoder answers.

    Args:
        store: The bucket.
        memory_bytes: What those that are kept open may take; the last one asked for is kept in any case.
        look_s: For so long an answer to which one that is holds.
    """

    def __init__(self, store: ObjectStore, *, memory_bytes: int = 1 << 30, look_s: float = _LOOK_S) -> None:
        self._store, self._memory_bytes, self._look_s = store, memory_bytes, look_s
        self._newest: OrderedDict[str, tuple[float, Json]] = OrderedDict()
        self._open: OrderedDict[tuple[str, str, float], OpenIndex] = OrderedDict()
        self._lock = threading.Lock()

    def manifests(self, transcoder: str) -> list[dict[str, Any]]:
        """Manifests of all whole indexes of a transcoder, newest first. NotFoundError: no such transcoder."""
        try:
            mark = hashlib.sha256(self._store.get(f"transcoders/{transcoder}/manifest.json")).hexdigest()
        except NotFoundError:
            raise NotFoundError(
                f"no transcoder transcoders/{transcoder}: export or import one first, or list those that there are"
            ) from None
        return list_indexes(self._store, transcoder, mark)

    def manifest(self, transcoder: str, index_id: str) -> Json:
        """
        The manifest of one index.

        Raises:
            NotFoundError: There is no whole index of that name.
        """
        try:
            return read_manifest(self._store, IndexKeys(transcoder, index_id))
        except NotFoundError:
            raise NotFoundError(
                f"transcoders/{transcoder}/indexes/{index_id} is not there, or not whole yet; ListFeatureIndexes shows "
                "those that there are"
            ) from None

    def find(self, transcoder: str) -> OpenIndex | None:
        """The newest whole index; None where there is none. NotFoundError: no such transcoder."""
        manifest = self._newest_manifest(transcoder)
        return None if manifest is None else self._opened(manifest)

    def open(self, transcoder: str, index_id: str = "") -> OpenIndex:
        """
        An index; without an id the newest whole one.

        Raises:
            NotFoundError: There is no such transcoder or index.
            FailedPreconditionError: The transcoder has none.
        """
        return self._opened(self.manifest(transcoder, index_id) if index_id else self.newest(transcoder))

    def newest(self, transcoder: str) -> Json:
        """The manifest of what `open` gives, without opening it; raises as that does."""
        found = self._newest_manifest(transcoder)
        if found is None:
            raise FailedPreconditionError(
                f"transcoders/{transcoder} has no index of its features yet; ask IndexFeatures for one and wait for it"
            )
        return found

    def _newest_manifest(self, transcoder: str) -> Json | None:
        now = time.monotonic()
        seen = self._newest.get(transcoder)
        if seen is None or now - seen[0] > self._look_s:
            manifests = self.manifests(transcoder)
            if not manifests:
                with self._lock:
                    self._newest.pop(transcoder, None)
                return None
            seen = now, manifests[0]
            with self._lock:
                self._newest[transcoder] = seen
                self._newest.move_to_end(transcoder)
                while len(self._newest) > _KNOWN_TRANSCODERS:
                    self._newest.popitem(last=False)
        return seen[1]

    def _opened(self, manifest: Json) -> OpenIndex:
        request = manifest["request"]
        key = (str(request["transcoder"]), str(request["index_id"]), float(manifest["create_s"]))
        with self._lock:
            if key not in self._open:
                self._open[key] = OpenIndex(self._store, manifest)
            self._open.move_to_end(key)
            # They grow with what is asked of them.
            while len(self._open) > 1 and self._is_too_much():
                self._open.popitem(last=False)
            return self._open[key]

    def _is_too_much(self) -> bool:
        held = sum(each.num_bytes for each in self._open.values())
        return len(self._open) > _OPEN_INDEXES or held > self._memory_bytes
