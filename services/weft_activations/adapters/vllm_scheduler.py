"""
vLLM itself, set up so that what its workers see is every position of every prompt.

Prefix caching is off, since what is taken from a cache is not computed and cannot be captured; so is compilation, which
leaves hooks out without a word. Prompts are cut into chunks. vLLM is imported nowhere before a model is opened.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_activations.adapters.vllm_models import tell_model
from weft_common.errors import FailedPreconditionError

__all__ = ["EngineSettings", "VllmScheduler"]


@dataclass(frozen=True)
class EngineSettings:
    """
    How an engine runs.

    Attributes:
        architecture: One of `vllm_models.ARCHITECTURES`.
        dtype: What the model computes in.
        max_tokens: Longest prompt.
        batch_tokens: Tokens of one pass; a longer prompt is cut.
        chunk_tokens: Most tokens of one prompt in a pass beside others, so that short ones come in beside a long one; 0
            sets none.
        batch_requests: Most requests of one pass.
        kv_cache_bytes: Memory for the keys and values of what runs, on each rank.
        tensor_parallel: Ranks that share every layer.
        whole_prompts: A prompt begins once there is room for all its keys and values.
        threads: Threads of a pass on a processor, of each rank; 0 leaves torch's own choice, and shares the processors
            out over ranks.
    """

    architecture: str
    dtype: str
    max_tokens: int
    batch_tokens: int = 2048
    chunk_tokens: int = 0
    batch_requests: int = 64
    kv_cache_bytes: int = 1 << 30
    tensor_parallel: int = 1
    whole_prompts: bool = True
    threads: int = 0


def _threads_of_a_rank(settings: EngineSettings) -> int:
    return settings.threads or max(1, (os.cpu_count() or 1) // settings.tensor_parallel)


class VllmScheduler:
    """
    vLLM's engine with one model; the `Scheduler` of `vllm_engine`.

    Args:
        folder: A Hugging Face folder.
        settings: How it runs.

    Raises:
        FailedPreconditionError: vLLM is not installed, or does not run this model so.
    """

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        # Read by vLLM from the environment alone. Nobody is told about usage; the scheduler is in this process; passes
        # are of the kind in which rows can be told apart; logging is left as it is.
        os.environ.update(
            VLLM_NO_USAGE_STATS="1",
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_USE_V2_MODEL_RUNNER="0",
            VLLM_CONFIGURE_LOGGING="0",
        )
        try:
            import torch
            from vllm import SamplingParams
            from vllm.engine.arg_utils import EngineArgs
            from vllm.exceptions import VLLMClientError
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise FailedPreconditionError(
                f"vLLM cannot be imported ({error}); install weft with the extra `vllm`, or set "
                "WEFT_ACTIVATIONS_BACKEND=transformers"
            ) from error
        self._refusal: type[Exception] = VLLMClientError
        arguments = EngineArgs(
            model=str(folder),
            dtype=settings.dtype,
            max_model_len=settings.max_tokens + 1,
            max_num_batched_tokens=settings.batch_tokens,
            long_prefill_token_threshold=settings.chunk_tokens,
            scheduler_reserve_full_isl=settings.whole_prompts,
            max_num_seqs=min(settings.batch_requests, settings.batch_tokens),
            kv_cache_memory_bytes=settings.kv_cache_bytes,
            tensor_parallel_size=settings.tensor_parallel,
            distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
            worker_cls="weft_activations.adapters.vllm_worker.CaptureWorker",
            enforce_eager=True,
            enable_prefix_caching=False,
            enable_chunked_prefill=True,
            async_scheduling=False,
            skip_tokenizer_init=True,
            trust_remote_code=False,
            disable_log_stats=True,
        )
        if settings.tensor_parallel > 1:
            # vLLM would bind a rank to each NUMA node, and refuses where there are fewer nodes than ranks.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ["OMP_NUM_THREADS"] = str(_threads_of_a_rank(settings))
        elif settings.threads:
            torch.set_num_threads(settings.threads)
        set_num_threads = torch.set_num_threads
        # One token is sampled and thrown away: the prompt is what is run.
        self._sampling = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True)
        try:
            tell_model(settings.architecture)
            self._engine: Any = LLMEngine.from_engine_args(arguments)
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise FailedPreconditionError(
                f"vLLM does not run the model {folder.name!r} ({type(error).__name__}: {why}); mend what it names, or "
                "set WEFT_ACTIVATIONS_BACKEND=transformers"
            ) from error
        finally:
            # vLLM takes it away from the whole process.
            torch.set_num_threads = set_num_threads

    def add(self, name: str, token_ids: list[int]) -> str:
        """Take a prompt, and return the id that workers know it by; ValueError where vLLM refuses it."""
        try:
            worker_id: str = self._engine.add_request(name, {"prompt_token_ids": token_ids}, self._sampling)
        except self._refusal as error:
            raise ValueError(str(error)) from error
        return worker_id

    def step(self) -> list[str]:
        """Run one pass and return the names of the prompts that it ended."""
        return [output.request_id for output in self._engine.step() if output.finished]

    def abort(self, worker_id: str) -> None:
        """Drop a prompt."""
        self._engine.abort_request([worker_id], internal=True)

    def on_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the worker on every rank."""
        answers: list[Any] = self._engine.collective_rpc(method, args=arguments)
        return answers

    def shutdown(self) -> None:
        """Let go of the model."""
        self._engine.engine_core.shutdown()
