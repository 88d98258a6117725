"""
The base models as RPCs use them: checks what is asked, and runs it on the one thread that the models live on.

Legend: P positions, D d_model, V vocabulary.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from weft_activations.core.hooks import INTERVENTION_HOOKS, expand_hooks, hook_shape, parse_hook
from weft_activations.core.metrics import QUEUE_DEPTH
from weft_activations.core.ports import Freeze, Intervention, InterventionKind, ModelBackend, ModelInfo
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from weft_common.logging import get_logger

__all__ = ["Change", "Inference", "LikelyToken", "Passed", "Predicted", "Prompt", "TokenText"]

T = TypeVar("T")
_LOG = get_logger(__name__)
_MAX_TOP_TOKENS = 100
_DEFAULT_TOP_TOKENS = 10
_MAX_DETOKENIZE = 10_000


@dataclass(frozen=True)
class Prompt:
    """What a model reads: text, or token ids as they are."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Change:
    """An intervention as it was asked for, not yet checked against a model."""

    hook: str
    kind: InterventionKind
    positions: tuple[int, ...]
    value: npt.NDArray[np.float32] | None
    factor: float


@dataclass(frozen=True)
class TokenText:
    """A token id and its text."""

    token_id: int
    text: str


@dataclass(frozen=True)
class LikelyToken:
    """A next token, its probability and its logit."""

    token: TokenText
    probability: float
    logit: float


@dataclass(frozen=True)
class Passed:
    """A captured forward pass; `captures` in the order of the hooks asked for."""

    info: ModelInfo
    tokens: list[TokenText]
    captures: dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Predicted:
    """The outcome of a forward pass at the last position; `logits` is [V]."""

    tokens: list[TokenText]
    top: list[LikelyToken]
    asked: list[LikelyToken]
    logits: npt.NDArray[np.float32]
    mean_logit: float


