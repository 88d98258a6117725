"""
Base models by Hugging Face transformers: folders on disk, nothing ever fetched, loaded when first used.

Attention is open where something inside it is read, changed or held; the fused kernel runs everywhere else.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from weft_activations.adapters.model_folder import has_weight, model_revision, most_positions
from weft_activations.adapters.token_pieces import TokenPieces
from weft_activations.adapters.turns import TurnTaking, batches_by_turn
from weft_activations.core.components import ARCHITECTURES, SPEECH, component_patterns
from weft_activations.core.ports import Freeze, Intervention, ModelInfo
from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_common.logging import get_logger

if TYPE_CHECKING:
    from weft_activations.adapters.decoding import CachedDecoding
    from weft_activations.adapters.places import Located
    from weft_activations.adapters.replaced_pass import ReplacedPasses
    from weft_activations.adapters.torch_blocks import Parts

__all__ = ["TransformersBackend"]

_LOG = get_logger(__name__)
_ARCHITECTURES_SHOWN = "Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3, GPT-2, GPT-NeoX, BERT, RoBERTa and Whisper"

# Tokens of one pass of a harvest: enough that products dominate, few enough that threads end about together and what
# a layer makes stays in a core's cache.
_CPU_TOKENS = 256
_GPU_TOKENS = 16384

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass
class _Loaded:
    model: Any
    located: "Located"
    parts: "Parts | None"
    """None where the model has another form than `torch_blocks` knows."""


class TransformersBackend:
    """
    The `ModelBackend` over a folder of Hugging Face folders.

    Args:
        models_dir: Holds one folder a model; the folder's name is the model's id.
        dtype: What the model computes in; auto is bfloat16 on a CUDA device and float32 elsewhere.
        max_prompt_tokens: Longest prompt, where the model itself would take a longer one.
        device: A torch device; "auto" is CUDA where there is one.
        threads: Threads of one forward pass; 0 leaves torch's own choice.
    """

    def __init__(
        self,
        models_dir: Path,
        *,
        dtype: Dtype = "auto",
        max_prompt_tokens: int = 2048,
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        self._models_dir = models_dir
        self._dtype = dtype
        self._max_prompt_tokens = max_prompt_tokens
        self._device_asked = device
        self._threads = threads
        self._infos: dict[str, tuple[tuple[tuple[str, int, int], ...], ModelInfo]] = {}
        self._tokenizers: dict[str, Any] = {}
        self._pieces: dict[str, TokenPieces] = {}
        self._models: dict[str, _Loaded] = {}
        self._one_core: ThreadPoolExecutor | None = None

    @property
    def on_processor(self) -> bool:
        """Whether models run on the processors."""
        return self._device() == "cpu"

    def model_ids(self) -> list[str]:
        """List the folders that hold a config.json."""
        if not self._models_dir.is_dir():
            return []
        return sorted(
            path.name
            for path in self._models_dir.iterdir()
            if not path.name.startswith(".") and (path / "config.json").is_file()
        )

    def describe(self, model_id: str) -> ModelInfo:
        """Describe a model from its configuration; its files are hashed once, and again only when they change."""
        folder = self._folder(model_id)
        seen = tuple(
            sorted(
                (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()
            )
        )
        known = self._infos.get(model_id)
        if known is None or known[0] != seen:
            known = (seen, self._read_info(model_id, folder))
            self._infos[model_id] = known
        return known[1]

    def tokenize(self, model_id: str, text: str, *, special_tokens: bool = True) -> list[int]:
        """Turn text into token ids."""
        ids: list[int] = self._tokenizer(model_id).encode(text, add_special_tokens=special_tokens)
        return ids

    def token_pieces(self, model_id: str, token_ids: Sequence[int]) -> list[bytes]:
        """Turn each token id into its bytes."""
        if model_id not in self._pieces:
            self._pieces[model_id] = TokenPieces(self._tokenizer(model_id))
        return self._pieces[model_id](token_ids)

    def forward(
        self,
        model_id: str,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention] = (),
        freeze: Freeze | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run one prompt; a clean pass comes first where something is held."""
        return self._run(model_id, token_ids, hooks, interventions, freeze)

    def log_mel(self, model_id: str, samples_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Turn audio into the log-mel features that a model of speech reads."""
        from weft_activations.adapters.speech import extractor_of, log_mel

        return log_mel(extractor_of(self._folder(model_id), self._load(model_id).model.config), samples_T)

    def forward_speech(
        self,
        model_id: str,
        features_NS: npt.NDArray[np.float32],
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention] = (),
        freeze: Freeze | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run one recording and the tokens that were said so far."""
        return self._run(model_id, token_ids, hooks, interventions, freeze, features_NS)

    def _run(
        self,
        model_id: str,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention],
        freeze: Freeze | None,
        features_NS: npt.NDArray[np.float32] | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        import torch

        from weft_activations.adapters.hooked_pass import held_hooks, run_pass

        located = self._load(model_id).located
        frozen = held_hooks(freeze, located.places) if freeze else []
        with torch.inference_mode():
            tokens_BP = torch.tensor([list(token_ids)], device=self._device())
            features_BNS = None
            if features_NS is not None:
                features_BNS = torch.from_numpy(features_NS).to(self._device())[None]
            held = None
            if frozen and interventions:
                held = run_pass(located, tokens_BP, frozen, features_BNS=features_BNS)
            kept = run_pass(
                located, tokens_BP, hooks, interventions=interventions, held=held, features_BNS=features_BNS
            )
            return {hook: np.asarray(kept[hook][0].float().cpu().numpy()) for hook in hooks}

    def streams(
        self,
        model_id: str,
        turns: Sequence[Sequence[npt.NDArray[np.int64]]],
        into: Mapping[str, npt.NDArray[np.float32]],
        others_wait: Callable[[], bool] = lambda: False,
    ) -> int:
        """
        Run turns of sequences for what lies at some hooks, in batches of equal length.

        On a processor, batches of a model that is taken apart are shared out over threads of one core each: they never
        wait for each other, where a pass that all cores share waits after every operation. A thread that finds a turn's
        last batch taken begins the next turn.
        """
        import torch

        from weft_activations.adapters.hooked_pass import run_pass
        from weft_activations.adapters.streams import run_streams

        loaded = self._load(model_id)
        num_layers = self.describe(model_id).num_layers
        device = self._device()
        into_torch = {hook: torch.from_numpy(array) for hook, array in into.items()}
        sequences = [sequence for turn in turns for sequence in turn]
        starts = np.cumsum([0, *(len(sequence) - 1 for sequence in sequences)]).tolist()

        def run(members: Sequence[int]) -> None:
            def write(hook: str, layer: int, found_BPD: torch.Tensor) -> None:
                for row, member in enumerate(members):
                    into_torch[hook][layer, starts[member] : starts[member + 1]] = found_BPD[row, 1:]

            with torch.inference_mode():
                tokens_BP = torch.from_numpy(np.stack([sequences[member] for member in members])).to(device)
                if loaded.parts is not None:
                    run_streams(loaded.parts, tokens_BP, tuple(into), write)
                else:
                    places = {f"layers.{layer}.{hook}": (hook, layer) for layer in range(num_layers) for hook in into}
                    run_pass(loaded.located, tokens_BP, places, take=lambda name, found: write(*places[name], found))

        by_turn = batches_by_turn(turns, _CPU_TOKENS if device == "cpu" else _GPU_TOKENS)
        taking = TurnTaking(by_turn, others_wait)
        if loaded.parts is not None:
            self._set_attention(loaded)
        # A turn of one batch, a long sequence, has all cores in every operation: others may wait for its end.
        if device == "cpu" and max(map(len, by_turn), default=0) > 1 and loaded.parts is not None:
            taking.work_off(run, self._one_core_threads(), self._num_cores())
        else:
            taking.work_off(run)
        return taking.num_begun

    def decoding(self, model_id: str, interventions: Sequence[Intervention] = ()) -> "CachedDecoding":
        """Prepare to read token after token."""
        from weft_activations.adapters.decoding import CachedDecoding

        return CachedDecoding(self._load(model_id).located, interventions, self._device())

    def passes(self, model_id: str, sequences: Sequence[Sequence[int]], input_hook: str) -> "ReplacedPasses":
        """Prepare passes with somebody else in the place of MLPs."""
        import torch

        from weft_activations.adapters.replaced_pass import ReplacedPasses
        from weft_activations.adapters.torch_blocks import TAKEN_APART

        loaded = self._load(model_id)
        if loaded.parts is None:
            raise FailedPreconditionError(
                f"MLPs of {self.describe(model_id).architecture} cannot be replaced from outside; that takes one of "
                f"{', '.join(TAKEN_APART)}"
            )
        tokens_BP = torch.tensor([list(sequence) for sequence in sequences], device=self._device())
        return ReplacedPasses(loaded.parts, tokens_BP, input_hook, lambda: self._set_attention(loaded))

    def forward_rows(
        self, model_id: str, token_ids: Sequence[int], rows: Sequence[Sequence[Intervention]], hooks: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run one prompt many times in one batch."""
        import torch

        from weft_activations.adapters.hooked_pass import run_pass

        located = self._load(model_id).located
        interventions = [replace(change, row=row) for row, changes in enumerate(rows) for change in changes]
        with torch.inference_mode():
            tokens_BP = torch.tensor([list(token_ids)] * len(rows), device=self._device())
            kept = run_pass(located, tokens_BP, hooks, interventions=interventions)
            return {hook: np.asarray(kept[hook].float().cpu().numpy()) for hook in hooks}

    def unembed(self, model_id: str, resid_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Take residual streams through the final norm and the unembedding."""
        import torch

        from weft_activations.adapters.unembedding import unembed

        with torch.inference_mode():
            logits_NV = unembed(self._load(model_id).model, torch.from_numpy(np.ascontiguousarray(resid_ND)))
            return np.asarray(logits_NV.float().cpu().numpy())

    def logit_directions(
        self, model_id: str, token_ids: Sequence[int]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the directions of logits in the residual stream."""
        import torch

        from weft_activations.adapters.unembedding import logit_directions

        with torch.inference_mode():
            directions_ND, biases_N = logit_directions(self._load(model_id).model, token_ids)
            return directions_ND.cpu().numpy(), biases_N.cpu().numpy()

    def neuron_directions(
        self, model_id: str, layer: int, directions_ND: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return what a unit of each neuron writes along directions."""
        import torch

        from weft_activations.adapters.unembedding import neuron_directions

        down = self._load(model_id).located.places[f"layers.{layer}.mlp.post"]
        with torch.inference_mode():
            return np.asarray(neuron_directions(down, torch.from_numpy(directions_ND)).cpu().numpy())

    def _num_cores(self) -> int:
        return self._threads or os.cpu_count() or 1

    def _one_core_threads(self) -> ThreadPoolExecutor:
        if self._one_core is None:
            import torch

            self._one_core = ThreadPoolExecutor(
                self._num_cores(), "model-one-core", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self._one_core

    def _folder(self, model_id: str) -> Path:
        if model_id not in self.model_ids():
            known = ", ".join(self.model_ids()) or "none"
            raise NotFoundError(
                f"there is no model {model_id!r}; the folder of models holds: {known}. Put a Hugging Face folder of "
                "that name there, or ask for one of these",
                field="model",
            )
        return self._models_dir / model_id

    def _read_info(self, model_id: str, folder: Path) -> ModelInfo:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            architecture = str((config.get("architectures") or ["none named"])[0])
        except (ValueError, AttributeError) as error:
            raise FailedPreconditionError(
                f"config.json of the model {model_id!r} cannot be read ({error}); put a complete Hugging Face "
                "folder there"
            ) from error
        if architecture not in ARCHITECTURES and architecture not in SPEECH:
            raise FailedPreconditionError(
                f"the model {model_id!r} has the architecture {architecture}, which is not supported; expected one of "
                f"{_ARCHITECTURES_SHOWN} ({', '.join([*ARCHITECTURES, *SPEECH])})"
            )
        from transformers import AutoConfig

        full = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = self._tokenizer(model_id)
        if architecture in SPEECH:
            return self._read_speech_info(model_id, folder, architecture, full)
        d_model, num_heads = int(full.hidden_size), int(full.num_attention_heads)
        added = tokenizer.encode("", add_special_tokens=True)
        return ModelInfo(
            model_id=model_id,
            architecture=architecture,
            num_layers=int(full.num_hidden_layers),
            d_model=d_model,
            num_heads=num_heads,
            num_kv_heads=int(getattr(full, "num_key_value_heads", None) or num_heads),
            vocab_size=int(full.vocab_size),
            max_tokens=min(most_positions(full), self._max_prompt_tokens),
            revision=model_revision(folder),
            data_type=self._data_type(),
            bos_token_id=int(added[0])
            if added and added[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
            else None,
            d_head=int(getattr(full, "head_dim", None) or d_model // num_heads),
            d_mlp=int(getattr(full, "intermediate_size", None) or getattr(full, "n_inner", None) or 4 * d_model),
            components=component_patterns(
                architecture,
                parallel=getattr(full, "use_parallel_residual", False),
                capped=getattr(full, "final_logit_softcapping", None) is not None,
                pooled=has_weight(folder, "pooler.dense.weight"),
            ),
        )

    def _read_speech_info(self, model_id: str, folder: Path, architecture: str, config: Any) -> ModelInfo:
        from weft_activations.adapters.speech import extractor_of, speech_sizes

        num_heads = int(config.decoder_attention_heads)
        return ModelInfo(
            model_id=model_id,
            architecture=architecture,
            num_layers=int(config.decoder_layers),
            d_model=int(config.d_model),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            vocab_size=int(config.vocab_size),
            max_tokens=min(int(config.max_target_positions), self._max_prompt_tokens),
            revision=model_revision(folder),
            data_type=self._data_type(),
            bos_token_id=int(config.decoder_start_token_id),
            d_head=int(config.d_model) // num_heads,
            d_mlp=int(config.decoder_ffn_dim),
            components=component_patterns(architecture),
            speech=speech_sizes(config, extractor_of(folder, config)),
        )

    def _tokenizer(self, model_id: str) -> Any:
        if model_id not in self._tokenizers:
            folder = self._folder(model_id)
            from transformers import AutoTokenizer

            try:
                self._tokenizers[model_id] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise FailedPreconditionError(
                    f"the tokenizer of the model {model_id!r} cannot be loaded ({_one_line(error)}); put its tokenizer "
                    "files, tokenizer.json at least, into the model's folder"
                ) from error
        return self._tokenizers[model_id]

    def _load(self, model_id: str) -> _Loaded:
        if model_id not in self._models:
            info = self.describe(model_id)
            import torch
            import transformers
            from safetensors import SafetensorError
            from transformers.utils import logging as transformers_logging

            from weft_activations.adapters.architectures import locate
            from weft_activations.adapters.packed_linear import pack_linears
            from weft_activations.adapters.torch_blocks import TAKEN_APART, take_apart

            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
            if self._threads:
                torch.set_num_threads(self._threads)
            try:
                model: Any = getattr(transformers, info.architecture).from_pretrained(
                    self._models_dir / model_id,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.bfloat16 if info.data_type == "bfloat16" else torch.float32,
                    attn_implementation="eager",
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise FailedPreconditionError(
                    f"the weights of the model {model_id!r} cannot be loaded ({_one_line(error)}); put a complete "
                    "Hugging Face folder with safetensors there"
                ) from error
            model = model.to(self._device()).eval().requires_grad_(False)
            pack_linears(model)
            parts = take_apart(model) if info.architecture in TAKEN_APART else None
            self._models[model_id] = _Loaded(model, locate(model), parts)
            _LOG.info("model loaded", model=model_id, architecture=info.architecture, data_type=info.data_type)
        return self._models[model_id]

    def _set_attention(self, loaded: _Loaded) -> None:
        """Go back to the fused kernel, which what is taken apart runs on."""
        if loaded.model.config._attn_implementation != "sdpa":
            loaded.model.set_attn_implementation("sdpa")

    def _device(self) -> str:
        import torch

        if self._device_asked == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self._device_asked

    def _data_type(self) -> str:
        if self._dtype != "auto":
            return self._dtype
        return "bfloat16" if self._device().startswith("cuda") else "float32"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
