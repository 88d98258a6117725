"""
What one feature reads and writes: norms of its decoders, and the logits that it moves by itself.

Legend: N directions, S target layers, D d_model, V vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from weft_attribution.core.ports import ModelRunner, Token
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import NotFoundError

__all__ = [
    "FeatureCard",
    "TargetCard",
    "TokenWeights",
    "extreme_logits",
    "feature_logits",
    "logit_effects",
    "name_tokens",
]


TokenWeights = tuple[tuple[Token, float], ...]


@dataclass(frozen=True)
class TargetCard:
    """What a feature does through one target layer."""

    layer: int
    top: TokenWeights
    bottom: TokenWeights


@dataclass(frozen=True)
class FeatureCard:
    """
    One feature; logits are (token, weight), highest and lowest first.

    There is no threshold where features are counted, and `targets` only where they were asked for.
    """

    decoder_norms: tuple[float, ...]
    encoder_bias: float
    threshold: float | None
    top: TokenWeights
    bottom: TokenWeights
    targets: tuple[TargetCard, ...] = ()


def feature_logits(
    weights: LinearWeights,
    transcoder: TranscoderReader,
    layer: int,
    index: int,
    num_logits: int,
    *,
    with_targets: bool = False,
) -> FeatureCard:
    """
    Describe a feature; the tokens have no text yet.

    Raises:
        NotFoundError: The transcoder has no such layer or feature.
    """
    name = transcoder.manifest.transcoder
    if not transcoder.has_layer(layer):
        raise NotFoundError(f"transcoders/{name} has no layer {layer}; its layers are 0 to {weights.num_layers - 1}")
    num_features = transcoder.encoder_shape(layer)[0]
    if index >= num_features:
        raise NotFoundError(f"layer {layer} of transcoders/{name} has no feature {index}; it has {num_features}")
    bias, threshold = transcoder.encoder_scalars(layer, index)
    (rows,) = (rows for _, rows in transcoder.decoders(layer, np.array([index], dtype=np.int64)))
    decoder_SD = torch.from_numpy(rows[0].astype(np.float32))
    top, bottom = extreme_logits(logit_effects(weights, decoder_SD.sum(dim=0, keepdim=True)), num_logits)[0]
    by_target = extreme_logits(logit_effects(weights, decoder_SD), num_logits) if with_targets else []
    return FeatureCard(
        decoder_norms=tuple(decoder_SD.norm(dim=1).tolist()),
        encoder_bias=bias,
        threshold=None if transcoder.manifest.top_k else threshold,
        top=top,
        bottom=bottom,
        targets=tuple(TargetCard(layer + place, *extremes) for place, extremes in enumerate(by_target)),
    )


def logit_effects(weights: LinearWeights, written_ND: Tensor) -> Tensor:
    """What some directions do to each logit through the unembedding alone, less the mean over all logits: [N, V]."""
    effect_NV = weights.final_norm.fold(written_ND.to(weights.dtype)) @ weights.unembedding_VD.T
    return effect_NV - effect_NV.mean(dim=1, keepdim=True)


def extreme_logits(effect_NV: Tensor, num_logits: int) -> list[tuple[TokenWeights, TokenWeights]]:
    """Highest and lowest logits of each of some effects; the tokens have no text yet."""
    count = min(num_logits, effect_NV.shape[1])
    found = []
    for effect_V in effect_NV:
        top, bottom = effect_V.topk(count), effect_V.topk(count, largest=False)
        found.append((_paired(top), _paired(bottom)))
    return found


def _paired(found: tuple[Tensor, Tensor]) -> TokenWeights:
    return tuple((Token(int(i), ""), float(v)) for v, i in zip(*found, strict=True))


async def name_tokens(runner: ModelRunner, model: str, card: FeatureCard) -> FeatureCard:
    """Fill in the text of a card's tokens."""
    lists = [card.top, card.bottom, *(each for target in card.targets for each in (target.top, target.bottom))]
    ids = sorted({token.id for each in lists for token, _ in each})
    text_of = dict(zip(ids, await runner.detokenize(model, ids), strict=True))

    def named(weights: TokenWeights) -> TokenWeights:
        return tuple((Token(token.id, text_of[token.id]), weight) for token, weight in weights)

    targets = tuple(TargetCard(each.layer, named(each.top), named(each.bottom)) for each in card.targets)
    return replace(card, top=named(card.top), bottom=named(card.bottom), targets=targets)
