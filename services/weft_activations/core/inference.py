"""
The base models as RPCs use them: checks what is asked, and runs it on the threads that the models take calls from.

Legend: P positions, D d_model, V vocabulary.
"""

import math
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from weft_activations.core.calls import ByteBudget, current_call, run_call
from weft_activations.core.changing import Change, Prompt, work_out
from weft_activations.core.hooks import expand_hooks, hook_shape
from weft_activations.core.kinds import check_logits
from weft_activations.core.metrics import CAPTURED_BYTES, QUEUE_DEPTH
from weft_activations.core.ports import Floats, Freeze, Intervention, ModelBackend, ModelInfo, ModelInput
from weft_activations.core.speech import check_text_alone, read_spectrogram, speech_of
from weft_activations.core.token_texts import TokenText, tokens_alone, tokens_of_run
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from weft_common.logging import get_logger

__all__ = [
    "Checked",
    "Inference",
    "LikelyToken",
    "Passed",
    "Predicted",
    "check_ids",
    "read_input",
    "read_prompt",
]

T = TypeVar("T")
_LOG = get_logger(__name__)
_MAX_TOP_TOKENS = 100
_DEFAULT_TOP_TOKENS = 10
_MAX_DETOKENIZE = 10_000
_NOTHING = Freeze()
_TRACED = ("resid_pre", "attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True)
class LikelyToken:
    """A next token, its probability and its logit."""

    token: TokenText
    probability: float
    logit: float


@dataclass(frozen=True)
class Passed:
    """A captured forward pass; `captures` by the names and in the order asked for."""

    info: ModelInfo
    tokens: list[TokenText]
    captures: dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Predicted:
    """The outcome of a forward pass at one position; `logits` is [V]."""

    tokens: list[TokenText]
    top: list[LikelyToken]
    asked: list[LikelyToken]
    logits: npt.NDArray[np.float32]
    mean_logit: float


@dataclass(frozen=True)
class Checked:
    """A prompt and changes that fit the model."""

    info: ModelInfo
    token_ids: list[int]
    tokens: list[TokenText]
    interventions: list[Intervention]


class Inference:
    """
    Runs models without ever blocking the event loop.

    Args:
        backend: The models.
        max_capture_bytes: Most that one capture may hold, what it freezes included.
        max_captured_bytes: Most that all captures hold together; one may always run.
        calls_at_once: Calls that the backend takes at once; more wait in order.
    """

    def __init__(
        self,
        backend: ModelBackend,
        *,
        max_capture_bytes: int = 1 << 30,
        max_captured_bytes: int = 2 << 30,
        calls_at_once: int = 1,
    ) -> None:
        self._backend = backend
        self._max_capture_bytes = max_capture_bytes
        self._captured = ByteBudget(max_captured_bytes)
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._threads = ThreadPoolExecutor(max_workers=calls_at_once, thread_name_prefix="model")

    def close(self) -> None:
        """Let the running pass end and drop what waits."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def on_model_thread(self, work: Callable[[ModelBackend], T]) -> T:
        """Run blocking work on a thread of the models', after what waits there already."""
        waits = True

        def wait_no_more() -> None:
            nonlocal waits
            with self._lock:
                self._num_waiting -= waits
                waits = False

        def begin() -> T:
            wait_no_more()
            return work(self._backend)

        QUEUE_DEPTH.inc()
        with self._lock:
            self._num_waiting += 1
        try:
            return await run_call(self._threads, begin)
        finally:
            wait_no_more()
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
            return tokens_of_run(backend, model_id, backend.tokenize(model_id, text, special_tokens=special_tokens))

        return await self.on_model_thread(work)

    async def detokenize(self, model_id: str, token_ids: Sequence[int]) -> list[TokenText]:
        """Turn token ids into text, one by one."""
        if len(token_ids) > _MAX_DETOKENIZE:
            raise InvalidArgumentError(
                f"{len(token_ids)} token ids were sent; send {_MAX_DETOKENIZE} at most in one call", field="token_ids"
            )

        def work(backend: ModelBackend) -> list[TokenText]:
            check_ids(token_ids, backend.describe(model_id), "token_ids")
            return tokens_alone(backend, model_id, token_ids)

        return await self.on_model_thread(work)

    async def check(self, model_id: str, prompt: Prompt, changes: Sequence[Change]) -> Checked:
        """Check a prompt and changes, and run what the changes need first."""

        def work(backend: ModelBackend) -> Checked:
            info, token_ids = read_prompt(backend, model_id, prompt)
            tokens = tokens_of_run(backend, model_id, token_ids)
            given = ModelInput(tuple(token_ids))
            return Checked(info, token_ids, tokens, self._work_out(backend, info, given, changes))

        return await self.on_model_thread(work)

    async def likely(self, model_id: str, logits_V: Floats, token_ids: Sequence[int]) -> list[LikelyToken]:
        """Tell how likely tokens are."""
        return await self.on_model_thread(lambda backend: _likely(backend, model_id, logits_V, token_ids))

    @asynccontextmanager
    async def capturing(
        self, model_id: str, prompt: Prompt, hooks: Sequence[str], changes: Sequence[Change], freeze: Freeze
    ) -> AsyncIterator[Passed]:
        """Run a prompt once and keep what lies at the hooks, for as long as the context lasts."""

        def check(backend: ModelBackend) -> tuple[ModelInfo, ModelInput, dict[str, str], int]:
            info, given = read_input(backend, model_id, prompt)
            names = expand_hooks(hooks, info)
            size = self.check_size(
                list(dict.fromkeys(names.values())), info, len(given.token_ids), freeze if changes else Freeze()
            )
            return info, given, names, size

        info, given, names, size = await self.on_model_thread(check)
        if any(change.reads_a_pass for change in changes):
            size += self._max_capture_bytes

        def work(backend: ModelBackend) -> Passed:
            interventions = self._work_out(backend, info, given, changes)
            own_names = list(dict.fromkeys(names.values()))
            found = _forward(backend, info, given, own_names, interventions, freeze)
            captures = {asked: found[name] for asked, name in names.items()}
            return Passed(info, tokens_of_run(backend, model_id, given.token_ids), captures)

        async with self._captured.taking(size):
            CAPTURED_BYTES.inc(size)
            try:
                yield await self.on_model_thread(work)
            finally:
                CAPTURED_BYTES.dec(size)

    async def run(
        self,
        model_id: str,
        prompt: Prompt,
        changes: Sequence[Change],
        freeze: Freeze,
        *,
        num_top_tokens: int,
        asked_token_ids: Sequence[int],
        position: int | None = None,
    ) -> Predicted:
        """Run a prompt with changes and look at the logits of a position, the last one where it is None."""
        if not 0 <= num_top_tokens <= _MAX_TOP_TOKENS:
            raise InvalidArgumentError(
                f"num_top_tokens is {num_top_tokens}; give 1 to {_MAX_TOP_TOKENS}, or 0 for {_DEFAULT_TOP_TOKENS}",
                field="num_top_tokens",
            )

        def work(backend: ModelBackend) -> Predicted:
            info, given = read_input(backend, model_id, prompt)
            token_ids = given.token_ids
            check_logits(info)
            check_ids(asked_token_ids, info, "logit_token_ids")
            if position is not None and not 0 <= position < len(token_ids):
                raise InvalidArgumentError(
                    f"there is no position {position}; the prompt has {len(token_ids)} tokens, 0 to "
                    f"{len(token_ids) - 1}",
                    field="position",
                )
            hook = "logits" if position is None else "logits_all"
            self.check_size([hook], info, len(token_ids), freeze if changes else Freeze())
            interventions = self._work_out(backend, info, given, changes)
            logits = _forward(backend, info, given, [hook], interventions, freeze)[hook]
            logits_V = logits if position is None else logits[position]
            count = min(num_top_tokens or _DEFAULT_TOP_TOKENS, info.vocab_size)
            best = np.argsort(-logits_V, kind="stable")[:count]
            return Predicted(
                tokens=tokens_of_run(backend, model_id, token_ids),
                top=_likely(backend, model_id, logits_V, [int(token_id) for token_id in best]),
                asked=_likely(backend, model_id, logits_V, asked_token_ids),
                logits=logits_V,
                mean_logit=float(logits_V.mean(dtype=np.float64)),
            )

        return await self.on_model_thread(work)

    async def streams(
        self,
        model_id: str,
        turns: Sequence[Sequence[npt.NDArray[np.int64]]],
        into: Mapping[str, npt.NDArray[np.float32]],
    ) -> int:
        """Run turns of a harvest, at least one and more while nobody waits; see `ModelBackend.streams`."""

        def work(backend: ModelBackend) -> int:
            call = current_call()
            return backend.streams(model_id, turns, into, lambda: self._num_waiting > 0 or call.is_cancelled)

        return await self.on_model_thread(work)

    def _work_out(
        self, backend: ModelBackend, info: ModelInfo, given: ModelInput, changes: Sequence[Change]
    ) -> list[Intervention]:
        return work_out(
            changes,
            info,
            given,
            read=lambda prompt, field: read_input(backend, info.model_id, prompt, field)[1],
            clean=lambda source, hooks: _forward(backend, info, source, hooks, (), None),
            max_held_bytes=self._max_capture_bytes,
        )

    @property
    def max_capture_bytes(self) -> int:
        """Most that one pass may hold."""
        return self._max_capture_bytes

    def check_size(self, names: Sequence[str], info: ModelInfo, positions: int, freeze: Freeze = _NOTHING) -> int:
        """Return the bytes that one pass would hold at these hooks, or raise ResourceExhaustedError: too many."""

        def size(hook: str) -> int:
            return 4 * math.prod(hook_shape(hook, info, positions))

        total = sum(map(size, names))
        held: tuple[str, ...] = (".attn.pattern", ".cross.pattern") if freeze.attention_patterns else ()
        held += (".mlp_out",) if freeze.mlp_outputs else ()
        if held:
            frozen = [pattern for pattern in info.components if pattern.endswith(held)]
            total += sum(map(size, expand_hooks(frozen, info).values()))
        if total > self._max_capture_bytes:
            raise ResourceExhaustedError(
                f"this pass over {positions} tokens would hold {total} bytes, more than the {self._max_capture_bytes} "
                "that one pass may; ask for fewer hooks (attention patterns are the largest) or a shorter prompt",
                field="hooks",
            )
        return total


def _likely(backend: ModelBackend, model_id: str, logits_V: Floats, token_ids: Sequence[int]) -> list[LikelyToken]:
    wide_V = logits_V.astype(np.float64)
    weights_V = np.exp(wide_V - wide_V.max())
    return [
        LikelyToken(token, float(weights_V[token.token_id] / weights_V.sum()), float(wide_V[token.token_id]))
        for token in tokens_alone(backend, model_id, token_ids)
    ]


def _forward(
    backend: ModelBackend,
    info: ModelInfo,
    given: ModelInput,
    hooks: Sequence[str],
    interventions: Sequence[Intervention],
    freeze: Freeze | None,
) -> dict[str, Floats]:
    """
    Run a pass.

    Raises:
        FailedPreconditionError: Something in it is no number; the message names the first place.
    """

    def run(wanted: Sequence[str]) -> dict[str, Floats]:
        if given.spectrogram is None:
            return backend.forward(info.model_id, given.token_ids, wanted, interventions, freeze)
        features_NS = given.spectrogram.features_NS
        return speech_of(backend).forward_speech(
            info.model_id, features_NS, given.token_ids, wanted, interventions, freeze
        )

    found = run(hooks)
    if not any(_holds_nan(value) for value in found.values()):
        return found
    streams = [
        name
        for stack in ("encoder.", "decoder.", "")
        if f"{stack}layers.*.resid_pre" in info.components
        for layer in _by_layer(expand_hooks([f"{stack}layers.*.{each}" for each in _TRACED], info).values())
        for name in layer
    ]
    trace = run(streams)
    bad = next((name for name in streams if _holds_nan(trace[name])), None)
    bad = bad or next(name for name, value in found.items() if _holds_nan(value))
    raise FailedPreconditionError(
        f"the activations of {info.model_id} are NaN from {bad} on; an intervention of a smaller size, float32 in "
        "place of bfloat16, or whole weights may mend it",
        field="model",
    )


def _by_layer(names: Iterable[str]) -> list[list[str]]:
    """Put components in order of their layers, those of a layer in the order in which they are."""
    layers: dict[int, list[str]] = {}
    for name in names:
        layers.setdefault(int(name.partition("layers.")[2].split(".")[0]), []).append(name)
    return [layers[layer] for layer in sorted(layers)]


def _holds_nan(value: Floats) -> bool:
    # A sum is NaN where an entry is, and is many times faster to take than to look at every entry.
    with np.errstate(all="ignore"):
        return bool(np.isnan(value.sum()) and np.isnan(value).any())


def read_prompt(
    backend: ModelBackend, model_id: str, prompt: Prompt, field: str = "prompt"
) -> tuple[ModelInfo, list[int]]:
    """
    Describe a model and turn a prompt into its tokens.

    Raises:
        InvalidArgumentError: The prompt is empty, too long, or has an id outside the vocabulary.
    """
    info = backend.describe(model_id)
    check_text_alone(info, prompt, field)
    return info, _read_tokens(backend, info, prompt, field)


def read_input(
    backend: ModelBackend, model_id: str, prompt: Prompt, field: str = "prompt"
) -> tuple[ModelInfo, ModelInput]:
    """
    Describe a model and read what a pass of it reads, audio too.

    Raises:
        InvalidArgumentError: The prompt does not fit the model; the message says where.
    """
    info = backend.describe(model_id)
    if info.speech is None:
        info, token_ids = read_prompt(backend, model_id, prompt, field)
        return info, ModelInput(tuple(token_ids))
    spectrogram = read_spectrogram(backend, info, prompt.audio, f"{field}.audio")
    return info, ModelInput(tuple(_read_tokens(backend, info, prompt, field)), spectrogram)


def _read_tokens(backend: ModelBackend, info: ModelInfo, prompt: Prompt, field: str) -> list[int]:
    model_id = info.model_id
    if prompt.token_ids is not None:
        token_ids = list(prompt.token_ids)
        place = f"{field}.token_ids"
    elif prompt.text is not None:
        _check_text(prompt.text, f"{field}.text")
        token_ids = backend.tokenize(model_id, prompt.text)
        if info.speech is not None and token_ids[-1:] == [info.speech.end_token_id]:
            # The tokenizer ends a transcript; here it goes on.
            token_ids = token_ids[:-1]
        place = f"{field}.text"
    else:
        raise InvalidArgumentError(f"there is no prompt; set {field}.text or {field}.token_ids", field=field)
    if not token_ids:
        raise InvalidArgumentError("the prompt has no tokens; give at least one", field=place)
    if len(token_ids) > info.max_tokens:
        raise InvalidArgumentError(
            f"the prompt has {len(token_ids)} tokens; {model_id} takes {info.max_tokens} at most, so shorten it",
            field=place,
        )
    check_ids(token_ids, info, place)
    return token_ids


def _check_text(text: str, field: str) -> None:
    if not text:
        raise InvalidArgumentError("the text is empty; give at least one character", field=field)


def check_ids(token_ids: Sequence[int], info: ModelInfo, field: str) -> None:
    """Raise InvalidArgumentError unless every id is in the vocabulary."""
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < info.vocab_size:
            raise InvalidArgumentError(
                f"token id {token_id} at index {index} is outside the vocabulary of {info.model_id}; "
                f"ids go from 0 to {info.vocab_size - 1}",
                field=f"{field}[{index}]",
            )
