"""
Which features fire on a text, now: the model runs once elsewhere, the encoders here.

Legend: P positions, F features of a layer.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.firing import Firing, layers_read
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.ports import Capture, ModelRunner, Token
from weft_attribution.core.prompt_tokens import model_of, tokens_of
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["MAX_NAMED", "MAX_SHOWN", "PromptActivations", "PromptFeature", "PromptQuestion"]

Array = npt.NDArray[Any]
Encoder = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
MAX_NAMED = 1000
MAX_SHOWN = 10_000
_DEFAULT_SHOWN = 100
_MOST_PRODUCTS = 1 << 42
"""About a minute of a processor."""


@dataclass(frozen=True)
class PromptQuestion:
    """What is asked: layers, or features by layer and index; none means all."""

    transcoder: str
    prompt: str
    layers: tuple[int, ...] = ()
    features: tuple[tuple[int, int], ...] = ()
    max_features: int = 0


@dataclass(frozen=True)
class PromptFeature:
    """
    A feature on a text.

    Args:
        relative_max: Largest activation over the largest in the index; 0 where that is not known.
    """

    layer: int
    index: int
    positions: tuple[int, ...]
    activations: tuple[float, ...]
    relative_max: float


@dataclass(frozen=True)
class PromptAnswer:
    """Tokens, and features strongest first; `num_active` counts those that are not told as well."""

    tokens: tuple[Token, ...]
    features: tuple[PromptFeature, ...]
    num_active: int


@dataclass(frozen=True)
class _Found:
    """A feature as it was found: where, its peak, and that over its largest in the index, 0 where that is not known."""

    layer: int
    index: int
    positions: Array
    values: Array
    peak: float
    strength: float


class PromptActivations:
    """
    Answers what fires on a text.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights, for the position that features begin at.
        indexes: For how strong features are otherwise.
        max_prompt_tokens: Longest text.
        memory_bytes: Encoders that are kept from one call to the next.
    """

    def __init__(
        self,
        store: ObjectStore,
        runner: ModelRunner,
        models: ModelFolder,
        indexes: OpenIndexes,
        *,
        max_prompt_tokens: int,
        memory_bytes: int,
    ) -> None:
        self._store, self._runner, self._models, self._indexes = store, runner, models, indexes
        self._max_prompt_tokens = max_prompt_tokens
        self._memory_bytes = memory_bytes
        self._kept: OrderedDict[tuple[str, str, int], Encoder] = OrderedDict()
        self._lock = threading.Lock()

    async def find(self, question: PromptQuestion) -> PromptAnswer:
        """
        Run a text and encode it.

        Raises:
            NotFoundError: No such transcoder, layer or feature.
            InvalidArgumentError: The text is empty or too long, or too much is asked for.
            FailedPreconditionError: The model is not the transcoder's.
        """
        _check(question)
        reader = await asyncio.to_thread(TranscoderReader, self._store, question.transcoder)
        model, info = reader.manifest.model, await model_of(self._runner, reader)
        layers = sorted(set(question.layers) | {layer for layer, _ in question.features}) or range(info.num_layers)
        for layer in layers:
            if not 0 <= layer < info.num_layers:
                raise NotFoundError(
                    f"transcoders/{question.transcoder} has no layer {layer}; its layers are 0 to {info.num_layers - 1}"
                )
        tokens = await tokens_of(self._runner, model, question.prompt, self._max_prompt_tokens)
        await asyncio.to_thread(_check_work, question, reader, layers, len(tokens))
        read = layers_read(reader, set(layers), info.num_layers)
        hooks = [f"layers.{layer}.{reader.manifest.input_hook}" for layer in read]
        capture = await self._runner.capture(model, [token.id for token in tokens], hooks)
        return await asyncio.to_thread(self._encode, question, reader, list(layers), tokens, capture)

    def _encode(
        self,
        question: PromptQuestion,
        reader: TranscoderReader,
        layers: Sequence[int],
        tokens: tuple[Token, ...],
        capture: Capture,
    ) -> PromptAnswer:
        index = self._indexes.find(question.transcoder)
        first = self._models.weights(reader.manifest.model).first_position
        found: list[_Found] = []
        counting = None
        if reader.manifest.top_k:
            counting = Firing(reader, capture.tensors, capture.model.num_layers, torch.float32)
        for layer in layers:
            named = sorted(feature for at, feature in question.features if at == layer)
            stream_PD = capture.tensors[f"layers.{layer}.{reader.manifest.input_hook}"]
            wanted = named if question.features else None
            found += self._layer(reader, layer, stream_PD, first, wanted, index, counting)
        num_active = sum(len(each.positions) > 0 for each in found)
        found.sort(key=lambda each: (-each.strength, -each.peak, each.layer, each.index))
        shown = found if question.features else found[: question.max_features or _DEFAULT_SHOWN]
        return PromptAnswer(tokens, tuple(_shown(each, index) for each in shown), num_active)

    def _layer(
        self,
        reader: TranscoderReader,
        layer: int,
        stream_PD: Array,
        first: int,
        named: list[int] | None,
        index: OpenIndex | None,
        counting: Firing | None,
    ) -> list[_Found]:
        num_features = reader.encoder_shape(layer)[0]
        for feature in named or ():
            if not 0 <= feature < num_features:
                raise NotFoundError(
                    f"layer {layer} of transcoders/{reader.manifest.transcoder} has no feature {feature}; it has "
                    f"{num_features}"
                )
        wanted = torch.arange(num_features) if named is None else torch.tensor(named, dtype=torch.long)
        with torch.no_grad():
            if counting is not None:
                # Which of the largest a feature is, all others of its layer say.
                pre_PF = counting.preactivations(layer, encoder := reader.encoder(layer))
                active_FP, pre_FP = counting.fires(encoder, pre_PF).T[wanted], pre_PF.T[wanted]
            else:
                w_enc_FD, b_enc_F, threshold_F = self._encoder(reader, layer, num_features)
                if named is not None:
                    w_enc_FD, b_enc_F, threshold_F = w_enc_FD[wanted], b_enc_F[wanted], threshold_F[wanted]
                stream = torch.from_numpy(np.array(stream_PD, np.float32))
                pre_FP = torch.addmm(b_enc_F[:, None], w_enc_FD, stream.T)
                active_FP = pre_FP > threshold_F[:, None]
            active_FP[:, :first] = False
            place_N, position_N = (each.numpy() for each in active_FP.nonzero(as_tuple=True))
            value_N = pre_FP.numpy()[place_N, position_N]
        bounds = np.searchsorted(place_N, np.arange(len(wanted) + 1))
        # All of a layer at once; only what is told is looked at one by one.
        told = range(len(wanted)) if named is not None else np.unique(place_N).tolist()
        found = []
        for place in told:
            part = slice(int(bounds[place]), int(bounds[place + 1]))
            feature = int(wanted[place])
            peak = float(value_N[part].max()) if part.stop > part.start else 0.0
            known = _largest(index, layer, feature)
            # Where there is no index nothing is known of any, and the strongest is what fires most.
            strength = peak if index is None else peak / known if known else 0.0
            found.append(_Found(layer, feature, position_N[part], value_N[part], peak, strength))
        return found

    def _encoder(self, reader: TranscoderReader, layer: int, num_features: int) -> Encoder:
        key = (reader.manifest.transcoder, reader.mark, layer)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        arrays = [np.array(each, np.float32) for each in reader.encoder_rows(layer, 0, num_features)]
        encoder = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), torch.from_numpy(arrays[2])
        with self._lock:
            self._kept[key] = encoder
            while sum(each[0].nbytes for each in self._kept.values()) > self._memory_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return encoder


def _check(question: PromptQuestion) -> None:
    if not 0 <= question.max_features <= MAX_SHOWN:
        raise InvalidArgumentError(
            f"max_features is {question.max_features}; give 1 to {MAX_SHOWN}, or 0 for {_DEFAULT_SHOWN}",
            field="max_features",
        )
    if len(question.features) > MAX_NAMED:
        raise InvalidArgumentError(
            f"features names {len(question.features)} features; give {MAX_NAMED} at most", field="features"
        )
    if question.features and question.layers:
        raise InvalidArgumentError("there are features and layers; give one or the other", field="layers")


def _check_work(question: PromptQuestion, reader: TranscoderReader, layers: Sequence[int], num_tokens: int) -> None:
    """
    Refuse what would take minutes.

    Raises:
        InvalidArgumentError: It would.
    """
    # Features are counted among all of their layer, whichever are asked for.
    by_name = bool(question.features) and not reader.manifest.top_k
    shapes = [reader.encoder_shape(layer) for layer in layers]
    rows = len(question.features) if by_name else sum(num_features for num_features, _ in shapes)
    products = num_tokens * rows * max(d_model for _, d_model in shapes)
    if products > _MOST_PRODUCTS:
        raise InvalidArgumentError(
            f"{rows} features on {num_tokens} tokens are {products:.1e} multiplications, more than the "
            f"{_MOST_PRODUCTS:.1e} of one call; name layers or features, or give a shorter prompt",
            field="prompt",
        )


def _largest(index: OpenIndex | None, layer: int, feature: int) -> float:
    """A feature's largest activation in the index; 0 where it was never active there, or is not in it."""
    if index is None or not index.has(layer, feature):
        return 0.0
    return max(0.0, float(index.columns["largest"][index.number(layer, feature)]))


def _shown(found: _Found, index: OpenIndex | None) -> PromptFeature:
    return PromptFeature(
        found.layer,
        found.index,
        tuple(found.positions.tolist()),
        tuple(found.values.tolist()),
        found.strength if index is not None else 0.0,
    )
