"""
Base models by Hugging Face transformers: folders on disk, nothing ever fetched, loaded when first used.

Eager attention runs where a pattern is read or held, the fused kernel everywhere else.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from weft_activations.core.ports import Freeze, Intervention, ModelInfo
from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_common.logging import get_logger

if TYPE_CHECKING:
    from weft_activations.adapters.replaced_pass import ReplacedPasses
    from weft_activations.adapters.torch_blocks import Parts

__all__ = ["TransformersBackend", "equal_lengths", "model_revision"]

_LOG = get_logger(__name__)
_ARCHITECTURES_SHOWN = "Llama, Mistral, Qwen2, Qwen3 and GPT-2"
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)

# Tokens of one pass of a harvest: enough that products dominate, few enough that threads end about together.
_CPU_TOKENS = 512
_GPU_TOKENS = 16384

Dtype = Literal["auto", "float32", "bfloat16"]


def model_revision(folder: Path) -> str:
    """
    Identify a model: SHA-256 over the names, sizes and bytes of its configuration, weights and tokenizer files.

    Files are taken in order of name; other files (a README, a chat template) do not count.
    """
    digest = hashlib.sha256()
    files = [folder / "config.json", *folder.glob("*.safetensors"), *(folder / name for name in _TOKENIZER_FILES)]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as handle:
            while piece := handle.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def equal_lengths(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """
    Share sequences out over batches of one length and of `most_tokens` at most, or of one sequence; the longest first.

    >>> equal_lengths([4, 3, 4, 4], 8)
    [[0, 2], [3], [1]]
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    batches = []
    for length, members in sorted(by_length.items(), reverse=True):
        size = max(1, most_tokens // length)
        batches += [members[first : first + size] for first in range(0, len(members), size)]
    return batches


@dataclass
class _Loaded:
    model: Any
    parts: "Parts"


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
        self._models: dict[str, _Loaded] = {}
        self._one_core: ThreadPoolExecutor | None = None

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

    def token_texts(self, model_id: str, token_ids: Sequence[int]) -> list[str]:
        """Turn each token id into text by itself."""
        tokenizer = self._tokenizer(model_id)
        return [tokenizer.decode([token_id], clean_up_tokenization_spaces=False) for token_id in token_ids]

    def forward(
        self,
        model_id: str,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention] = (),
        freeze: Freeze | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run one prompt; a clean pass comes first where something is held."""
        import torch

        from weft_activations.adapters.forward_pass import held_hooks, run_pass

        loaded = self._load(model_id)
        wanted = set(hooks)
        frozen = held_hooks(freeze, len(loaded.parts.blocks)) if freeze and interventions else []
        eager = any(name.endswith("attn.pattern") for name in (*wanted, *frozen))
        self._set_attention(loaded, eager=eager)
        with torch.inference_mode():
            tokens_BP = torch.tensor([list(token_ids)], device=self._device())
            held = run_pass(loaded.parts, tokens_BP, set(frozen), eager=eager) if frozen else None
            kept = run_pass(loaded.parts, tokens_BP, wanted, eager=eager, interventions=interventions, held=held)
            return {hook: np.asarray(kept[hook][0].float().cpu().numpy()) for hook in hooks}

    def streams(
        self,
        model_id: str,
        sequences: Sequence[npt.NDArray[np.int64]],
        input_hook: str,
        output_hook: str,
        into: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    ) -> None:
        """
        Run sequences for their inputs and outputs, in batches of equal length.

        On a processor the batches are shared out over threads of one core each: they never wait for each other, where
        a pass that all cores share waits after every operation, the more so beside a thread that encodes.
        """
        import torch

        from weft_activations.adapters.forward_pass import run_streams

        loaded = self._load(model_id)
        self._set_attention(loaded, eager=False)
        device = self._device()
        inputs_LTD, outputs_LTD = (torch.from_numpy(array) for array in into)
        starts = np.cumsum([0, *(len(sequence) - 1 for sequence in sequences)]).tolist()

        def run(members: Sequence[int]) -> None:
            def write(layer: int, inputs_BPD: torch.Tensor, outputs_BPD: torch.Tensor) -> None:
                for row, member in enumerate(members):
                    rows = slice(starts[member], starts[member + 1])
                    inputs_LTD[layer, rows] = inputs_BPD[row, 1:]
                    outputs_LTD[layer, rows] = outputs_BPD[row, 1:]

            with torch.inference_mode():
                tokens_BP = torch.from_numpy(np.stack([sequences[member] for member in members])).to(device)
                run_streams(loaded.parts, tokens_BP, input_hook, output_hook, write)

        on_cpu = device == "cpu"
        batches = equal_lengths([len(sequence) for sequence in sequences], _CPU_TOKENS if on_cpu else _GPU_TOKENS)
        if on_cpu and len(batches) > 1:
            list(self._one_core_threads().map(run, batches))
        else:
            for batch in batches:
                run(batch)

    def passes(self, model_id: str, sequences: Sequence[Sequence[int]], input_hook: str) -> "ReplacedPasses":
        """Prepare passes with somebody else in the place of MLPs."""
        import torch

        from weft_activations.adapters.replaced_pass import ReplacedPasses

        loaded = self._load(model_id)
        tokens_BP = torch.tensor([list(sequence) for sequence in sequences], device=self._device())
        return ReplacedPasses(loaded.parts, tokens_BP, input_hook, lambda: self._set_attention(loaded, eager=False))

    def _one_core_threads(self) -> ThreadPoolExecutor:
        if self._one_core is None:
            import torch

            self._one_core = ThreadPoolExecutor(
                self._threads or os.cpu_count(), "model-one-core", initializer=torch.set_num_threads, initargs=(1,)
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
        from weft_activations.adapters.torch_blocks import ARCHITECTURES

        if architecture not in ARCHITECTURES:
            raise FailedPreconditionError(
                f"the model {model_id!r} has the architecture {architecture}, which is not supported; expected one of "
                f"{_ARCHITECTURES_SHOWN} ({', '.join(ARCHITECTURES)})"
            )
        from transformers import AutoConfig

        full = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = self._tokenizer(model_id)
        added = tokenizer.encode("", add_special_tokens=True)
        return ModelInfo(
            model_id=model_id,
            architecture=architecture,
            num_layers=int(full.num_hidden_layers),
            d_model=int(full.hidden_size),
            num_heads=int(full.num_attention_heads),
            num_kv_heads=int(getattr(full, "num_key_value_heads", None) or full.num_attention_heads),
            vocab_size=int(full.vocab_size),
            max_tokens=min(int(full.max_position_embeddings), self._max_prompt_tokens),
            revision=model_revision(folder),
            data_type=self._data_type(),
            bos_token_id=int(added[0]) if added and added[0] == tokenizer.bos_token_id else None,
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
            from safetensors import SafetensorError
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging as transformers_logging

            from weft_activations.adapters.torch_blocks import take_apart

            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
            if self._threads:
                torch.set_num_threads(self._threads)
            try:
                model: Any = AutoModelForCausalLM.from_pretrained(
                    self._models_dir / model_id,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.bfloat16 if info.data_type == "bfloat16" else torch.float32,
                    attn_implementation="sdpa",
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise FailedPreconditionError(
                    f"the weights of the model {model_id!r} cannot be loaded ({_one_line(error)}); put a complete "
                    "Hugging Face folder with safetensors there"
                ) from error
            model = model.to(self._device()).eval().requires_grad_(False)
            self._models[model_id] = _Loaded(model, take_apart(model))
            _LOG.info("model loaded", model=model_id, architecture=info.architecture, data_type=info.data_type)
        return self._models[model_id]

    def _set_attention(self, loaded: _Loaded, *, eager: bool) -> None:
        wanted = "eager" if eager else "sdpa"
        if loaded.model.config._attn_implementation != wanted:
            loaded.model.set_attn_implementation(wanted)

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
