"""
The labels that stand, all of a transcoder at once, kept in memory and looked after beside the questions.

What this process writes is in the next answer. What others write is in answers that begin `wait_s` later at the latest:
the bucket is listed once in `look_s` at most, by one thread for all who ask, and meanwhile the labels of the last look
answer, unless they are older than `wait_s`. No clock is compared with the bucket's.
"""

import asyncio
import re
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from weft_attribution.core.label_blocks import FEATURES_A_BLOCK, LabelBlock, LabelBlocks, StandingLabel, StandingScore
from weft_attribution.core.label_pages import FEATURES_A_PAGE, labels_folder, page_labels
from weft_attribution.core.labels import Label
from weft_common.errors import DataLossError, NotFoundError
from weft_common.logging import get_logger
from weft_store.documents import decode_json
from weft_store.port import ObjectInfo, ObjectStore

__all__ = ["StandingLabels"]

_LOG = get_logger(__name__)
_LOOK_S, _WAIT_S = 1.0, 5.0
_TICK_S = 5.0
"""Two writes that are so far apart bear different times in any bucket."""
_REFRESHES_AT_ONCE, _READS_AT_ONCE = 2, 16
_PAGES_IN_FLIGHT = 256
_KNOWN_TRANSCODERS = 256
_MOST_TRIALS = 2**31 - 1
_NEVER = float("-inf")
_PAGE = re.compile(r"/labels/[0-9]{4}/[0-9]{7}\.json$")


@dataclass(frozen=True)
class _Page:
    """
    A page as it was read.

    Args:
        size_bytes: Of the version that the bucket listed.
        modified_s: Its time, by the bucket's clock.
        first_seen_s: When that version was first listed, by ours that only goes forward.
        is_settled: Whether a later write of the same size cannot bear the same time.
        etag: What was read.
        is_damaged: Whether that is no page of labels.
    """

    size_bytes: int
    modified_s: float
    first_seen_s: float
    is_settled: bool
    etag: str
    is_damaged: bool


@dataclass
class _Known:
    pages: dict[str, _Page] = field(default_factory=dict)
    labels: LabelBlocks = field(default_factory=lambda: LabelBlocks({}))
    looked_s: float = _NEVER
    work: "Future[LabelBlocks] | None" = None
    # Pages that this process wrote and that no refresh, or only the one under way, has read since.
    written: set[str] = field(default_factory=set)
    reading: set[str] = field(default_factory=set)


