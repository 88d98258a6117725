"""
What a model says after a text when features are changed, beside what it says undisturbed.

A change adds its difference from the undisturbed activation, times the decoder, at every layer that the feature writes
to; the model answers freely. Which activation a generated token would have is not known beforehand: only what is added
without positions goes on there.

Legend: P positions of the prompt, V vocabulary, D d_model.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.firing import layers_read
from weft_attribution.core.interventions import feature_additions
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.ports import Addition, Capture, LikelyToken, ModelRunner, Token
from weft_attribution.core.prompt_tokens import model_of, tokens_of
from weft_attribution.core.readouts import encode_at
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["ChangeKind", "ChangedFeature", "NextToken", "SteeredText", "TextChange", "TextPlan", "TextSteering"]

Array = npt.NDArray[Any]
MAX_CHANGES = 100
MAX_NEW_TOKENS = 200
MAX_TOP_TOKENS = 100
_DEFAULT_NEW_TOKENS = 20
_DEFAULT_TOP_TOKENS = 10
_LOGITS = "logits"


class ChangeKind(StrEnum):
    """What is done with an activation."""

    FACTOR = "factor"
    """It is multiplied."""
    VALUE = "value"
    """It is set."""
    ADD = "add"
    """Something is added to it."""


@dataclass(frozen=True)
class TextChange:
    """A change to one feature; without positions it is made wherever it applies."""

    layer: int
    index: int
    kind: ChangeKind
    amount: float
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextPlan:
    """A text, changes to its features, how many tokens follow and how many next tokens are told; 0 is the default."""

    transcoder: str
    prompt: str
    changes: tuple[TextChange, ...]
    max_new_tokens: int = 0
    num_top_tokens: int = 0


@dataclass(frozen=True)
class ChangedFeature:
    """Activations of a changed feature on the prompt, before and after, and what is added at generated tokens."""

    layer: int
    index: int
    positions: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    added_after: float = 0.0


@dataclass(frozen=True)
class NextToken:
    """A next token: its probability in both runs, and the change of its demeaned logit."""

    token: Token
    probability_before: float
    probability_after: float
    logit_change: float


@dataclass(frozen=True)
class TextSteering:
    """Both runs."""

    tokens: tuple[Token, ...]
    features: tuple[ChangedFeature, ...]
    next_tokens: tuple[NextToken, ...]
    kl_divergence: float
    undisturbed: tuple[LikelyToken, ...]
    changed: tuple[LikelyToken, ...]


class SteeredText:
    """
    Steers a model on any text.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights, for the position that features begin at.
        max_prompt_tokens: Longest text.
    """

    def __init__(self, store: ObjectStore, runner: ModelRunner, models: ModelFolder, *, max_prompt_tokens: int) -> None:
        self._store, self._runner, self._models = store, runner, models
        self._max_prompt_tokens = max_prompt_tokens

    async def steer(self, plan: TextPlan) -> TextSteering:
        """
        Run a text undisturbed and changed.

        Raises:
            NotFoundError: No such transcoder, layer or feature.
            InvalidArgumentError: The text is empty or too long, or a change is not whole.
            FailedPreconditionError: The model is not the transcoder's, or generates nothing.
        """
        new_tokens, top_tokens = _check(plan)
        reader = await asyncio.to_thread(TranscoderReader, self._store, plan.transcoder)
        model, info = reader.manifest.model, await model_of(self._runner, reader)
        await asyncio.to_thread(_check_features, reader, plan.changes, info.num_layers)
        tokens = await tokens_of(self._runner, model, plan.prompt, self._max_prompt_tokens)
        first = (await asyncio.to_thread(self._models.weights, model)).first_position
        _check_positions(plan.changes, first, len(tokens))
        layers = layers_read(reader, {change.layer for change in plan.changes}, info.num_layers)
        hooks = [*(f"layers.{layer}.{reader.manifest.input_hook}" for layer in layers), _LOGITS]
        ids = [token.id for token in tokens]
        before = await self._runner.capture(model, ids, hooks)
        features = await asyncio.to_thread(_changed, reader, plan.changes, before, first, len(ids))
        additions = await asyncio.to_thread(_additions, reader, features, info.num_layers, first)
        after = await self._runner.steer(model, ids, additions, held_layers=(), freeze_attention=False, hooks=[_LOGITS])
        undisturbed = await self._runner.generate(model, ids, (), max_new_tokens=new_tokens)
        changed = await self._runner.generate(model, ids, additions, max_new_tokens=new_tokens)
        chosen, figures, divergence = _compared(before.tensors[_LOGITS], after.tensors[_LOGITS], top_tokens)
        texts = await self._runner.detokenize(model, chosen)
        next_tokens = tuple(
            NextToken(Token(token_id, text), *row) for token_id, text, row in zip(chosen, texts, figures, strict=True)
        )
        return TextSteering(tokens, features, next_tokens, divergence, undisturbed, changed)


def _check(plan: TextPlan) -> tuple[int, int]:
    """Check what needs no model; return tokens to generate and next tokens to tell."""
    if not 1 <= len(plan.changes) <= MAX_CHANGES:
        raise InvalidArgumentError(
            f"changes has {len(plan.changes)} of them; give 1 to {MAX_CHANGES} changes of features", field="changes"
        )
    for name, value, most in (
        ("max_new_tokens", plan.max_new_tokens, MAX_NEW_TOKENS),
        ("num_top_tokens", plan.num_top_tokens, MAX_TOP_TOKENS),
    ):
        if not 0 <= value <= most:
            raise InvalidArgumentError(f"{name} is {value}; give 1 to {most}, or 0 for the default", field=name)
    for place, change in enumerate(plan.changes):
        if not isfinite(change.amount):
            field = f"changes[{place}]"
            raise InvalidArgumentError(f"{field} is not finite; give a finite {change.kind}", field=field)
    return plan.max_new_tokens or _DEFAULT_NEW_TOKENS, plan.num_top_tokens or _DEFAULT_TOP_TOKENS


def _check_features(reader: TranscoderReader, changes: Sequence[TextChange], num_layers: int) -> None:
    transcoder = f"transcoders/{reader.manifest.transcoder}"
    for change in changes:
        if not 0 <= change.layer < num_layers:
            raise NotFoundError(f"{transcoder} has no layer {change.layer}; its layers are 0 to {num_layers - 1}")
        num_features = reader.encoder_shape(change.layer)[0]
        if not 0 <= change.index < num_features:
            raise NotFoundError(
                f"layer {change.layer} of {transcoder} has no feature {change.index}; it has {num_features}"
            )


def _check_positions(changes: Sequence[TextChange], first: int, num_positions: int) -> None:
    """Check that positions have features, and that no feature is changed at one of them twice."""
    seen: set[tuple[int, int, int]] = set()
    for place, change in enumerate(changes):
        field = f"changes[{place}].positions"
        for position in change.positions:
            if not first <= position < num_positions:
                raise InvalidArgumentError(
                    f"{field} has {position}; the prompt has features at positions {first} to {num_positions - 1}",
                    field=field,
                )
        for position in change.positions or range(first, num_positions):
            key = (change.layer, change.index, position)
            if key in seen:
                raise InvalidArgumentError(
                    f"feature {change.layer}-{change.index} is changed twice at position {position}; change it once",
                    field=field,
                )
            seen.add(key)


def _changed(
    reader: TranscoderReader, changes: Sequence[TextChange], before: Capture, first: int, num_positions: int
) -> tuple[ChangedFeature, ...]:
    """Where features are changed, and from what to what."""
    everywhere = range(first, num_positions)
    keys = [(each.layer, each.index, at) for each in changes for at in sorted(each.positions) or everywhere]
    values = dict(zip(keys, (value for _, value in encode_at(reader, keys, before)), strict=True))
    found = []
    for change in changes:
        places = sorted(change.positions) or list(everywhere)
        if change.kind is ChangeKind.FACTOR:
            places = [at for at in places if values[change.layer, change.index, at] > 0]
        was = [values[change.layer, change.index, at] for at in places]
        found.append(
            ChangedFeature(
                change.layer,
                change.index,
                tuple(places),
                tuple(was),
                tuple(_wanted(change, value) for value in was),
                change.amount if change.kind is ChangeKind.ADD and not change.positions else 0.0,
            )
        )
    return tuple(found)


def _wanted(change: TextChange, value: float) -> float:
    if change.kind is ChangeKind.FACTOR:
        return value * change.amount
    return change.amount if change.kind is ChangeKind.VALUE else value + change.amount


def _additions(
    reader: TranscoderReader, features: Sequence[ChangedFeature], num_layers: int, first: int
) -> tuple[Addition, ...]:
    """What changes add to MLP outputs, at positions of the prompt and at all tokens that follow."""
    moves = [
        (each.layer, each.index, position, after - before)
        for each in features
        if not each.added_after
        for position, before, after in zip(each.positions, each.before, each.after, strict=True)
    ]
    always = [(each.layer, each.index, 0, each.added_after) for each in features if each.added_after]
    found = list(feature_additions(reader, moves, num_layers))
    for addition in feature_additions(reader, always, num_layers):
        found.append(Addition(addition.layer, (), addition.value_PD))
        if first:
            # Without positions it is added where there are no features too; there it is taken off again.
            value_PD = np.repeat(-addition.value_PD, first, axis=0)
            found.append(Addition(addition.layer, tuple(range(first)), value_PD))
    return tuple(found)


def _compared(before: Array, after: Array, num_top: int) -> tuple[list[int], list[tuple[float, float, float]], float]:
    """The most likely tokens of either run with their figures, and KL(before || after) in nats."""
    was_V, now_V = (torch.tensor(np.asarray(each).reshape(-1), dtype=torch.float64) for each in (before, after))
    log_was_V, log_now_V = was_V.log_softmax(0), now_V.log_softmax(0)
    change_V = (now_V - now_V.mean()) - (was_V - was_V.mean())
    p_was_V, p_now_V = log_was_V.exp(), log_now_V.exp()
    most = min(num_top, len(was_V))
    chosen = sorted(
        {*p_was_V.topk(most).indices.tolist(), *p_now_V.topk(most).indices.tolist()},
        key=lambda token: (-max(float(p_was_V[token]), float(p_now_V[token])), token),
    )
    figures = [(float(p_was_V[token]), float(p_now_V[token]), float(change_V[token])) for token in chosen]
    # Rounding may leave a little below 0 where nothing changes.
    return chosen, figures, max(0.0, float((p_was_V * (log_was_V - log_now_V)).sum()))
