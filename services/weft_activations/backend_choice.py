"""What runs the models, by the settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.ports import ModelBackend
from weft_activations.settings import ActivationsSettings
from weft_common.errors import FailedPreconditionError

__all__ = ["backend_versions", "calls_at_once", "opened_backend"]


@contextmanager
def opened_backend(settings: ActivationsSettings) -> Iterator[ModelBackend]:
    """
    Give the backend that the settings name, and let go of its models in the end; the first pass loads, and not this.

    Raises:
        FailedPreconditionError: vLLM is named and is not installed.
    """
    if settings.backend == "transformers":
        yield TransformersBackend(
            settings.models_dir,
            dtype=settings.dtype,
            max_prompt_tokens=settings.max_prompt_tokens,
            device=settings.device,
            threads=settings.threads,
        )
        return
    if find_spec("vllm") is None:
        raise FailedPreconditionError(
            "WEFT_ACTIVATIONS_BACKEND is vllm, and vLLM is not installed here; weft's images are without it. "
            "docs/how-to/serve-by-vllm.md says how to install it; or set WEFT_ACTIVATIONS_BACKEND=transformers"
        )
    from weft_activations.adapters.vllm_backend import VllmBackend

    backend = VllmBackend(
        settings.models_dir,
        dtype=settings.dtype,
        max_prompt_tokens=settings.max_prompt_tokens,
        threads=settings.threads,
        batch_tokens=settings.vllm_batch_tokens,
        chunk_tokens=settings.vllm_chunk_tokens,
        kv_cache_bytes=settings.vllm_kv_cache_bytes,
        tensor_parallel=settings.vllm_tensor_parallel,
    )
    try:
        yield backend
    finally:
        backend.close()


def calls_at_once(settings: ActivationsSettings) -> int:
    """Tell how many calls the backend takes at once: the transformers backend one, on one thread."""
    return settings.vllm_calls if settings.backend == "vllm" else 1


def backend_versions(settings: ActivationsSettings) -> dict[str, str]:
    """Tell what else than transformers and torch decides what activations are, by package."""
    if settings.backend == "transformers":
        return {}
    # The build for processors is another package than the one for GPUs.
    return {name: version(name) for name in packages_distributions().get("vllm", ())}