class StandingLabels:
    """
    Reads pages that have changed, and those alone, in threads of its own.

    Args:
        store: The bucket.
        memory_bytes: What labels that are kept may take; those asked for last are kept in any case.
        look_s: So often the bucket is listed at most.
        wait_s: Labels that were looked for earlier than this do not answer any more.
        clock: Seconds, from anywhere, that only go forward.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        memory_bytes: int = 256 << 20,
        look_s: float = _LOOK_S,
        wait_s: float = _WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._memory_bytes, self._clock = store, memory_bytes, clock
        self._look_s, self._wait_s = look_s, wait_s
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()
        # Nobody else waits behind a refresh: heartbeats of long work go through the loop's own threads, for one.
        self._refreshers = ThreadPoolExecutor(_REFRESHES_AT_ONCE, "labels")
        self._readers = ThreadPoolExecutor(_READS_AT_ONCE, "label-pages")

    def changed(self, key: str) -> None:
        """Note that this process may have written a page."""
        with self._lock:
            known = self._known.get(key.split("/")[1])
            if known is not None:
                known.written.add(key)

    async def ready(self, transcoder: str) -> None:
        """Wait until `labels_of` need not; raises as a read of the bucket does."""
        # One that had begun already may have missed a page that was written since; the next one has not.
        for _turn in range(2):
            work, _ = self._refreshing(transcoder)
            if work is None:
                return
            await asyncio.shield(asyncio.wrap_future(work))

    def labels_of(self, transcoder: str) -> LabelBlocks:
        """
        All labels of a transcoder that stand; blocks for a refresh where `ready` was not awaited.

        The same object comes back for as long as nothing has changed.
        """
        for _ in range(2):
            work, labels = self._refreshing(transcoder)
            if work is None:
                break
            labels = work.result()
        return labels

    def _refreshing(self, transcoder: str) -> "tuple[Future[LabelBlocks] | None, LabelBlocks]":
        """What is to be waited for, if anything, and what is there; a refresh that is due is begun either way."""
        now = self._clock()
        with self._lock:
            known = self._known.setdefault(transcoder, _Known())
            self._known.move_to_end(transcoder)
            if known.work is None and (known.written or now - known.looked_s > self._look_s):
                known.work = self._refreshers.submit(self._refresh, transcoder, known)
            must_wait = known.written or known.reading or now - known.looked_s > self._wait_s
            return known.work if must_wait else None, known.labels

    def _refresh(self, transcoder: str, known: _Known) -> LabelBlocks:
        begun = self._clock()
        with self._lock:
            known.reading, known.written = known.written, set()
            is_listing = begun - known.looked_s > self._look_s
        try:
            pages = dict(known.pages)
            listed = self._list(transcoder) if is_listing else None
            changed = self._read(pages, listed, known.reading, begun)
            labels = _with(known.labels, changed, pages) if changed else known.labels
        except BaseException:
            with self._lock:
                known.written |= known.reading
                known.reading, known.work = set(), None
            raise
        with self._lock:
            known.pages, known.labels, known.reading, known.work = pages, labels, set(), None
            known.looked_s = begun if is_listing else known.looked_s
            self._let_go()
        return labels

    def _let_go(self) -> None:
        held = sum(each.labels.num_bytes + 256 * len(each.pages) for each in self._known.values())
        while len(self._known) > 1 and (held > self._memory_bytes or len(self._known) > _KNOWN_TRANSCODERS):
            _, gone = self._known.popitem(last=False)
            held -= gone.labels.num_bytes + 256 * len(gone.pages)

    def _read(
        self, pages: dict[str, _Page], listed: Mapping[str, ObjectInfo] | None, written: set[str], begun: float
    ) -> dict[str, dict[int, StandingLabel]]:
        """Bring `pages` up to date and return the labels of those that are other than before, by key and index."""
        changed: dict[str, dict[int, StandingLabel]] = {}
        wanted: dict[str, _Page] = {}
        for key in written if listed is None else ():
            # Its size and time are of the version before, so that the next listing has it looked at once more.
            wanted[key] = pages.get(key, _Page(-1, 0.0, begun, False, "", False))
        if listed is not None:
            newest_s = max((info.modified_s for info in listed.values()), default=0.0)
            for key, info in listed.items():
                known = pages.get(key)
                is_same = known is not None and (known.size_bytes, known.modified_s) == (
                    info.size_bytes,
                    info.modified_s,
                )
                first_s = known.first_seen_s if known is not None and is_same else begun
                is_settled = newest_s - info.modified_s > _TICK_S or begun - first_s > _TICK_S
                if not (known is not None and is_same and known.is_settled) or key in written:
                    etag, is_damaged = ("", False) if known is None else (known.etag, known.is_damaged)
                    wanted[key] = _Page(info.size_bytes, info.modified_s, first_s, is_settled, etag, is_damaged)
            for key in pages.keys() - listed.keys():
                del pages[key]
                changed[key] = {}
        keys = sorted(wanted)
        for first in range(0, len(keys), _PAGES_IN_FLIGHT):
            group = keys[first : first + _PAGES_IN_FLIGHT]
            for key, found in zip(group, self._readers.map(self._bytes_of, group), strict=True):
                page = wanted[key]
                if found is None:
                    if pages.pop(key, None) is not None:
                        changed[key] = {}
                    continue
                data, etag = found
                if etag != page.etag or key not in pages:
                    labels = _labels(key, data)
                    changed[key] = labels or {}
                    page = _Page(
                        page.size_bytes, page.modified_s, page.first_seen_s, page.is_settled, etag, labels is None
                    )
                pages[key] = page
        return changed

    def _list(self, transcoder: str) -> dict[str, ObjectInfo]:
        return {info.key: info for info in self._store.list(labels_folder(transcoder)) if _PAGE.search(info.key)}

    def _bytes_of(self, key: str) -> tuple[bytes, str] | None:
        try:
            data, info = self._store.get_with_info(key)
        except NotFoundError:
            return None
        return data, info.etag


def _labels(key: str, data: bytes) -> dict[int, StandingLabel] | None:
    """What stands in a page, by index; None where it is damaged."""
    try:
        found = page_labels(key, decode_json(key, data))
        first = _place(key)[1]
        if not all(first <= each.place.index < first + FEATURES_A_PAGE for each in found):
            raise DataLossError(f"object {key!r} has features of another page; restore it from a backup")
        return {each.place.index: _standing(label) for each in found if (label := each.label()) is not None}
    except (DataLossError, UnicodeEncodeError) as error:
        _LOG.warning("a page of labels is passed over", page=key, error=str(error))
        return None


def _standing(label: Label) -> StandingLabel:
    # Text that is none, and a number that is too large, would stop all others from being shown.
    label.text.encode()
    scores = {
        kind.value: StandingScore(score.value, min(score.n, _MOST_TRIALS)) for kind, score in label.scores.items()
    }
    return StandingLabel(label.text, label.origin.value, label.explainer, label.prompt_sha256, scores)


def _with(
    before: LabelBlocks, changed: Mapping[str, Mapping[int, StandingLabel]], pages: Mapping[str, _Page]
) -> LabelBlocks:
    """Labels with some pages in the place of what they were; blocks that none of them is in are the same objects."""
    blocks = dict(before.blocks)
    of_block: dict[tuple[int, int], list[str]] = defaultdict(list)
    for key in changed:
        layer, first = _place(key)
        of_block[layer, first // FEATURES_A_BLOCK].append(key)
    for place, keys in of_block.items():
        there: Mapping[int, StandingLabel] = blocks[place].labels() if place in blocks else {}
        replaced = {_place(key)[1] // FEATURES_A_PAGE for key in keys}
        kept = {index: label for index, label in there.items() if index // FEATURES_A_PAGE not in replaced}
        labels = {**kept, **_joined(changed[key] for key in keys)}
        if labels:
            blocks[place] = LabelBlock(labels)
        else:
            blocks.pop(place, None)
    return LabelBlocks(blocks, sorted(key for key, page in pages.items() if page.is_damaged))


def _joined(pages: Iterable[Mapping[int, StandingLabel]]) -> dict[int, StandingLabel]:
    return {index: label for page in pages for index, label in page.items()}


def _place(key: str) -> tuple[int, int]:
    """Layer and first feature of a page."""
    layer, page = key.removesuffix(".json").split("/")[-2:]
    return int(layer), int(page) * FEATURES_A_PAGE
