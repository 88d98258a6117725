# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Labels of features."""

import uuid
from collections.abc import Iterable, Iterator, Sequence

from google.longrunning import operations_pb2

from weft.features.v1 import interpretation_pb2, labels_pb2, labels_pb2_grpc, service_pb2_grpc
from weft_client.names import full_name
from weft_client.sync.calls import pages, unary
from weft_client.sync.connection import Connection
from weft_common.errors import InvalidArgumentError

IMPORT_S = 300.0
"""Deadline of one call with many labels, in seconds."""
_LABELS_A_CALL = 1_000
_LABELS_A_PAGE = 1_000


class Labels:
    """What people and models say that features stand for; served by the attribution service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _features(self) -> "service_pb2_grpc.FeatureServiceStub":
        return service_pb2_grpc.FeatureServiceStub(self._connection.channel("attribution"))

    @property
    def _stub(self) -> "labels_pb2_grpc.LabelServiceStub":
        return labels_pb2_grpc.LabelServiceStub(self._connection.channel("attribution"))

    def get(self, transcoder: str, *, layer: int, index: int) -> labels_pb2.Label:
        """The label that stands; NotFoundError where there is none."""
        return unary(self._stub.GetLabel, labels_pb2.GetLabelRequest(name=_name(transcoder, layer, index)))

    def set(
        self, transcoder: str, *, layer: int, index: int, text: str, author: str = "", etag: str = ""
    ) -> labels_pb2.Label:
        """
        Label a feature as a person.

        Args:
            transcoder: Id or name.
            layer: Layer of the feature.
            index: Index within the layer.
            text: One line of plain text.
            author: Who says it.
            etag: That of the label it is to follow, or "0" where there must be none; ConflictError where it is another.
        """
        label = labels_pb2.Label(
            name=_name(transcoder, layer, index), text=text, origin=labels_pb2.LABEL_ORIGIN_HUMAN, author=author
        )
        return unary(self._stub.UpdateLabel, labels_pb2.UpdateLabelRequest(label=label, etag=etag))

    def delete(
        self,
        transcoder: str,
        *,
        layer: int,
        index: int,
        origin: labels_pb2.LabelOrigin.ValueType = labels_pb2.LABEL_ORIGIN_HUMAN,
        etag: str = "",
    ) -> None:
        """Withdraw what an origin says of a feature; the history keeps it."""
        name = _name(transcoder, layer, index)
        unary(self._stub.DeleteLabel, labels_pb2.DeleteLabelRequest(name=name, origin=origin, etag=etag))

    def list(
        self,
        transcoder: str,
        *,
        layer: int | None = None,
        origin: labels_pb2.LabelOrigin.ValueType = labels_pb2.LABEL_ORIGIN_UNSPECIFIED,
    ) -> Iterator[labels_pb2.Label]:
        """Labels that stand, by layer and index; with an origin, what that one says, also where another one stands."""
        request = labels_pb2.ListLabelsRequest(
            parent=full_name("transcoders", transcoder), layer=layer, origin=origin, page_size=_LABELS_A_PAGE
        )
        return pages(self._stub.ListLabels, request, lambda page: page.labels)

    def history(self, transcoder: str, *, layer: int, index: int) -> Iterator[labels_pb2.Label]:
        """Everything that was ever said of a feature, newest first."""
        request = labels_pb2.ListLabelRevisionsRequest(name=_name(transcoder, layer, index))
        return pages(self._stub.ListLabelRevisions, request, lambda page: page.revisions)

    def add(
        self, transcoder: str, labels: Iterable[labels_pb2.Label], *, validate_only: bool = False
    ) -> labels_pb2.ImportLabelsResponse:
        """
        Add many labels, a thousand a call; sent again, it changes nothing more.

        Args:
            transcoder: Id or name.
            labels: With layer, index, text and origin; `weft_client.label_files` reads them from files.
            validate_only: Check everything and change nothing.

        Raises:
            InvalidArgumentError: A feature has two labels of one origin; nothing was added.
        """
        parent = full_name("transcoders", transcoder)
        done = labels_pb2.ImportLabelsResponse()
        for group in _groups(_distinct(list(labels))):
            request = labels_pb2.ImportLabelsRequest(parent=parent, labels=group, validate_only=validate_only)
            part = unary(self._stub.ImportLabels, request, timeout_s=IMPORT_S)
            done.num_added += part.num_added
            done.num_unchanged += part.num_unchanged
        return done

    def explain(
        self,
        transcoder: str,
        *,
        scope: interpretation_pb2.InterpretationScope,
        prompt: str = "",
        num_examples: int = 0,
        request_id: str = "",
        validate_only: bool = False,
    ) -> operations_pb2.Operation:
        """
        Have a language model label features; wait for it with `operations.wait`.

        Args:
            transcoder: Id or name.
            scope: Which features, and how much may be spent.
            prompt: Which prompt; empty takes the newest.
            num_examples: Most examples of one feature; 0 means the service's default.
            request_id: A UUID of your own, to repeat this very request; one is made where there is none.
            validate_only: Check everything and change nothing.
        """
        request = interpretation_pb2.ExplainFeaturesRequest(
            parent=full_name("transcoders", transcoder),
            scope=scope,
            prompt=prompt,
            num_examples=num_examples,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return unary(self._features.ExplainFeatures, request)

    def score(
        self,
        transcoder: str,
        *,
        scope: interpretation_pb2.InterpretationScope,
        kinds: Sequence[labels_pb2.ScoreKind.ValueType] = (),
        num_examples: int = 0,
        control: bool = False,
        request_id: str = "",
        validate_only: bool = False,
    ) -> operations_pb2.Operation:
        """
        Score the labels that stand; wait for it with `operations.wait`.

        Args:
            transcoder: Id or name.
            scope: Which features, and how much may be spent.
            kinds: Tests; none means detection and fuzzing.
            num_examples: Most active lines of one feature, and as many silent ones; 0 means the service's default.
            control: Test shuffled labels beside.
            request_id: As of `explain`.
            validate_only: Check everything and change nothing.
        """
        request = interpretation_pb2.ScoreFeaturesRequest(
            parent=full_name("transcoders", transcoder),
            scope=scope,
            kinds=kinds,
            num_examples=num_examples,
            control=control,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return unary(self._features.ScoreFeatures, request)


def _name(transcoder: str, layer: int, index: int) -> str:
    return f"{full_name('transcoders', transcoder)}/features/{layer}-{index}/label"


def _distinct(labels: Sequence[labels_pb2.Label]) -> Sequence[labels_pb2.Label]:
    """The labels, looked at before the first is sent; a service sees those of one call alone."""
    seen: set[tuple[int, int, int]] = set()
    for label in labels:
        place = label.layer, label.index, label.origin
        if place in seen:
            raise InvalidArgumentError(
                f"feature {label.layer}-{label.index} stands in labels twice with the same origin; give one of them",
                field="labels",
            )
        seen.add(place)
    return labels


def _groups(labels: Iterable[labels_pb2.Label]) -> Iterable[Sequence[labels_pb2.Label]]:
    group: list[labels_pb2.Label] = []
    for label in labels:
        group.append(label)
        if len(group) == _LABELS_A_CALL:
            yield group
            group = []
    if group:
        yield group
