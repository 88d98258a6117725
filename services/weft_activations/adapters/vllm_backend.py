"""
Base models by vLLM: calls of many threads share the passes of one engine.

What a model is and how it splits text is read by the transformers backend from the same folder, so that both tell the
same. vLLM has no attention patterns to read or to hold, and does not stop between layers; what needs that is refused,
and so is what several ranks share.

Legend: P positions, D d_model, L layers.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from weft_activations.adapters.transformers_backend import Dtype, TransformersBackend
from weft_activations.adapters.vllm_capture import CHANGED, CHANGED_ON_ONE_RANK, SHOWN, SHOWN_ON_ONE_RANK
from weft_activations.adapters.vllm_engine import CaptureRequest, VllmEngine
from weft_activations.adapters.vllm_models import ARCHITECTURES
from weft_activations.adapters.vllm_scheduler import EngineSettings, VllmScheduler
from weft_activations.core.calls import current_call
from weft_activations.core.components import component_at
from weft_activations.core.hooks import hook_shape
from weft_activations.core.ports import Decoding, Doubles, Floats, Freeze, Intervention, ModelInfo, Passes
from weft_common.errors import CancelledError, FailedPreconditionError, UnimplementedError
from weft_common.logging import get_logger

__all__ = ["VllmBackend"]

_LOG = get_logger(__name__)
_ANY_LENGTH = 1 << 30


class VllmBackend:
    """
    The `ModelBackend` over vLLM. Calls may come from many threads at once.

    One model is loaded at a time; another one waits until what runs is through, and takes its place.

    Args:
        models_dir: Holds one Hugging Face folder a model; the folder's name is the model's id.
        dtype: What the model computes in; auto is bfloat16 on a CUDA device and float32 elsewhere.
        max_prompt_tokens: Longest prompt, where the model itself would take a longer one.
        threads: Threads of a pass on a processor; 0 leaves torch's own choice.
        batch_tokens: Tokens of one pass; longer prompts are cut.
        chunk_tokens: Most tokens of one prompt in a pass; 0 sets none.
        kv_cache_bytes: Memory for the keys and values of what runs, on each rank.
        tensor_parallel: Ranks that share every layer.
        whole_prompts: A prompt begins once there is room for all its keys and values; otherwise it may be put off in
            its middle, and begins again.
    """

    def __init__(
        self,
        models_dir: Path,
        *,
        dtype: Dtype = "auto",
        max_prompt_tokens: int = 2048,
        threads: int = 0,
        batch_tokens: int = 2048,
        chunk_tokens: int = 0,
        kv_cache_bytes: int = 1 << 30,
        tensor_parallel: int = 1,
        whole_prompts: bool = True,
    ) -> None:
        self._models_dir = models_dir
        self._folders = TransformersBackend(models_dir, dtype=dtype, max_prompt_tokens=_ANY_LENGTH)
        self._max_prompt_tokens = max_prompt_tokens
        self._threads = threads
        self._batch_tokens, self._chunk_tokens = batch_tokens, chunk_tokens
        self._kv_cache_bytes = kv_cache_bytes
        self._whole_prompts = whole_prompts
        self._tensor_parallel = tensor_parallel
        one_rank = tensor_parallel == 1
        self._shown = (*SHOWN, *(SHOWN_ON_ONE_RANK if one_rank else ()))
        self._changed = (*CHANGED, *(CHANGED_ON_ONE_RANK if one_rank else ()))
        # Tokenizers and descriptions are kept once read, and are read by one thread at a time.
        self._reading = threading.Lock()
        self._free = threading.Condition()
        self._engine: VllmEngine | None = None
        self._engine_model = ""
        self._num_users = 0

    @property
    def on_processor(self) -> bool:
        """Whether vLLM has found no device."""
        return self._folders.on_processor

    def model_ids(self) -> list[str]:
        """List the folders that hold a config.json."""
        return self._folders.model_ids()

    def describe(self, model_id: str) -> ModelInfo:
        """Describe a model as it is here: vLLM wants room for one token after the longest prompt."""
        with self._reading:
            info = self._folders.describe(model_id)
        if info.architecture not in ARCHITECTURES:
            raise FailedPreconditionError(
                f"the model {model_id!r} is a {info.architecture}, which cannot be captured from in vLLM; what can: "
                f"{', '.join(ARCHITECTURES)}. Serve it by WEFT_ACTIVATIONS_BACKEND=transformers"
            )
        shown = tuple(name for name in info.components if component_at(name).name in self._shown)
        longest = min(self._max_prompt_tokens, info.max_tokens - 1)
        return replace(info, max_tokens=longest, components=shown, shown_in_part=True)

    def tokenize(self, model_id: str, text: str, *, special_tokens: bool = True) -> list[int]:
        """Turn text into token ids."""
        with self._reading:
            return self._folders.tokenize(model_id, text, special_tokens=special_tokens)

    def token_pieces(self, model_id: str, token_ids: Sequence[int]) -> list[bytes]:
        """Turn each token id into its bytes."""
        with self._reading:
            return self._folders.token_pieces(model_id, token_ids)

    def forward(
        self,
        model_id: str,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention] = (),
        freeze: Freeze | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """
        Run one prompt among others.

        Raises:
            UnimplementedError: A hook that vLLM does not show, or something that it cannot hold.
        """
        if freeze and interventions:
            _refuse("hold what is frozen while it changes something else", field="freeze")
        return self._captured(model_id, token_ids, hooks, [interventions])[0]

    def forward_rows(
        self, model_id: str, token_ids: Sequence[int], rows: Sequence[Sequence[Intervention]], hooks: Sequence[str]
    ) -> dict[str, Floats]:
        """Run one prompt many times, as many at once as a pass has room for."""
        found = self._captured(model_id, token_ids, hooks, rows)
        return {hook: np.stack([row[hook] for row in found]) for hook in hooks}

    def streams(
        self,
        model_id: str,
        turns: Sequence[Sequence[npt.NDArray[np.int64]]],
        into: Mapping[str, npt.NDArray[np.float32]],
        others_wait: Callable[[], bool] = lambda: False,
    ) -> int:
        """Run sequences for what lies at some hooks; rows go from the model straight to their place."""
        for hook in into:
            self._check(f"layers.0.{hook}", self._shown, "show", "hooks")
        info = self.describe(model_id)
        start = 0
        for number, turn in enumerate(turns):
            if number and others_wait():
                return number
            requests = []
            for sequence in turn:
                rows = slice(start, start + len(sequence) - 1)
                start = rows.stop
                sinks = {
                    f"layers.{layer}.{hook}": array_LTD[layer, rows]
                    for hook, array_LTD in into.items()
                    for layer in range(info.num_layers)
                }
                requests.append(CaptureRequest(sequence.tolist(), sinks, skipped=1))
            self._run(info, requests)
        return len(turns)

    def passes(self, model_id: str, sequences: Sequence[Sequence[int]], input_hook: str) -> Passes:
        """Refuse: vLLM's passes do not stop for somebody else's outputs."""
        _refuse("put somebody else in the place of MLPs")

    def decoding(self, model_id: str, interventions: Sequence[Intervention] = ()) -> Decoding:
        """Refuse: a step would have to wait for the next one with its keys and values kept."""
        _refuse("read token after token")

    def unembed(self, model_id: str, resid_ND: Floats) -> Floats:
        """Refuse: the unembedding runs inside passes alone."""
        _refuse("unembed streams by themselves")

    def neuron_directions(self, model_id: str, layer: int, directions_ND: Doubles) -> Doubles:
        """Refuse: weights are with the workers."""
        _refuse("show a neuron's weights")

    def logit_directions(self, model_id: str, token_ids: Sequence[int]) -> tuple[Doubles, Doubles]:
        """Refuse: weights are with the workers."""
        _refuse("show the unembedding's weights")

    @property
    def num_running(self) -> int:
        """How many prompts the engine holds."""
        engine = self._engine
        return engine.num_running if engine is not None else 0

    def close(self) -> None:
        """Drop what runs and let go of the model."""
        with self._free:
            if self._engine is not None:
                self._engine.close()
            self._engine = None

    def _captured(
        self,
        model_id: str,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        rows: Sequence[Sequence[Intervention]],
    ) -> list[dict[str, Floats]]:
        """Run one prompt once for each row of interventions."""
        for hook in hooks:
            self._check(hook, self._shown, "show", "hooks")
        for change in (change for row in rows for change in row):
            self._check(change.name, self._changed, "change", "interventions")
        info = self.describe(model_id)
        found = [{hook: np.empty(hook_shape(hook, info, len(token_ids)), np.float32) for hook in hooks} for _ in rows]
        self._run(
            info,
            [
                CaptureRequest(token_ids, sinks, interventions=changes)
                for sinks, changes in zip(found, rows, strict=True)
            ],
        )
        return found

    def _check(self, hook: str, known: Sequence[str], what: str, field: str) -> None:
        if component_at(hook).name not in known:
            ranks = "" if self._tensor_parallel == 1 else f" over {self._tensor_parallel} ranks"
            _refuse(f"{what} {hook!r}{ranks}; it does {', '.join(known)}", field=field)

    def _run(self, info: ModelInfo, requests: Sequence[CaptureRequest]) -> None:
        """Run requests and return once nothing is written any more, whole or not."""
        call = current_call()
        call.check()
        engine = self._take_engine(info)
        try:

            def drop() -> None:
                for request in requests:
                    engine.cancel(request)

            submitted = []
            with call.heard_by(drop):
                failure: Exception | None = None
                try:
                    for request in requests:
                        engine.submit(request)
                        submitted.append(request)
                except Exception as error:
                    failure = error
                    drop()
                for request in submitted:
                    try:
                        request.done.result()
                    except FutureCancelledError:
                        failure = failure or CancelledError("the call was cancelled before it was through")
                    except Exception as error:
                        if failure is None:
                            drop()
                        failure = failure or error
                if failure is not None:
                    raise failure
        finally:
            with self._free:
                self._num_users -= 1
                self._free.notify_all()

    def _take_engine(self, info: ModelInfo) -> VllmEngine:
        with self._free:
            while self._num_users and self._engine_model != info.model_id:
                self._free.wait()
            if self._engine is None or not self._engine.is_alive or self._engine_model != info.model_id:
                if self._engine is not None:
                    self._engine.close()
                    self._engine = None
                self._engine = self._open(info)
                self._engine_model = info.model_id
            self._num_users += 1
            return self._engine

    def _open(self, info: ModelInfo) -> VllmEngine:
        settings = EngineSettings(
            architecture=info.architecture,
            dtype=info.data_type,
            max_tokens=info.max_tokens,
            batch_tokens=self._batch_tokens,
            chunk_tokens=self._chunk_tokens,
            kv_cache_bytes=self._kv_cache_bytes,
            tensor_parallel=self._tensor_parallel,
            whole_prompts=self._whole_prompts,
            threads=self._threads,
        )
        folder = self._models_dir / info.model_id
        engine = VllmEngine(lambda: VllmScheduler(folder, settings), in_process=self._tensor_parallel == 1)
        _LOG.info("model loaded by vLLM", model=info.model_id, data_type=info.data_type, ranks=self._tensor_parallel)
        return engine


def _refuse(what: str, **fields: Any) -> NoReturn:
    raise UnimplementedError(
        f"the vLLM backend does not {what}. Send the call to a replica with WEFT_ACTIVATIONS_BACKEND=transformers, "
        "which does",
        **fields,
    )
