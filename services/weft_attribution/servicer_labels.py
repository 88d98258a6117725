# ruff: noqa: N802  gRPC names the methods
"""weft.features.v1.LabelService: what people and models say that features stand for."""

import asyncio
from collections.abc import Iterable
from itertools import islice

import grpc.aio

from weft.features.v1 import labels_pb2, labels_pb2_grpc
from weft_attribution.converting_interpretation import SCORE_NUMBERS
from weft_attribution.core.label_pages import LabelledFeature, etag_of
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Origin, Place, Score, ScoreKind, check_label
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.label_names import label_name, label_of, place_of
from weft_attribution.timestamps import timestamp
from weft_common.errors import InvalidArgumentError, NotFoundError
from weft_common.pages import paginate
from weft_common.resource_names import parse_name
from weft_store.port import ObjectStore

__all__ = ["LabelServicer"]

Context = grpc.aio.ServicerContext[object, object]
_MAX_IMPORTED = 1_000
_DEFAULT_PAGE, _MAX_PAGE = 50, 1_000
_ORIGINS = {
    labels_pb2.LABEL_ORIGIN_UNSPECIFIED: Origin.HUMAN,
    labels_pb2.LABEL_ORIGIN_HUMAN: Origin.HUMAN,
    labels_pb2.LABEL_ORIGIN_MODEL: Origin.MODEL,
}
_NUMBERS = {origin: number for number, origin in _ORIGINS.items() if number}


def label_to_proto(transcoder: str, label: Label, etag: str = "") -> labels_pb2.Label:
    """A revision as a message."""
    return labels_pb2.Label(
        name=label_name(transcoder, label.place),
        layer=label.place.layer,
        index=label.place.index,
        text=label.text,
        origin=_NUMBERS[label.origin],
        author=label.author,
        explainer=label.explainer,
        prompt=label.prompt,
        prompt_sha256=label.prompt_sha256,
        revision=label.revision,
        etag=etag,
        create_time=timestamp(label.create_s),
        scores=[_score(kind, score) for kind, score in sorted(label.scores.items())],
    )


def _score(kind: ScoreKind, score: Score) -> labels_pb2.LabelScore:
    return labels_pb2.LabelScore(
        kind=SCORE_NUMBERS[kind],
        value=score.value,
        low=score.low,
        high=score.high,
        num_trials=score.n,
        num_unanswered=score.num_unanswered,
        scorer=score.scorer,
        prompt=score.prompt,
        prompt_sha256=score.prompt_sha256,
        create_time=timestamp(score.create_s),
    )


def _origin(number: labels_pb2.LabelOrigin.ValueType, field: str) -> Origin:
    if number not in _ORIGINS:
        raise InvalidArgumentError(f"{field} is {number}, which is no origin; give HUMAN or MODEL", field=field)
    return _ORIGINS[number]


def _label(message: labels_pb2.Label, place: Place, field: str) -> Label:
    return check_label(
        Label(
            place,
            message.text,
            _origin(message.origin, f"{field}.origin"),
            author=message.author,
            explainer=message.explainer,
            prompt=message.prompt,
            prompt_sha256=message.prompt_sha256,
        ),
        field,
    )


