"""
What a graph explains, at the last of its tokens: logits, differences of logits, directions, features.

Another position than a prompt's last is explained by leaving out what follows it: no layer looks ahead.

Legend: K explained rows, D d_model, V vocabulary, P positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.ports import ModelInfo, ModelRunner, Token
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError

__all__ = ["Explained", "Target", "check_targets", "choose_targets", "explain", "name_targets", "resolve_texts"]

Array = npt.NDArray[Any]
KINDS = ("token", "difference", "direction", "feature")


@dataclass(frozen=True)
class Target:
    """
    One thing to explain.

    Args:
        kind: `token`: a logit less the mean logit. `difference`: a logit less another. Both are logits before any cap.
            `direction`: the inner product of a vector with the normed stream that the unembedding reads. `feature`: a
            pre-activation.
        token_id: The token; for a difference the one that counts.
        text: The token as text that follows the prompt, in place of its id.
        minus_token_id: The token whose logit is taken off.
        minus_text: The same as text.
        direction: D numbers.
        layer: The feature's layer.
        index: Its index within the layer.
        label: What the node is called; made where it is empty.
        weight: How much it counts beside others; 0 is a token's probability, and 1 for all else.
    """

    kind: str = "token"
    token_id: int = 0
    text: str = ""
    minus_token_id: int = 0
    minus_text: str = ""
    direction: tuple[float, ...] = ()
    layer: int = 0
    index: int = 0
    label: str = ""
    weight: float = 0.0

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Target":
        """Read back what `dataclasses.asdict` made."""
        return cls(**{**document, "direction": tuple(document["direction"])})


@dataclass(frozen=True)
class Explained:
    """The last rows of a graph: which layer's stream they read, with what, what they see anyway, and their values."""

    layer_K: npt.NDArray[np.int64]
    reader_KD: Tensor
    offset_K: Tensor
    value_K: Tensor


def check_targets(targets: Sequence[Target], info: ModelInfo, transcoder: TranscoderReader) -> None:
    """
    Check targets whose texts are resolved.

    Raises:
        InvalidArgumentError: One of them is not there, or there twice.
    """
    seen = set()
    for place, target in enumerate(targets):
        name = f"spec.targets[{place}]"
        ids = {"token": [target.token_id], "difference": [target.token_id, target.minus_token_id]}.get(target.kind, [])
        for token_id in ids:
            if not 0 <= token_id < info.vocab_size:
                raise InvalidArgumentError(
                    f"{name} has token {token_id}; {info.name} has ids 0 to {info.vocab_size - 1}", field=name
                )
        if target.kind == "difference" and target.token_id == target.minus_token_id:
            raise InvalidArgumentError(f"{name} is a logit less itself; give two tokens", field=name)
        if target.kind == "direction" and (
            len(target.direction) != info.d_model
            or not all(map(isfinite, target.direction))
            or not any(target.direction)
        ):
            raise InvalidArgumentError(
                f"{name} is a direction of {len(target.direction)} numbers; give {info.d_model} finite ones, not all 0",
                field=name,
            )
        if target.kind == "feature":
            layers = info.num_layers
            count = transcoder.encoder_shape(target.layer)[0] if 0 <= target.layer < layers else 0
            if not 0 <= target.index < count:
                raise InvalidArgumentError(
                    f"{name} is feature {target.index} of layer {target.layer}, which is not there; "
                    f"layers are 0 to {layers - 1}" + (f", features 0 to {count - 1}" if count else ""),
                    field=name,
                )
        if not isfinite(target.weight) or target.weight < 0:
            raise InvalidArgumentError(f"{name} has weight {target.weight}; give a number of at least 0", field=name)
        same = replace(target, text="", minus_text="", label="", weight=0.0)
        if same in seen:
            raise InvalidArgumentError(f"{name} is there twice; give each target once", field=name)
        seen.add(same)


async def resolve_texts(
    runner: ModelRunner, model: str, prompt: str, tokens: Sequence[Token], targets: Sequence[Target]
) -> tuple[Target, ...]:
    """
    Turn texts into the ids of their first tokens, as they follow the whole prompt.

    Raises:
        InvalidArgumentError: A text does not follow it as tokens of its own.
    """

    async def first(text: str, place: int) -> int:
        longer = await runner.tokenize(model, prompt + text)
        ids = [token.id for token in longer]
        if ids[: len(tokens)] != [token.id for token in tokens] or len(ids) == len(tokens):
            name = f"spec.targets[{place}]"
            raise InvalidArgumentError(
                f"{name}: {text[:100]!r} does not follow the prompt as a token of its own; "
                "begin it as it would go on there, often with a space, or give token ids",
                field=name,
            )
        return ids[len(tokens)]

    found = []
    for place, target in enumerate(targets):
        resolved = target
        if resolved.text:
            resolved = replace(resolved, token_id=await first(resolved.text, place))
        if resolved.minus_text:
            resolved = replace(resolved, minus_token_id=await first(resolved.minus_text, place))
        found.append(resolved)
    return tuple(found)


