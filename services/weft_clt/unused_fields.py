"""
Fields that somebody has set and that nothing reads, which are more often a mistake than not.

They are refused where a run is made and not where its configuration is read: what an earlier version accepted can still
be resumed, evaluated and exported. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator

from weft_clt.config import Activation, TrainingConfig
from weft_common.errors import InvalidArgumentError

__all__ = ["check_used"]


def check_used(config: TrainingConfig) -> None:
    """Refuse a field that is set although it changes nothing. InvalidArgumentError, which names it."""
    spec = config.to_spec()
    for field, why in _without_use(config):
        if spec[field]:
            nothing = "false" if isinstance(spec[field], bool) else "0"
            raise InvalidArgumentError(
                f"{field}: {str(spec[field]).lower()} has no meaning {why}; give {nothing}, or leave it out.",
                field=f"spec.{field}",
            )


def _without_use(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Name the fields that this configuration has no use for, and say why."""
    activation = config.features.activation
    if activation is Activation.JUMP_RELU:
        yield "top_k", f"with {activation}, whose thresholds decide how many features are active"
    else:
        for field in ("threshold_init", "bandwidth", "gradient_through_threshold"):
            yield field, f"with {activation}, which learns no thresholds"
    if config.loss.sparsity_coeff == 0:
        for field in ("sparsity_scale", "sparsity_ramp_share"):
            yield field, "without sparsity_coeff, of whose loss it is a part"
