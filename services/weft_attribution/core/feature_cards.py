"""
What one feature reads and writes: norms of its decoders, and the logits that it moves by itself.

Legend: S target layers, D d_model, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch

from weft_attribution.core.ports import ModelRunner, Token
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import NotFoundError

__all__ = ["FeatureCard", "feature_logits", "name_tokens"]


@dataclass(frozen=True)
class FeatureCard:
    """One feature; logits are (token, weight), highest and lowest first; no threshold where features are counted."""

    decoder_norms: tuple[float, ...]
    encoder_bias: float
    threshold: float | None
    top: tuple[tuple[Token, float], ...]
    bottom: tuple[tuple[Token, float], ...]


def feature_logits(
    weights: LinearWeights, transcoder: TranscoderReader, layer: int, index: int, num_logits: int
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
    encoder = transcoder.encoder(layer)
    (rows,) = (rows for _, rows in transcoder.decoders(layer, np.array([index], dtype=np.int64)))
    decoder_SD = torch.from_numpy(rows[0].astype(np.float32))
    written_D = weights.final_norm.fold(decoder_SD.sum(dim=0).to(weights.dtype))
    effect_V = weights.unembedding_VD @ written_D
    effect_V -= effect_V.mean()
    count = min(num_logits, len(effect_V))
    top, bottom = effect_V.topk(count), effect_V.topk(count, largest=False)
    return FeatureCard(
        decoder_norms=tuple(decoder_SD.norm(dim=1).tolist()),
        encoder_bias=float(encoder.b_enc_F[index]),
        threshold=(
            None if encoder.threshold_F is None or transcoder.manifest.top_k else float(encoder.threshold_F[index])
        ),
        top=tuple((Token(int(i), ""), float(v)) for v, i in zip(*top, strict=True)),
        bottom=tuple((Token(int(i), ""), float(v)) for v, i in zip(*bottom, strict=True)),
    )


async def name_tokens(runner: ModelRunner, model: str, card: FeatureCard) -> FeatureCard:
    """Fill in the text of a card's tokens."""
    both = (*card.top, *card.bottom)
    texts = await runner.detokenize(model, [token.id for token, _ in both])
    named = tuple((Token(token.id, text), weight) for (token, weight), text in zip(both, texts, strict=True))
    return FeatureCard(
        card.decoder_norms, card.encoder_bias, card.threshold, named[: len(card.top)], named[len(card.top) :]
    )
