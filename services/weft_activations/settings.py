"""Settings of the activations service."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from weft_common.settings import BucketSettings, PeerSettings, ServiceSettings

__all__ = ["ActivationsSettings"]


class ActivationsSettings(ServiceSettings, BucketSettings, PeerSettings):
    """What the service is told when it starts: WEFT_ACTIVATIONS_MODELS_DIR and so on."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_ACTIVATIONS_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    models_dir: Path
    """Folder that holds one Hugging Face folder a model; the folder's name is the model's id."""
    cache_target: str
    """host:port of the cache service."""
    cache_token: SecretStr | None = None
    """Token of the cache service."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What runs the models. vLLM runs calls of many callers in the same passes, and wants weft's extra `vllm`; it shows
    and changes fewer components, and says which backend does what it cannot."""
    vllm_calls: int = Field(default=64, ge=1, le=1024)
    """Calls that vLLM runs at once; more wait."""
    vllm_batch_tokens: int = Field(default=2048, ge=32)
    """Tokens of one pass of vLLM; longer prompts are cut into chunks."""
    vllm_chunk_tokens: int = Field(default=0, ge=0)
    """Most tokens of one prompt in a pass of vLLM beside others, so that short ones come in too; 0 sets no bound."""
    vllm_kv_cache_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Memory of vLLM for the keys and values of what runs, on each rank."""
    vllm_tensor_parallel: int = Field(default=1, ge=1, le=64)
    """Ranks over which vLLM shares every layer."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What models compute in; auto is bfloat16 on CUDA and float32 elsewhere."""
    device: str = "auto"
    """Torch device of the models; auto is CUDA where there is one."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one forward pass; 0 leaves the choice to torch."""
    max_prompt_tokens: int = Field(default=2048, ge=2)
    """Longest prompt and sequence, where the model itself would take a longer one."""
    max_capture_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Most bytes that one capture, or one batch whose MLPs are replaced, may hold."""
    max_captured_bytes: int = Field(default=2 << 30, ge=1 << 20)
    """Most bytes that all captures hold together, until they are sent; more wait."""
    max_generation_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Most bytes of keys and values that all generations of one moment keep together."""
    max_replace_bytes: int = Field(default=64 << 30, ge=1 << 20)
    """Most bytes that a caller may send in one call in which it stands in the place of MLPs."""
    max_replace_passes: int = Field(default=1024, ge=1)
    """Most passes of such a call; a measurement takes two a layer and three more."""
    max_replace_s: float = Field(default=3600.0, gt=0)
    """Longest that such a call may take, in seconds."""
    max_corpus_bytes: int = Field(default=256 << 20, ge=1)
    """Most bytes of text of one corpus."""
    max_corpus_documents: int = Field(default=1_000_000, ge=1)
    """Most documents of one corpus that is imported."""
    max_document_bytes: int = Field(default=8 << 20, ge=1)
    """Longest document and longest JSON line of an import; a longer one counts as broken."""
    max_corpus_file_bytes: int = Field(default=4 << 30, ge=1)
    """Largest file that is imported or uploaded; an import has one at a time in the folder for temporary files."""
    max_corpus_read_bytes: int = Field(default=64 << 30, ge=1)
    """Most bytes that come out of the files of one import, decompressed."""
    max_corpus_expansion: float = Field(default=200.0, ge=1)
    """Most bytes that come out of a compressed file for each of its own."""
    max_corpus_read_s: float = Field(default=3600.0, gt=0)
    """Longest that one import may take, in seconds."""
    corpus_prefixes: tuple[str, ...] = ("corpora/",)
    """Beginnings of keys in the bucket below which imports read, as a JSON list."""
    max_lease_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Most bytes of activations that one lease may take in memory; beside a device two are there at once."""
    lease_s: float = Field(default=20.0, gt=0)
    """Seconds without a sign of life after which another replica reads a lease over."""
    patience_s: float = Field(default=300.0, ge=0)
    """Seconds that a harvest waits for a cache or bucket that cannot be reached before it fails."""
