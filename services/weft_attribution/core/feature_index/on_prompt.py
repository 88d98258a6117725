"""
Which features fire on a text, now: the model runs once elsewhere, the encoders here.

Legend: P positions, F features of a layer, N features that are told, M activations of all of them.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_index.prompt_answers import (
    KeptAnswers,
    PageToken,
    PromptFeature,
    WholeAnswer,
    strongest_first,
)
from weft_attribution.core.firing import Firing, layers_read
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.ports import Capture, ModelInfo, ModelRunner, Token
from weft_attribution.core.prompt_tokens import model_of, tokens_of
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["MAX_NAMED", "MAX_SHOWN", "PromptActivations", "PromptAnswer", "PromptQuestion"]

Array = npt.NDArray[Any]
Encoder = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
MAX_NAMED = 1000
MAX_SHOWN = 10_000
_DEFAULT_SHOWN = 100
_DEFAULT_PAGE = 50
_MAX_PAGE = 1000
_MOST_PRODUCTS = 1 << 42
"""About a minute of a processor."""


@dataclass(frozen=True)
class PromptQuestion:
    """
    What is asked.

    Args:
        layers: Which; none means all.
        features: Which, by layer and index; none means all that fire.
        max_features: Most features told on all pages; 0 means 100, or all of them where there are pages.
        page_size: Most features of a page; 0 means 50 where there is a token, else that there are no pages.
        page_token: Of the answer before.
    """

    transcoder: str
    prompt: str
    layers: tuple[int, ...] = ()
    features: tuple[tuple[int, int], ...] = ()
    max_features: int = 0
    page_size: int = 0
    page_token: str = ""

    @property
    def asked(self) -> tuple[object, ...]:
        """What pages of one answer have in common."""
        return self.transcoder, self.prompt, self.layers, self.features, self.max_features


@dataclass(frozen=True)
class PromptAnswer:
    """
    A page, or all that is told.

    Args:
        tokens: Of the text.
        features: Strongest first.
        num_active: Features that are active, whether they are told or not.
        next_token: Of the next page; empty after the last.
    """

    tokens: tuple[Token, ...]
    features: tuple[PromptFeature, ...]
    num_active: int
    next_token: str = ""


class PromptActivations:
    """
    Answers what fires on a text.

    Args:
        store: The bucket.
        runner: The base model.
        models: Frozen weights, for the position that features begin at.
        indexes: For how strong features are otherwise.
        max_prompt_tokens: Longest text.
        memory_bytes: What is kept from one call to the next: encoders, and in an eighth of it answers with more pages.
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
        self._answers = KeptAnswers(memory_bytes // 8)
        self._memory_bytes = memory_bytes - memory_bytes // 8
        self._kept: OrderedDict[tuple[str, str, int], Encoder] = OrderedDict()
        self._lock = threading.Lock()

    async def find(self, question: PromptQuestion) -> PromptAnswer:
        """
        Run a text and encode it, unless the answer is kept from the page before.

        Raises:
            NotFoundError: No such transcoder, layer or feature.
            InvalidArgumentError: The text is empty or too long, too much is asked for, or the token is of another
                question.
            FailedPreconditionError: The model is not the transcoder's, or the answer is not that of the pages before.
        """
        _check(question)
        begin = PageToken.read(question.page_token, question.asked) if question.page_token else None
        reader = await asyncio.to_thread(TranscoderReader, self._store, question.transcoder)
        info = await model_of(self._runner, reader)
        index = await asyncio.to_thread(self._indexes.find, question.transcoder)
        of_index = None if index is None else (index.index_id, float(index.manifest["create_s"]))
        key = (question.asked, reader.mark, info.revision, of_index)
        whole = self._answers.get(key)
        if whole is None:
            whole = await self._whole(question, reader, info, index)
        return await asyncio.to_thread(self._page, question, key, whole, begin)

    async def _whole(
        self, question: PromptQuestion, reader: TranscoderReader, info: ModelInfo, index: OpenIndex | None
    ) -> WholeAnswer:
        layers = sorted(set(question.layers) | {layer for layer, _ in question.features}) or range(info.num_layers)
        for layer in layers:
            if not 0 <= layer < info.num_layers:
                raise NotFoundError(
                    f"transcoders/{question.transcoder} has no layer {layer}; its layers are 0 to {info.num_layers - 1}"
                )
        model = reader.manifest.model
        tokens = await tokens_of(self._runner, model, question.prompt, self._max_prompt_tokens)
        await asyncio.to_thread(_check_work, question, reader, layers, len(tokens))
        read = layers_read(reader, set(layers), info.num_layers)
        hooks = [f"layers.{layer}.{reader.manifest.input_hook}" for layer in read]
        capture = await self._runner.capture(model, [token.id for token in tokens], hooks)
        return await asyncio.to_thread(self._encode, question, reader, list(layers), tokens, capture, index)

    def _page(
        self, question: PromptQuestion, key: Hashable, whole: WholeAnswer, begin: PageToken | None
    ) -> PromptAnswer:
        if begin is not None:
            begin.check(whole, key)
        place, is_paged = begin.place if begin else 0, bool(question.page_size or begin)
        most = len(whole.layer_N)
        if not question.features and (question.max_features or not is_paged):
            most = min(most, question.max_features or _DEFAULT_SHOWN)
        end = min(most, place + min(question.page_size or _DEFAULT_PAGE, _MAX_PAGE)) if is_paged else most
        following = ""
        if end < most:
            self._answers.put(key, whole)
            following = PageToken(end, whole.mark(key, end)).write(question.asked)
        return PromptAnswer(whole.tokens, whole.features(place, end), whole.num_active, following)

    def _encode(
        self,
        question: PromptQuestion,
        reader: TranscoderReader,
        layers: Sequence[int],
        tokens: tuple[Token, ...],
        capture: Capture,
        index: OpenIndex | None,
    ) -> WholeAnswer:
        first = self._models.weights(reader.manifest.model).first_position
        found = []
        counting = None
        if reader.manifest.top_k:
            counting = Firing(reader, capture.tensors, capture.model.num_layers, torch.float32)
        for layer in layers:
            named = sorted(feature for at, feature in question.features if at == layer)
            stream_PD = capture.tensors[f"layers.{layer}.{reader.manifest.input_hook}"]
            wanted = named if question.features else None
            found.append(self._layer(reader, layer, stream_PD, first, wanted, counting))
        index_N, count_N, position_M, value_M = (np.concatenate(parts) for parts in zip(*found, strict=True))
        layer_N = np.repeat(np.array(layers), [len(part[0]) for part in found])
        # Where there is no index nothing is known of any, and the strongest is what fires most.
        largest = [_largest(index, *place) for place in zip(layer_N.tolist(), index_N.tolist(), strict=True)]
        return strongest_first(tokens, layer_N, index_N, count_N, position_M, value_M, np.array(largest, float))

    def _layer(
        self,
        reader: TranscoderReader,
        layer: int,
        stream_PD: Array,
        first: int,
        named: list[int] | None,
        counting: Firing | None,
    ) -> tuple[Array, Array, Array, Array]:
        """Features that are told, how many activations each has, and of all of them positions and activations."""
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
            place_M, position_M = (each.numpy() for each in active_FP.nonzero(as_tuple=True))
            value_M = pre_FP.numpy()[place_M, position_M]
        count_N = np.bincount(place_M, minlength=len(wanted))
        told_N = np.arange(len(wanted)) if named is not None else count_N.nonzero()[0]
        return wanted.numpy()[told_N], count_N[told_N], position_M, value_M

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
    if question.page_size < 0:
        raise InvalidArgumentError(
            f"page_size is {question.page_size}; give 1 to {_MAX_PAGE}, or 0 for an answer without pages",
            field="page_size",
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
