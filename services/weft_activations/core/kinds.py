"""
What kinds of models there are, and what each cannot do.

An encoder reads a whole text at once and predicts no next token, so what goes over next tokens is refused for it.
"""

from enum import Enum

from weft_activations.core.components import ENCODERS, SPEECH
from weft_activations.core.ports import ModelInfo
from weft_common.errors import FailedPreconditionError

__all__ = ["ModelKind", "check_decoder", "check_logits", "kind_of"]


class ModelKind(Enum):
    """What a model does with what it reads."""

    DECODER = "decoder"
    ENCODER = "encoder"
    SPEECH = "speech model"


def kind_of(info: ModelInfo) -> ModelKind:
    """Return a model's kind."""
    if info.architecture in SPEECH:
        return ModelKind.SPEECH
    return ModelKind.ENCODER if info.architecture in ENCODERS else ModelKind.DECODER


def check_decoder(info: ModelInfo, what: str, *, field: str = "model") -> None:
    """Raise FailedPreconditionError unless a model predicts next tokens; `what` begins the sentence."""
    kind = kind_of(info)
    if kind is ModelKind.ENCODER:
        raise FailedPreconditionError(
            f"{what} goes over the next token, which {info.model_id}, an encoder ({info.architecture}), does not "
            "predict; take a decoder, or capture what you need",
            field=field,
        )
    if kind is ModelKind.SPEECH:
        raise FailedPreconditionError(
            f"{what} goes over text alone, and {info.model_id} ({info.architecture}) reads speech besides; take a "
            "decoder, or capture what you need",
            field=field,
        )


def check_logits(info: ModelInfo) -> None:
    """Raise FailedPreconditionError where a model has no logits."""
    if "logits" not in info.components:
        raise FailedPreconditionError(
            f"{info.model_id} ({info.architecture}) has no head, so there are no logits; capture resid_final, or "
            "take a model with a head",
            field="model",
        )