class Inference:
    """
    Runs models without ever blocking the event loop.

    Args:
        backend: The models.
        max_capture_bytes: Most that one capture may hold, what it freezes included.
    """

    def __init__(self, backend: ModelBackend, *, max_capture_bytes: int = 1 << 30) -> None:
        self._backend = backend
        self._max_capture_bytes = max_capture_bytes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def close(self) -> None:
        """Let the running pass end and drop what waits."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def on_model_thread(self, work: Callable[[ModelBackend], T]) -> T:
        """Run blocking work on the models' thread, after what waits there already."""
        QUEUE_DEPTH.inc()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._backend)
        finally:
            QUEUE_DEPTH.dec()

    async def runnable_ids(self) -> list[str]:
        """List the models that can be run here; a folder of another architecture is passed over."""

        def work(backend: ModelBackend) -> list[str]:
            runnable = []
            for model_id in backend.model_ids():
                try:
                    backend.describe(model_id)
                except FailedPreconditionError as error:
                    _LOG.warning("a model is passed over", model=model_id, why=error.message)
                    continue
                runnable.append(model_id)
            return runnable

        return await self.on_model_thread(work)

    async def describe(self, model_id: str) -> ModelInfo:
        """Describe a model."""
        return await self.on_model_thread(lambda backend: backend.describe(model_id))

    async def tokenize(self, model_id: str, text: str, *, special_tokens: bool) -> list[TokenText]:
        """Turn text into tokens."""
        _check_text(text, "text")

        def work(backend: ModelBackend) -> list[TokenText]:
            return _with_texts(backend, model_id, backend.tokenize(model_id, text, special_tokens=special_tokens))

        return await self.on_model_thread(work)

    async def detokenize(self, model_id: str, token_ids: Sequence[int]) -> list[TokenText]:
        """Turn token ids into text, one by one."""
        if len(token_ids) > _MAX_DETOKENIZE:
            raise InvalidArgumentError(
                f"{len(token_ids)} token ids were sent; send {_MAX_DETOKENIZE} at most in one call", field="token_ids"
            )

        def work(backend: ModelBackend) -> list[TokenText]:
            _check_ids(token_ids, backend.describe(model_id), "token_ids")
            return _with_texts(backend, model_id, token_ids)

        return await self.on_model_thread(work)

    async def capture(
        self, model_id: str, prompt: Prompt, hooks: Sequence[str], changes: Sequence[Change], freeze: Freeze
    ) -> Passed:
        """Run a prompt once and keep what lies at the hooks."""

        def work(backend: ModelBackend) -> Passed:
            info, token_ids = _read_prompt(backend, model_id, prompt)
            names = expand_hooks(hooks, info.num_layers)
            interventions = _check_changes(changes, info, len(token_ids))
            self._check_size(names, info, len(token_ids), freeze if interventions else Freeze())
            captures = backend.forward(model_id, token_ids, names, interventions, freeze)
            return Passed(info, _with_texts(backend, model_id, token_ids), captures)

        return await self.on_model_thread(work)

    async def run(
        self,
        model_id: str,
        prompt: Prompt,
        changes: Sequence[Change],
        freeze: Freeze,
        *,
        num_top_tokens: int,
        asked_token_ids: Sequence[int],
    ) -> Predicted:
        """Run a prompt with changes and look at the last position's logits."""
        if not 0 <= num_top_tokens <= _MAX_TOP_TOKENS:
            raise InvalidArgumentError(
                f"num_top_tokens is {num_top_tokens}; give 1 to {_MAX_TOP_TOKENS}, or 0 for {_DEFAULT_TOP_TOKENS}",
                field="num_top_tokens",
            )

        def work(backend: ModelBackend) -> Predicted:
            info, token_ids = _read_prompt(backend, model_id, prompt)
            _check_ids(asked_token_ids, info, "logit_token_ids")
            interventions = _check_changes(changes, info, len(token_ids))
            self._check_size(["logits"], info, len(token_ids), freeze if interventions else Freeze())
            logits_V = backend.forward(model_id, token_ids, ["logits"], interventions, freeze)["logits"]
            wide_V = logits_V.astype(np.float64)
            weights_V = np.exp(wide_V - wide_V.max())
            probabilities_V = weights_V / weights_V.sum()

            def likely(ids: Sequence[int]) -> list[LikelyToken]:
                return [
                    LikelyToken(token, float(probabilities_V[token.token_id]), float(wide_V[token.token_id]))
                    for token in _with_texts(backend, model_id, ids)
                ]

            count = min(num_top_tokens or _DEFAULT_TOP_TOKENS, info.vocab_size)
            best = np.argsort(-wide_V, kind="stable")[:count]
            return Predicted(
                tokens=_with_texts(backend, model_id, token_ids),
                top=likely([int(token_id) for token_id in best]),
                asked=likely(asked_token_ids),
                logits=logits_V,
                mean_logit=float(wide_V.mean()),
            )

        return await self.on_model_thread(work)

    async def streams(
        self,
        model_id: str,
        sequences: Sequence[npt.NDArray[np.int64]],
        input_hook: str,
        output_hook: str,
        into: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    ) -> None:
        """Run some sequences of a harvest; see `ModelBackend.streams`."""
        await self.on_model_thread(lambda backend: backend.streams(model_id, sequences, input_hook, output_hook, into))

    def _check_size(self, names: Sequence[str], info: ModelInfo, positions: int, freeze: Freeze) -> None:
        def size(hook: str) -> int:
            shape = hook_shape(
                hook,
                positions=positions,
                d_model=info.d_model,
                num_heads=info.num_heads,
                vocab_size=info.vocab_size,
            )
            return 4 * int(np.prod(shape, dtype=np.int64))

        total = sum(map(size, names))
        if freeze.attention_patterns:
            total += info.num_layers * size("layers.0.attn.pattern")
        if freeze.mlp_outputs:
            total += info.num_layers * size("layers.0.mlp_out")
        if total > self._max_capture_bytes:
            raise ResourceExhaustedError(
                f"this pass over {positions} tokens would hold {total} bytes, more than the {self._max_capture_bytes} "
                "that one pass may; ask for fewer hooks (attention patterns are the largest) or a shorter prompt",
                field="hooks",
            )


