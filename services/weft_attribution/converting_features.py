"""Between protobuf messages and features, their indexes and what is asked of them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf import field_mask_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from weft.features.v1 import index_pb2, queries_pb2, service_pb2
from weft_attribution.core.feature_cards import FeatureCard, TokenWeights
from weft_attribution.core.feature_index.gathering import bin_edges
from weft_attribution.core.feature_index.opened import FeatureRow, OpenIndex
from weft_attribution.core.feature_index.queries import Bounds, FeatureFilter
from weft_attribution.core.feature_index.settings import ActivityRule, IndexRequest, IndexSettings
from weft_attribution.core.feature_ports import Examples, LabelRecord, Window
from weft_attribution.timestamps import timestamp
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import check_id, parse_child_name, parse_name
from weft_common.token_texts import run_texts

__all__ = [
    "LISTED",
    "ON_REQUEST",
    "card_into_proto",
    "examples_to_proto",
    "feature_place",
    "filter_from_proto",
    "index_name",
    "index_request_from_proto",
    "index_request_to_proto",
    "index_to_proto",
    "label_to_proto",
    "masked",
    "row_into_proto",
    "statistics_to_proto",
    "summary_to_proto",
    "wanted_fields",
    "window_to_proto",
]

M = TypeVar("M", bound=Message)
_FEATURE = re.compile(r"(\d{1,6})-(\d{1,9})")
_STATES = (
    index_pb2.FEATURE_STATE_DEAD,
    index_pb2.FEATURE_STATE_ACTIVE,
    index_pb2.FEATURE_STATE_DENSE,
)
_LABEL_STATES = {
    queries_pb2.LABEL_STATE_UNSPECIFIED: "",
    queries_pb2.LABEL_STATE_LABELLED: "labelled",
    queries_pb2.LABEL_STATE_UNLABELLED: "unlabelled",
    queries_pb2.LABEL_STATE_HUMAN: "human",
    queries_pb2.LABEL_STATE_MODEL: "model",
}
_RULES: Mapping[str, index_pb2.ActivityRule.ValueType] = {
    ActivityRule.THRESHOLD: index_pb2.ACTIVITY_RULE_THRESHOLD,
    ActivityRule.THRESHOLD_FOR_COUNT: index_pb2.ACTIVITY_RULE_THRESHOLD_FOR_COUNT,
}
LISTED = ("name", "layer", "index", "statistics", "label")
"""Fields of Feature that lists fill."""
ON_REQUEST = ("target_logits", "quiet_examples")
"""Fields of Feature that only a mask brings."""


def feature_place(name: str, field: str = "name") -> tuple[str, int, int]:
    """
    Transcoder, layer and index within a feature's name.

    >>> feature_place("transcoders/t/features/12-345")
    ('t', 12, 345)
    """
    transcoder, feature = parse_child_name(name, "transcoders", "features", field=field)
    place = _FEATURE.fullmatch(feature)
    if place is None:
        raise InvalidArgumentError(
            f"{field} ends in {feature!r}; a feature is {{layer}}-{{index}}, for example 12-345", field=field
        )
    return transcoder, int(place[1]), int(place[2])


def wanted_fields(
    mask: field_mask_pb2.FieldMask, default: Sequence[str], kind: Descriptor = service_pb2.Feature.DESCRIPTOR
) -> set[str]:
    """
    Which fields of Feature, or of another kind of message, a mask asks for at all.

    Raises:
        InvalidArgumentError: It names a field that there is not.
    """
    for path in mask.paths:
        if not field_mask_pb2.FieldMask(paths=[path]).IsValidForDescriptor(kind):
            raise InvalidArgumentError(
                f"read_mask has {path[:100]!r}, which is no field of {kind.name}; its fields are "
                f"{', '.join(kind.fields_by_name)}",
                field="read_mask",
            )
    return {path.split(".")[0] for path in mask.paths} or set(default)


def masked(feature: M, mask: field_mask_pb2.FieldMask) -> M:
    """What a mask leaves of a feature; all of it where it names nothing."""
    if not mask.paths:
        return feature
    found = type(feature)()
    mask.MergeMessage(feature, found)
    return found


def index_request_from_proto(request: index_pb2.IndexFeaturesRequest) -> IndexRequest:
    """What is asked for, with defaults filled in. InvalidArgumentError."""
    asked, default = request.settings, IndexSettings()
    return IndexRequest(
        transcoder=parse_name(request.transcoder, "transcoders", field="transcoder"),
        index_id=check_id(request.index_id, field="index_id"),
        dataset=parse_name(request.dataset, "datasets", field="dataset"),
        held_out=request.held_out,
        max_tokens=request.max_tokens,
        settings=IndexSettings(
            num_top=asked.num_top or default.num_top,
            num_sampled=asked.num_sampled or default.num_sampled,
            num_quantiles=asked.num_quantiles or default.num_quantiles,
            window_tokens=asked.window_tokens or default.window_tokens,
            dense_share=asked.dense_share or default.dense_share,
            num_neighbours=asked.num_neighbours or default.num_neighbours,
            coactivation_tokens=asked.coactivation_tokens or default.coactivation_tokens,
            pool_windows=asked.pool_windows or default.pool_windows,
            seed=asked.seed,
        ),
    )


def index_request_to_proto(request: IndexRequest) -> index_pb2.IndexFeaturesRequest:
    """The same with every default written out, so that equal questions are equal messages."""
    return index_pb2.IndexFeaturesRequest(
        transcoder=f"transcoders/{request.transcoder}",
        index_id=request.index_id,
        dataset=f"datasets/{request.dataset}",
        held_out=request.held_out,
        max_tokens=request.max_tokens,
        settings=_settings(request.settings),
    )


def _settings(settings: IndexSettings) -> index_pb2.FeatureIndexSettings:
    return index_pb2.FeatureIndexSettings(
        num_top=settings.num_top,
        num_sampled=settings.num_sampled,
        num_quantiles=settings.num_quantiles,
        window_tokens=settings.window_tokens,
        dense_share=settings.dense_share,
        num_neighbours=settings.num_neighbours,
        coactivation_tokens=settings.coactivation_tokens,
        pool_windows=settings.pool_windows,
        seed=settings.seed,
    )


def index_to_proto(manifest: Mapping[str, Any]) -> index_pb2.FeatureIndex:
    """A whole index."""
    request = IndexRequest.from_json(manifest["request"])
    return index_pb2.FeatureIndex(
        name=index_name(request.transcoder, request.index_id),
        dataset=f"datasets/{request.dataset}",
        held_out=request.held_out,
        settings=_settings(request.settings),
        num_tokens=manifest["num_tokens"],
        num_sequences=manifest["num_sequences"],
        num_features=[layer["num_features"] for layer in manifest["layers"]],
        num_dead=manifest["num_dead"],
        num_dense=manifest["num_dense"],
        coactivation_tokens=manifest["coactivation_tokens"],
        create_time=timestamp(manifest["create_s"]),
        histogram_edges=bin_edges().tolist(),
        model=f"models/{manifest['model']}",
        # Indexes of before do not tell.
        activity_rule=_RULES.get(str(manifest.get("activity_rule")), index_pb2.ACTIVITY_RULE_UNSPECIFIED),
    )


def index_name(transcoder: str, index_id: str) -> str:
    """
    Name of an index.

    >>> index_name("t", "i1")
    'transcoders/t/indexes/i1'
    """
    return f"transcoders/{transcoder}/indexes/{index_id}"


def filter_from_proto(asked: queries_pb2.FeatureFilter) -> FeatureFilter:
    """Which features are wanted. InvalidArgumentError."""
    for state in asked.states:
        if state not in _STATES:
            raise InvalidArgumentError(f"filter.states has {state}; give active, dead or dense", field="filter.states")
    if asked.label_state not in _LABEL_STATES:
        raise InvalidArgumentError(
            f"filter.label_state is {asked.label_state}, which is not known here", field="filter.label_state"
        )
    return FeatureFilter(
        layers=tuple(sorted(set(asked.layers))),
        states=tuple(sorted({_STATES.index(state) for state in asked.states})),
        density=_bounds(asked.density, "density"),
        max_activation=_bounds(asked.max_activation, "max_activation"),
        decoder_norm=_bounds(asked.decoder_norm, "decoder_norm"),
        label_state=_LABEL_STATES[asked.label_state],
        score_kind=asked.score_kind,
        score=_bounds(asked.score, "score"),
    )


def _bounds(asked: queries_pb2.Bounds, name: str) -> Bounds:
    least = asked.min if asked.HasField("min") else None
    most = asked.max if asked.HasField("max") else None
    if any(each is not None and math.isnan(each) for each in (least, most)):
        raise InvalidArgumentError(f"filter.{name} has a bound that is no number", field=f"filter.{name}")
    return Bounds(least, most)


def label_to_proto(label: LabelRecord) -> index_pb2.StandingLabel:
    """The label that stands for a feature."""
    return index_pb2.StandingLabel(
        text=label.text,
        is_human=label.origin == "human",
        scores={str(kind): float(score.value) for kind, score in label.scores.items()},
        explainer=label.explainer,
        is_imported=label.origin != "human" and not label.prompt_sha256,
    )


def statistics_to_proto(index: OpenIndex, number: int) -> index_pb2.FeatureStatistics:
    """Figures of a feature, without its histogram."""
    columns = index.columns
    return index_pb2.FeatureStatistics(
        index=index_name(index.transcoder, index.index_id),
        num_active=int(columns["num_active"][number]),
        density=float(columns["density"][number]),
        max_activation=float(columns["largest"][number]),
        mean_activation=float(columns["mean"][number]),
        state=_STATES[int(index.state_of_each[number])],
        decoder_norm=float(columns["norm"][number]),
        first_layer=int(columns["first_layer"][number]),
        last_layer=int(columns["last_layer"][number]),
    )


def summary_to_proto(
    transcoder: str, layer: int, feature: int, index: OpenIndex | None, label: LabelRecord | None
) -> service_pb2.Feature:
    """A feature as lists show it."""
    shown = service_pb2.Feature(name=f"transcoders/{transcoder}/features/{layer}-{feature}", layer=layer, index=feature)
    if index is not None and index.has(layer, feature):
        shown.statistics.CopyFrom(statistics_to_proto(index, index.number(layer, feature)))
    if label is not None:
        shown.label.CopyFrom(label_to_proto(label))
    return shown


def row_into_proto(feature: service_pb2.Feature, row: FeatureRow) -> None:
    """Fill in what an index keeps of a feature besides its summary and its text."""
    feature.statistics.histogram.extend(row.histogram)
    feature.neighbours.extend(
        index_pb2.FeatureNeighbour(index=other, cosine=cosine) for other, cosine in row.neighbours
    )
    feature.partners.extend(
        index_pb2.FeaturePartner(index=other, count=count, share=share) for other, count, share in row.partners
    )


def examples_to_proto(examples: Examples, piece_of: Mapping[int, bytes]) -> list[index_pb2.FeatureExample]:
    """Strongest stretches, then those drawn, strongest quantile first."""
    drawn = sorted(examples.by_quantile, key=lambda window: (-window.quantile, -window.peak))
    return [window_to_proto(window, piece_of) for window in (*examples.top, *drawn)]


def window_to_proto(window: Window, piece_of: Mapping[int, bytes]) -> index_pb2.FeatureExample:
    """One stretch of text."""
    return index_pb2.FeatureExample(
        sequence=window.sequence,
        start=window.start,
        token_ids=window.token_ids,
        tokens=run_texts([piece_of[token_id] for token_id in window.token_ids], window.activations),
        activations=window.activations,
        peak=window.peak,
        peak_at=window.peak_at,
        quantile=window.quantile,
    )


def card_into_proto(feature: service_pb2.Feature, card: FeatureCard) -> None:
    """Fill in what a feature reads and writes."""
    feature.decoder_norms.extend(card.decoder_norms)
    feature.encoder_bias = card.encoder_bias
    if card.threshold is not None:
        feature.threshold = card.threshold
    feature.top_logits.extend(_logits(card.top))
    feature.bottom_logits.extend(_logits(card.bottom))
    feature.target_logits.extend(
        service_pb2.TargetLogits(layer=each.layer, top_logits=_logits(each.top), bottom_logits=_logits(each.bottom))
        for each in card.targets
    )


def _logits(weights: TokenWeights) -> list[service_pb2.FeatureLogit]:
    return [service_pb2.FeatureLogit(token_id=token.id, text=token.text, weight=weight) for token, weight in weights]
