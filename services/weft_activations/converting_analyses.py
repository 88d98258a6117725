"""Between what analyses ask and find, and the messages of weft.activations.v1."""

from weft.activations.v1 import analyses_pb2
from weft_activations.converting import model_to_proto, token_to_proto
from weft_activations.core.analyses.head_scores import HeadScores
from weft_activations.core.analyses.logit_attribution import Attributed, Level
from weft_activations.core.analyses.logit_lens import LensBlock, LensStart
from weft_activations.core.analyses.patching import SweepStart
from weft_activations.core.analyses.patterns import AttentionKind, PatternsStart
from weft_activations.core.analyses.sweeping import Cells, Metric, MetricKind
from weft_common.errors import InvalidArgumentError
from weft_common.tensors import tensor_to_proto

__all__ = [
    "attributed_to_proto",
    "head_scores_to_proto",
    "lens_block_to_proto",
    "lens_header_to_proto",
    "level_from_proto",
    "metric_from_proto",
    "patterns_header_to_proto",
    "sweep_to_proto",
]

_LEVELS = {
    analyses_pb2.ATTRIBUTION_LEVEL_UNSPECIFIED: Level.LAYER,
    analyses_pb2.ATTRIBUTION_LEVEL_LAYER: Level.LAYER,
    analyses_pb2.ATTRIBUTION_LEVEL_HEAD: Level.HEAD,
    analyses_pb2.ATTRIBUTION_LEVEL_NEURON: Level.NEURON,
}
_ATTENTION_KINDS = {
    analyses_pb2.ATTENTION_KIND_UNSPECIFIED: AttentionKind.TOKENS,
    analyses_pb2.ATTENTION_KIND_TOKENS: AttentionKind.TOKENS,
    analyses_pb2.ATTENTION_KIND_FRAMES: AttentionKind.FRAMES,
    analyses_pb2.ATTENTION_KIND_CROSS: AttentionKind.CROSS,
}
_SENT_KINDS = {kind: sent for sent, kind in _ATTENTION_KINDS.items()}
_METRICS = {
    analyses_pb2.PATCH_METRIC_KIND_LOGIT_DIFFERENCE: MetricKind.LOGIT_DIFFERENCE,
    analyses_pb2.PATCH_METRIC_KIND_PROBABILITY: MetricKind.PROBABILITY,
}


def lens_header_to_proto(start: LensStart) -> analyses_pb2.LogitLensHeader:
    """Turn what a lens reads into its message."""
    return analyses_pb2.LogitLensHeader(
        model=model_to_proto(start.info),
        tokens=map(token_to_proto, start.tokens),
        depths=start.depths,
        positions=start.positions,
        num_top_tokens=start.num_top_tokens,
        target=None if start.target is None else token_to_proto(start.target),
    )


def lens_block_to_proto(block: LensBlock) -> analyses_pb2.LogitLensBlock:
    """Turn a block of a lens into its message."""
    made = analyses_pb2.LogitLensBlock(
        first=block.first,
        num_positions=block.num_positions,
        top_tokens=map(token_to_proto, block.top_tokens),
        top_probabilities=tensor_to_proto(block.top_probabilities_NPK),
        top_logits=tensor_to_proto(block.top_logits_NPK),
        kl=tensor_to_proto(block.kl_NP),
    )
    if block.target is not None:
        made.target_logits.CopyFrom(tensor_to_proto(block.target.logits_NP))
        made.target_probabilities.CopyFrom(tensor_to_proto(block.target.probabilities_NP))
        made.target_ranks.CopyFrom(tensor_to_proto(block.target.ranks_NP))
    return made


def attributed_to_proto(found: Attributed) -> analyses_pb2.AttributeLogitsResponse:
    """Turn logits that were taken apart into their message."""
    return analyses_pb2.AttributeLogitsResponse(
        model=model_to_proto(found.info),
        tokens=map(token_to_proto, found.tokens),
        position=found.position,
        targets=map(token_to_proto, found.targets),
        parts=found.parts,
        contributions=tensor_to_proto(found.contributions_SN),
        logits=tensor_to_proto(found.logits_N),
    )


def attention_kind_from_proto(kind: analyses_pb2.AttentionKind.ValueType) -> AttentionKind:
    """Read which attention is asked for."""
    if kind not in _ATTENTION_KINDS:
        raise InvalidArgumentError(f"there is no kind {kind} of attention; give TOKENS, FRAMES or CROSS", field="kind")
    return _ATTENTION_KINDS[kind]


def patterns_header_to_proto(start: PatternsStart) -> analyses_pb2.AttentionPatternsHeader:
    """Turn what patterns are read into its message."""
    return analyses_pb2.AttentionPatternsHeader(
        model=model_to_proto(start.info),
        tokens=map(token_to_proto, start.tokens),
        layers=start.layers,
        heads=start.heads,
        positions=start.positions,
        kind=_SENT_KINDS[start.kind],
    )


def head_scores_to_proto(scores: HeadScores) -> analyses_pb2.ScoreHeadsResponse:
    """Turn heads' scores into their message."""
    return analyses_pb2.ScoreHeadsResponse(
        model=model_to_proto(scores.info),
        induction=tensor_to_proto(scores.induction_LH),
        previous_token=tensor_to_proto(scores.previous_token_LH),
        duplicate_token=tensor_to_proto(scores.duplicate_token_LH),
        num_tokens=scores.num_tokens,
        num_sequences=scores.num_sequences,
    )


def level_from_proto(level: analyses_pb2.AttributionLevel.ValueType) -> Level:
    """Read how finely a logit is taken apart."""
    if level not in _LEVELS:
        raise InvalidArgumentError(f"there is no level {level}; give LAYER, HEAD or NEURON", field="level")
    return _LEVELS[level]


def metric_from_proto(metric: analyses_pb2.PatchMetric) -> Metric:
    """Read what a sweep measures."""
    if metric.kind not in _METRICS:
        raise InvalidArgumentError(
            "the metric's kind is not set; give LOGIT_DIFFERENCE or PROBABILITY", field="metric.kind"
        )
    return Metric(_METRICS[metric.kind], metric.token_id, metric.other_token_id)


def sweep_to_proto(part: SweepStart | Cells) -> analyses_pb2.SweepResponse:
    """Turn a piece of a sweep into its message."""
    if isinstance(part, Cells):
        return analyses_pb2.SweepResponse(cells=analyses_pb2.SweepCells(first=part.first, values=part.values.tolist()))
    header = analyses_pb2.SweepHeader(
        model=model_to_proto(part.pair.info),
        clean_tokens=map(token_to_proto, part.pair.clean),
        corrupted_tokens=map(token_to_proto, part.pair.corrupted),
        components=part.components,
        layers=part.layers,
        heads=part.heads,
        positions=part.positions,
        clean_metric=part.clean_metric,
        corrupted_metric=part.corrupted_metric,
        num_cells=part.num_cells,
    )
    return analyses_pb2.SweepResponse(header=header)
