"""
Labels in the bucket, in pages.

A change is one conditional write of one page, so that of two writers at once neither loses anything. A page is bounded,
since a feature keeps a few revisions in it and older ones move out; one that stands never does.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from weft_attribution.core.label_pages import (
    LabelledFeature,
    feature_id,
    history_folder,
    labelled,
    labels_folder,
    page_key,
    page_labels,
    with_revisions,
)
from weft_attribution.core.labels import Label, Origin, Place, Score, ScoreKind, same_words
from weft_common.errors import (
    AlreadyExistsError,
    ConflictError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
)
from weft_store.documents import Document, create_json, encode_json, read_json, update_json
from weft_store.port import ObjectStore

__all__ = ["Imported", "LabelStore"]

REVISIONS_A_FEATURE = 8
MAX_REVISIONS = 100_000


@dataclass(frozen=True)
class Imported:
    """How many labels an import added, and how many were there already."""

    num_added: int
    num_unchanged: int


class LabelStore:
    """
    Reads and writes the labels of all transcoders. Calls block.

    Args:
        store: The bucket.
        clock: Seconds since 1970.
        changed: Told the key of a page after every write of it, also of one that failed.
    """

    def __init__(
        self,
        store: ObjectStore,
        clock: Callable[[], float] = time.time,
        changed: Callable[[str], None] = lambda key: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._changed = changed

    def get(self, transcoder: str, place: Place) -> LabelledFeature:
        """What the page has of one feature; without revisions where nothing was ever said. DataLossError names it."""
        key = page_key(transcoder, place)
        try:
            document, _ = read_json(self._store, key)
        except NotFoundError:
            document = {}
        try:
            return labelled(document, place)
        except DataLossError as error:
            raise DataLossError(f"{error.message} (object {key!r})") from None

    def page(self, transcoder: str, place: Place) -> list[LabelledFeature]:
        """Everything in the page that a feature is in, by place."""
        key = page_key(transcoder, place)
        try:
            document, _ = read_json(self._store, key)
        except NotFoundError:
            return []
        return page_labels(key, document)

    def add(self, transcoder: str, label: Label, *, etag: str = "") -> LabelledFeature:
        """
        Keep a label as the newest revision of its feature; one without text withdraws what its origin said.

        Args:
            transcoder: Id of the transcoder.
            label: A checked label, or one without text.
            etag: What the feature's must be; empty for any, 0 for there to be no label, withdrawn ones aside.

        Raises:
            ConflictError: The etag is another by now.
            NotFoundError: There is nothing to withdraw.
        """

        def change(document: Document) -> Document:
            there = labelled(document, label.place)
            if not label.text and there.label(label.origin) is None:
                raise NotFoundError(f"feature {feature_id(label.place)} has no label of a {label.origin.value}")
            if etag and etag != there.etag and not (etag == "0" and there.label() is None):
                raise _conflict(there, etag)
            return self._with(transcoder, document, label)

        return labelled(self._change(page_key(transcoder, label.place), change), label.place)

    def add_many(self, transcoder: str, labels: Sequence[Label]) -> Imported:
        """
        Keep many labels, a page at a time; what is there word for word is left.

        Where it fails between two pages, the pages before are written; the same call again writes the others.
        """
        by_page: dict[str, list[Label]] = defaultdict(list)
        for label in labels:
            by_page[page_key(transcoder, label.place)].append(label)
        num_added = 0
        for key, group in by_page.items():
            added: list[Label] = []

            def change(document: Document, group: list[Label] = group, added: list[Label] = added) -> Document:
                added.clear()
                for label in group:
                    there = labelled(document, label.place).label(label.origin)
                    if there is None or not same_words(there, label):
                        document = self._with(transcoder, document, label)
                        added.append(label)
                return document

            self._change(key, change)
            num_added += len(added)
        return Imported(num_added, len(labels) - num_added)

    def add_scores(self, transcoder: str, place: Place, revision: int, scores: Mapping[ScoreKind, Score]) -> bool:
        """
        Keep scores with the label that they are of, in the place of older ones of their kinds.

        Returns:
            Whether that label is still what its origin says; otherwise nothing is kept.
        """
        kept = False

        def change(document: Document) -> Document:
            nonlocal kept
            there = list(labelled(document, place).revisions)
            at = next((at for at, each in enumerate(there) if each.revision == revision), None)
            # One that was replaced may lie elsewhere already, and what lies there never changes.
            kept = at is not None and _last(there, there[at].origin) is there[at] and bool(there[at].text)
            if at is None or not kept:
                return document
            old = there[at].scores
            new = {kind: replace(score, create_s=self._clock()) for kind, score in scores.items()}
            for kind, score in old.items():
                if kind in new and replace(new[kind], create_s=score.create_s) == score:
                    # The same once more: nothing is written.
                    new[kind] = score
            there[at] = replace(there[at], scores={**old, **new})
            return with_revisions(document, place, there)

        self._change(page_key(transcoder, place), change)
        return kept

    def walk(
        self, transcoder: str, *, layer: int | None = None, after: Place | None = None
    ) -> Iterator[LabelledFeature]:
        """All features that something was ever said of, by layer and index, beginning after a place."""
        folder = labels_folder(transcoder)
        first = "" if after is None else page_key(transcoder, after)
        for info in self._store.list(folder if layer is None else f"{folder}{layer:04d}/"):
            if info.key < first:
                continue
            try:
                document, _ = read_json(self._store, info.key)
            except NotFoundError:
                continue
            for each in page_labels(info.key, document):
                if after is None or each.place > after:
                    yield each

    def history(self, transcoder: str, place: Place) -> list[Label]:
        """Every revision of a feature, newest first."""
        # The page comes first: a revision leaves it after it was written elsewhere.
        found = {each.revision: each for each in self.get(transcoder, place).revisions}
        for info in self._store.list(history_folder(transcoder, place)):
            document, _ = read_json(self._store, info.key)
            label = Label.from_json(place, document)
            found.setdefault(label.revision, label)
        return [found[number] for number in sorted(found, reverse=True)]

    def _with(self, transcoder: str, document: Document, label: Label) -> Document:
        """A page with one label more; what has no place in it any more is written elsewhere before."""
        there = list(labelled(document, label.place).revisions)
        number = there[-1].revision + 1 if there else 1
        if number > MAX_REVISIONS:
            raise FailedPreconditionError(
                f"feature {feature_id(label.place)} was labelled {MAX_REVISIONS} times; that is all that is kept"
            )
        there.append(replace(label, revision=number, create_s=self._clock()))
        while len(there) > REVISIONS_A_FEATURE:
            kept = {each.revision for each in (_last(there, origin) for origin in Origin) if each is not None}
            oldest = next(each for each in there if each.revision not in kept)
            self._move_out(f"{history_folder(transcoder, label.place)}{oldest.revision:06d}.json", oldest)
            there.remove(oldest)
        return with_revisions(document, label.place, there)

    def _move_out(self, key: str, label: Label) -> None:
        """
        Write a revision down outside of its page.

        Who read the page earlier, and will not be allowed to change it, may write later than who is: what has the
        newer scores stays.
        """
        while True:
            try:
                create_json(self._store, key, label.to_json())
                return
            except AlreadyExistsError:
                document, etag = read_json(self._store, key)
            if _scored_s(Label.from_json(label.place, document)) >= _scored_s(label):
                return
            with suppress(ConflictError):
                self._store.put(key, encode_json(label.to_json()), if_match=etag)
                return

    def _change(self, key: str, change: Callable[[Document], Document]) -> Document:
        try:
            return self._write(key, change)
        finally:
            # One that failed may have been written all the same.
            self._changed(key)

    def _write(self, key: str, change: Callable[[Document], Document]) -> Document:
        while True:
            try:
                return update_json(self._store, key, change)
            except NotFoundError:
                document = change({})
                if not document:
                    return document
            try:
                create_json(self._store, key, document)
            except AlreadyExistsError:
                continue
            return document


def _last(revisions: Sequence[Label], origin: Origin) -> Label | None:
    """The last revision of an origin, withdrawn or not: without it, the one before would stand again."""
    return next((each for each in reversed(revisions) if each.origin is origin), None)


def _scored_s(label: Label) -> float:
    """When its last score was made; 0 without one."""
    return max((score.create_s for score in label.scores.values()), default=0.0)


def _conflict(there: LabelledFeature, etag: str) -> ConflictError:
    if there.revisions and there.label() is None:
        return ConflictError(
            f"the label of feature {feature_id(there.place)} was withdrawn, which is its etag {there.etag}, not "
            f"{etag[:40]!r}; to label it anew give etag 0, its history shows what was said"
        )
    return ConflictError(
        f"feature {feature_id(there.place)} is at etag {there.etag}, not {etag[:40]!r}: somebody else has said "
        "something meanwhile; read the label again and decide anew"
    )