def _read_prompt(backend: ModelBackend, model_id: str, prompt: Prompt) -> tuple[ModelInfo, list[int]]:
    info = backend.describe(model_id)
    if prompt.token_ids is not None:
        token_ids = list(prompt.token_ids)
        field = "prompt.token_ids"
    elif prompt.text is not None:
        _check_text(prompt.text, "prompt.text")
        token_ids = backend.tokenize(model_id, prompt.text)
        field = "prompt.text"
    else:
        raise InvalidArgumentError("there is no prompt; set prompt.text or prompt.token_ids", field="prompt")
    if not token_ids:
        raise InvalidArgumentError("the prompt has no tokens; give at least one", field=field)
    if len(token_ids) > info.max_tokens:
        raise InvalidArgumentError(
            f"the prompt has {len(token_ids)} tokens; {model_id} takes {info.max_tokens} at most, so shorten it",
            field=field,
        )
    _check_ids(token_ids, info, field)
    return info, token_ids


def _check_text(text: str, field: str) -> None:
    if not text:
        raise InvalidArgumentError("the text is empty; give at least one character", field=field)


def _check_ids(token_ids: Sequence[int], info: ModelInfo, field: str) -> None:
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < info.vocab_size:
            raise InvalidArgumentError(
                f"token id {token_id} at index {index} is outside the vocabulary of {info.model_id}; "
                f"ids go from 0 to {info.vocab_size - 1}",
                field=f"{field}[{index}]",
            )


def _with_texts(backend: ModelBackend, model_id: str, token_ids: Sequence[int]) -> list[TokenText]:
    texts = backend.token_texts(model_id, token_ids)
    return [TokenText(token_id, text) for token_id, text in zip(token_ids, texts, strict=True)]


def _check_changes(changes: Sequence[Change], info: ModelInfo, num_positions: int) -> list[Intervention]:
    return [_check_change(change, index, info, num_positions) for index, change in enumerate(changes)]


def _check_change(change: Change, index: int, info: ModelInfo, num_positions: int) -> Intervention:
    field = f"interventions[{index}]"
    layer, hook = parse_hook(change.hook, info.num_layers, field=f"{field}.hook", among=INTERVENTION_HOOKS)
    for position in change.positions:
        if not 0 <= position < num_positions:
            raise InvalidArgumentError(
                f"there is no position {position}; the prompt has {num_positions} tokens, 0 to {num_positions - 1}",
                field=f"{field}.positions",
            )
    if len(set(change.positions)) != len(change.positions):
        raise InvalidArgumentError("a position is named twice; name each once", field=f"{field}.positions")
    if change.kind in (InterventionKind.ADD, InterventionKind.SET):
        rows = len(change.positions) or num_positions
        shapes = ((info.d_model,), (rows, info.d_model))
        if change.value is None or change.value.shape not in shapes:
            found = "none" if change.value is None else str(list(change.value.shape))
            raise InvalidArgumentError(
                f"the value's shape is {found}; {change.kind.value} takes float32 [{info.d_model}] or "
                f"[{rows}, {info.d_model}]",
                field=f"{field}.value",
            )
        if not np.isfinite(change.value).all():
            raise InvalidArgumentError("the value holds NaN or infinity; send finite numbers", field=f"{field}.value")
    elif not isfinite(change.factor):
        raise InvalidArgumentError(f"the factor is {change.factor}; send a finite number", field=f"{field}.factor")
    return Intervention(layer, hook, change.kind, change.positions, change.value, change.factor)
