"""
The worker that vLLM starts by name: its own, with a `Recorder` on the model.

Only vLLM imports this module, in the process of each rank. What comes in is plain data: no code, no objects of ours.
"""

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from weft_activations.adapters.vllm_capture import Recorder
from weft_activations.adapters.vllm_messages import from_plain
from weft_activations.adapters.vllm_models import tell_model
from weft_activations.adapters.vllm_rows import Asked
from weft_activations.core.ports import Intervention

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as OwnWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as OwnWorker

__all__ = ["CaptureWorker"]


class CaptureWorker(OwnWorker):  # type: ignore[misc, unused-ignore]
    """A rank. Every rank applies changes, since each has the whole stream; the first one also records."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model and hook it."""
        config = self.model_config.hf_config
        tell_model(config.architectures[0])
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        if not isinstance(runner, GPUModelRunner):
            raise RuntimeError(
                f"{type(runner).__name__} batches in a way that rows cannot be told apart in; "
                "leave VLLM_USE_V2_MODEL_RUNNER at 0"
            )
        self._recorder = Recorder(runner.model, config.architectures[0], config.num_hidden_layers)
        self._scheduled: dict[str, int] = {}
        runner.model.register_forward_pre_hook(self._start_pass, with_kwargs=True)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a batch, told beforehand which rows are whose."""
        self._scheduled = scheduler_output.num_scheduled_tokens
        try:
            return super().execute_model(scheduler_output)
        finally:
            self._scheduled = {}
            self._recorder.end_pass()

    def begin_capture(
        self,
        request_id: str,
        token_ids: list[int],
        shapes: dict[str, tuple[int, ...]],
        skipped: int,
        changes: list[dict[str, Any]],
        sinks: dict[str, torch.Tensor] | None,
    ) -> None:
        """
        Know a request before it runs.

        Args:
            request_id: As vLLM's scheduler names it.
            token_ids: Its prompt.
            shapes: Of what is kept, by hook.
            skipped: First positions that are not kept.
            changes: In order, as `vllm_messages.to_plain` says them.
            sinks: Where rows go where this is the caller's process; None makes room here, on the first rank.
        """
        if sinks is None:
            here = shapes if self.rank == 0 else {}
            sinks = {hook: torch.empty(shape, dtype=torch.float32) for hook, shape in here.items()}
        by_hook: dict[str, list[Intervention]] = {}
        for fields in changes:
            change = from_plain(fields)
            by_hook.setdefault(change.name, []).append(change)
        tokens = torch.tensor(token_ids, dtype=torch.int64)
        self._recorder.begin(request_id, Asked(tokens, sinks, skipped, by_hook))

    def end_capture(self, request_id: str, with_rows: bool) -> tuple[str, dict[str, bytes]]:
        """
        Forget a request.

        Returns:
            What is missing of it, empty where nothing is; and float32 bytes by hook where they were asked for.
        """
        asked = self._recorder.end(request_id)
        if asked is None:
            return "the request was not known", {}
        rows = {hook: sink.numpy().tobytes() for hook, sink in asked.sinks.items()} if with_rows else {}
        return asked.missing(), rows

    def _start_pass(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._scheduled:
            return
        batch = self.model_runner.input_batch
        computed = batch.num_computed_tokens_cpu
        scheduled = [
            (request_id, int(computed[row]), self._scheduled[request_id])
            for row, request_id in enumerate(batch.req_ids)
        ]
        self._recorder.start_pass(scheduled, kwargs["input_ids"], kwargs["positions"])
