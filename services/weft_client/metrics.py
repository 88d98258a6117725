"""What sweeps measure, ready for `analyses.sweep_patches` and `analyses.sweep_paths`."""

from weft.activations.v1 import analyses_pb2


def logit_difference(token_id: int, other_token_id: int) -> analyses_pb2.PatchMetric:
    """Logit of a token minus logit of another, at the last position."""
    return analyses_pb2.PatchMetric(
        kind=analyses_pb2.PATCH_METRIC_KIND_LOGIT_DIFFERENCE, token_id=token_id, other_token_id=other_token_id
    )


def probability(token_id: int) -> analyses_pb2.PatchMetric:
    """
    Probability of a token, at the last position.

    >>> probability(3).token_id
    3
    """
    return analyses_pb2.PatchMetric(kind=analyses_pb2.PATCH_METRIC_KIND_PROBABILITY, token_id=token_id)