class LabelServicer(labels_pb2_grpc.LabelServiceServicer):
    """
    Answers the RPCs on labels.

    Args:
        store: The bucket, for the transcoders.
        labels: The labels in it.
    """

    def __init__(self, store: ObjectStore, labels: LabelStore) -> None:
        self._store = store
        self._labels = labels

    def _check_places(self, transcoder: str, places: Iterable[Place], field: str) -> None:
        """Refuse features that the transcoder does not have. NotFoundError."""
        reader = TranscoderReader(self._store, transcoder)
        sizes: dict[int, int] = {}
        for place in places:
            if place.layer not in sizes:
                if not reader.has_layer(place.layer):
                    raise NotFoundError(f"transcoders/{transcoder} has no layer {place.layer}", field=field)
                sizes[place.layer] = reader.encoder_shape(place.layer)[0]
            if place.index >= sizes[place.layer]:
                raise NotFoundError(
                    f"layer {place.layer} of transcoders/{transcoder} has no feature {place.index}; "
                    f"it has {sizes[place.layer]}",
                    field=field,
                )

    async def GetLabel(self, request: labels_pb2.GetLabelRequest, context: Context) -> labels_pb2.Label:
        transcoder, place = label_of(request.name)
        found = await asyncio.to_thread(self._labels.get, transcoder, place)
        label = found.label()
        if label is None:
            raise NotFoundError(f"{request.name} is not there: nobody has labelled this feature, or no longer does")
        return label_to_proto(transcoder, label, found.etag)

    async def UpdateLabel(self, request: labels_pb2.UpdateLabelRequest, context: Context) -> labels_pb2.Label:
        transcoder, place = label_of(request.label.name, "label.name")
        label = _label(request.label, place, "label")

        def add() -> LabelledFeature:
            self._check_places(transcoder, [place], "label.name")
            return self._labels.add(transcoder, label, etag=request.etag)

        added = await asyncio.to_thread(add)
        return label_to_proto(transcoder, added.revisions[-1], added.etag)

    async def DeleteLabel(
        self, request: labels_pb2.DeleteLabelRequest, context: Context
    ) -> labels_pb2.DeleteLabelResponse:
        transcoder, place = label_of(request.name)
        withdrawn = Label(place, "", _origin(request.origin, "origin"))
        await asyncio.to_thread(self._labels.add, transcoder, withdrawn, etag=request.etag)
        return labels_pb2.DeleteLabelResponse()

    async def ListLabels(
        self, request: labels_pb2.ListLabelsRequest, context: Context
    ) -> labels_pb2.ListLabelsResponse:
        transcoder = parse_name(request.parent, "transcoders", field="parent")
        origin = _origin(request.origin, "origin") if request.origin else None
        layer = request.layer if request.HasField("layer") else None
        if layer is not None and not 0 <= layer <= 9_999:
            raise InvalidArgumentError(f"layer is {layer}; layers count from 0", field="layer")
        if request.page_size < 0:
            raise InvalidArgumentError(
                f"page_size is {request.page_size}; give 0 for the default of {_DEFAULT_PAGE}, or up to {_MAX_PAGE}",
                field="page_size",
            )
        after = place_of(request.page_token, "page_token") if request.page_token else None
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)

        def page() -> list[tuple[Label, str]]:
            TranscoderReader(self._store, transcoder)
            walk = self._labels.walk(transcoder, layer=layer, after=after)
            labelled = ((label, each.etag) for each in walk if (label := each.label(origin)) is not None)
            return list(islice(labelled, size + 1))

        found = await asyncio.to_thread(page)
        last = found[size - 1][0].place if len(found) > size else None
        return labels_pb2.ListLabelsResponse(
            labels=[label_to_proto(transcoder, label, etag) for label, etag in found[:size]],
            next_page_token="" if last is None else f"{last.layer}-{last.index}",
        )

    async def ListLabelRevisions(
        self, request: labels_pb2.ListLabelRevisionsRequest, context: Context
    ) -> labels_pb2.ListLabelRevisionsResponse:
        transcoder, place = label_of(request.name)
        found = await asyncio.to_thread(self._labels.history, transcoder, place)
        # The newest has the smallest key.
        page, token = paginate(
            found, request.page_size, request.page_token, lambda label: f"{10**9 - label.revision:09d}"
        )
        return labels_pb2.ListLabelRevisionsResponse(
            revisions=[label_to_proto(transcoder, label) for label in page],
            next_page_token=token,
            etag=etag_of(found),
        )

    async def ImportLabels(
        self, request: labels_pb2.ImportLabelsRequest, context: Context
    ) -> labels_pb2.ImportLabelsResponse:
        transcoder = parse_name(request.parent, "transcoders", field="parent")
        if not 1 <= len(request.labels) <= _MAX_IMPORTED:
            raise InvalidArgumentError(
                f"labels has {len(request.labels)} of them; give 1 to {_MAX_IMPORTED}, and more in several calls",
                field="labels",
            )
        labels = []
        for number, message in enumerate(request.labels):
            field = f"labels[{number}]"
            place = place_of(f"{message.layer}-{message.index}", f"{field}.index")
            labels.append(_label(message, place, field))
        if len({(label.place, label.origin) for label in labels}) != len(labels):
            raise InvalidArgumentError("a feature stands in labels twice with the same origin", field="labels")

        def add() -> labels_pb2.ImportLabelsResponse:
            self._check_places(transcoder, (label.place for label in labels), "labels")
            if request.validate_only:
                return labels_pb2.ImportLabelsResponse()
            done = self._labels.add_many(transcoder, labels)
            return labels_pb2.ImportLabelsResponse(num_added=done.num_added, num_unchanged=done.num_unchanged)

        return await asyncio.to_thread(add)