async def name_targets(runner: ModelRunner, info: ModelInfo, targets: Sequence[Target]) -> tuple[Token, ...]:
    """The nodes' ids and texts: a token's own; ids beyond the vocabulary for what is no token."""
    ids = sorted({token_id for each in targets for token_id in (each.token_id, each.minus_token_id)})
    texts = dict(zip(ids, await runner.detokenize(info.name, ids), strict=True))
    found = []
    for place, target in enumerate(targets):
        label = {
            "token": texts[target.token_id],
            "difference": f"{texts[target.token_id]}\u2212{texts[target.minus_token_id]}",
            "direction": f"direction {place}",
            "feature": f"feature {target.layer}_{target.index}",
        }[target.kind]
        node_id = target.token_id if target.kind == "token" else info.vocab_size + place
        found.append(Token(node_id, target.label or label))
    return tuple(found)


def explain(
    operator: FrozenOperator,
    transcoder: TranscoderReader | None,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    targets: Sequence[Target],
) -> Explained:
    """
    The rows of some targets.

    Args:
        operator: The frozen model on the prompt.
        transcoder: Needed where a feature is among the targets.
        tensors: Captured streams.
        targets: Checked.
    """
    weights = operator.weights
    normed_D = torch.tensor(tensors["ln_final.normed"][-1], dtype=weights.dtype)
    logits_V = torch.from_numpy(np.array(tensors["logits"], dtype=np.float64))
    if weights.logit_cap:
        # Rows explain what the cap is put on.
        logits_V = weights.logits(normed_D).double()
    layers, readers, offsets, values = [], [], [], []
    for target in targets:
        layer, scale = weights.num_layers, operator.final_scale_P[-1]
        if target.kind == "feature":
            assert transcoder is not None
            layer = target.layer
            reader_D, offset, scale, value = _feature(operator, transcoder, tensors, target)
        elif target.kind == "direction":
            vector_D = torch.tensor(target.direction, dtype=weights.dtype)
            reader_D, offset = weights.final_norm.fold(vector_D), weights.final_norm.offset(vector_D)
            value = (vector_D @ normed_D).double()
        else:
            (reader_D,), (offset,) = weights.logit_readers(torch.tensor([target.token_id]))
            value = logits_V[target.token_id] - logits_V.mean()
            if target.kind == "difference":
                (other_D,), (other,) = weights.logit_readers(torch.tensor([target.minus_token_id]))
                reader_D, offset = reader_D - other_D, offset - other
                value = logits_V[target.token_id] - logits_V[target.minus_token_id]
        layers.append(layer)
        readers.append(reader_D / scale)
        offsets.append(offset)
        values.append(value.to(weights.dtype))
    return Explained(np.array(layers), torch.stack(readers), torch.stack(offsets), torch.stack(values))


def _feature(
    operator: FrozenOperator,
    transcoder: TranscoderReader,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    target: Target,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    encoder = transcoder.encoder(target.layer)
    dtype = operator.weights.dtype
    row_D = torch.tensor(encoder.w_enc_FD[target.index], dtype=dtype)
    offset = torch.tensor(encoder.b_enc_F[target.index], dtype=dtype)
    hook = transcoder.manifest.input_hook
    value = torch.tensor(tensors[f"layers.{target.layer}.{hook}"][-1], dtype=dtype) @ row_D + offset
    if hook != "mlp_in":
        return row_D, offset, torch.ones((), dtype=dtype), value
    norm = operator.weights.layers[target.layer].mlp_norm
    return norm.fold(row_D), offset + norm.offset(row_D), operator.mlp_scale_P[target.layer][-1], value


def choose_targets(
    logits_V: Array, *, max_logits: int, probability: float, targets: Sequence[Target]
) -> tuple[tuple[Target, ...], Array]:
    """
    What to explain, and how much each counts.

    Returns:
        The asked targets, or the likeliest tokens until their sum reaches `probability`; and their weights.
    """
    logits = logits_V.astype(np.float64)
    share_V = np.exp(logits - logits.max())
    share_V /= share_V.sum()
    if targets:
        chosen = tuple(targets)
    else:
        best = np.argsort(-share_V, kind="stable")[:max_logits]
        count = int(np.searchsorted(np.cumsum(share_V[best]), probability)) + 1
        chosen = tuple(Target(token_id=token_id) for token_id in best[:count].tolist())
    weights = [each.weight or (share_V[each.token_id] if each.kind == "token" else 1.0) for each in chosen]
    return chosen, np.array(weights, dtype=np.float64)
