"""The labels that stand, all of a transcoder at once, kept in memory for as long as nothing changes."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from weft_attribution.core.label_pages import labels_folder, page_labels
from weft_attribution.core.labels import Label, Place
from weft_common.errors import NotFoundError
from weft_store.documents import read_json
from weft_store.port import ObjectInfo, ObjectStore

__all__ = ["StandingLabels"]

_TRANSCODERS = 4
# A page that was read this soon after its last write may have been written again at the same moment, as far as the
# bucket's clock tells.
_SETTLED_S = 5.0


@dataclass(frozen=True)
class _Page:
    size_bytes: int
    modified_s: float
    etag: str
    is_settled: bool
    labels: Mapping[Place, Label]


@dataclass
class _Known:
    pages: dict[str, _Page] = field(default_factory=dict)
    labels: Mapping[tuple[int, int], Label] = field(default_factory=dict)


class StandingLabels:
    """
    Reads pages that have changed, and those alone.

    Args:
        store: The bucket.
        clock: Seconds since 1970.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def labels_of(self, transcoder: str) -> Mapping[tuple[int, int], Label]:
        """
        All labels of a transcoder that stand, by layer and index; blocks.

        The same object comes back for as long as nothing has changed.
        """
        with self._lock:
            known = self._known.setdefault(transcoder, _Known())
            self._known.move_to_end(transcoder)
            if len(self._known) > _TRANSCODERS:
                self._known.popitem(last=False)
            pages: dict[str, _Page] = {}
            for info in self._store.list(labels_folder(transcoder)):
                page = self._page(info, known.pages.get(info.key))
                if page is not None:
                    pages[info.key] = page
            # The same versions of the same pages have the same labels.
            if {key: page.etag for key, page in pages.items()} != {key: each.etag for key, each in known.pages.items()}:
                known.labels = {place: label for page in pages.values() for place, label in page.labels.items()}
            known.pages = pages
            return known.labels

    def _page(self, info: ObjectInfo, known: _Page | None) -> _Page | None:
        is_same = known is not None and (known.size_bytes, known.modified_s) == (info.size_bytes, info.modified_s)
        if known is not None and is_same and known.is_settled:
            return known
        is_settled = self._clock() - info.modified_s > _SETTLED_S
        try:
            document, etag = read_json(self._store, info.key)
        except NotFoundError:
            return None
        if known is not None and known.etag == etag:
            return _Page(info.size_bytes, info.modified_s, etag, is_settled, known.labels)
        found = page_labels(info.key, document)
        labels = {each.place: label for each in found if (label := each.label()) is not None}
        return _Page(info.size_bytes, info.modified_s, etag, is_settled, labels)
