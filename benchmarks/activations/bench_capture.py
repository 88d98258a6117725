"""
What it costs to see everything in a pass: beside transformers' plain forward pass, and beside TransformerLens.

    python benchmarks/activations/bench_capture.py MODELS_FOLDER MODEL [--tokens 128] [--rounds 9]

In each round, in turn: transformers' own model run plainly; TransformerLens's `run_with_cache` in process, beside its
own plain pass; weft's transformers backend in process; and weft's Capture over gRPC on loopback, until the last tensor
is there as an array. Everything means, for both, what TransformerLens caches unless told otherwise. The streams alone
(what enters and leaves each layer and each MLP) are a second row, since bytes on the wire are most of the cost.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import FIGURES, machine, row, write_rows
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from weft.activations.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.hooks import expand_hooks
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_common.client import aio_channel
from weft_common.server import serving
from weft_common.tensors import TensorAssembler
from weft_store.adapters.memory import MemoryObjectStore

# TransformerLens keeps neither each head's own result nor what an MLP is given, unless told to.
LEFT_OUT = ("attn.result", "mlp_in", "logits_all")
STREAMS = ("resid_pre", "resid_mid", "mlp_in", "mlp_out", "resid_post")
WAYS = ("plain", "lens plain", "lens", "in process", "gRPC", "gRPC, streams")

Way = Callable[[], Awaitable[None]]


def _by_lens(folder: Path) -> Any:
    """Return the model as TransformerLens runs it, with the weights as they are."""
    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=own, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu", dtype=torch.float32
    )
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return bridge


async def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Take turns; seconds by way."""
    folder = arguments.models / arguments.model
    backend = TransformersBackend(arguments.models, dtype="float32")
    info = backend.describe(arguments.model)
    ids = np.random.default_rng(0).integers(0, info.vocab_size, arguments.tokens).tolist()
    tokens = torch.tensor([ids])
    names = [name for name in info.components if name.removeprefix("layers.*.") not in LEFT_OUT]
    everything = list(expand_hooks(names, info).values())
    streams = [f"layers.{layer}.{name}" for layer in range(info.num_layers) for name in STREAMS]
    own, lens = AutoModelForCausalLM.from_pretrained(folder).eval(), _by_lens(folder)
    settings = ActivationsSettings(
        insecure_no_auth=True, bucket_url="memory://", models_dir=arguments.models, cache_target="unused:1", drain_s=0
    )
    async with AsyncExitStack() as stack:
        no_catalog: Any = None
        served = await stack.enter_async_context(registrations(settings, backend, MemoryObjectStore(), no_catalog))
        server = await stack.enter_async_context(serving("activations", settings, served))
        stub: Any = service_pb2_grpc.ActivationServiceStub(await stack.enter_async_context(aio_channel(server.target)))

        async def plain() -> None:
            with torch.inference_mode():
                own(tokens, use_cache=False)

        async def lens_plain() -> None:
            with torch.inference_mode():
                lens(tokens)

        async def lens_cache() -> None:
            with torch.inference_mode():
                lens.run_with_cache(tokens)

        async def in_process() -> None:
            backend.forward(arguments.model, ids, everything)

        def over_grpc(hooks: list[str]) -> Way:
            async def run() -> None:
                request = service_pb2.CaptureRequest(
                    model=f"models/{arguments.model}",
                    prompt=messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=ids)),
                    hooks=hooks,
                )
                assembler, count = TensorAssembler(1 << 31), 0
                async for response in stub.Capture(request):
                    if response.WhichOneof("part") == "chunk":
                        count += assembler.add(response.chunk) is not None
                assert count == len(hooks)

            return run

        ways = dict(
            zip(
                WAYS,
                (plain, lens_plain, lens_cache, in_process, over_grpc(everything), over_grpc(streams)),
                strict=True,
            )
        )
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(-1, arguments.rounds):
            for way, run in ways.items():
                started = time.perf_counter()
                await run()
                if number >= 0:
                    taken[way].append(time.perf_counter() - started)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one round: that it runs, not how fast")
    parser.add_argument("--out", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    taken = asyncio.run(measure(arguments))
    told = f"{machine()}; {arguments.model}, {arguments.tokens} tokens, medians of {arguments.rounds} rounds"

    def found(name: str, way: str, beside: str) -> dict[str, Any]:
        ratio = statistics.median(ours / peer for ours, peer in zip(taken[way], taken[beside], strict=True))
        ours, peer = (statistics.median(taken[each]) for each in (way, beside))
        return row(name, ours, peer, "s", f"{told}; {ratio:.2f} times as long", less_is_better=True)

    write_rows(
        arguments.out,
        [
            found("everything over gRPC, beside transformers' plain pass", "gRPC", "plain"),
            found("everything in process, beside transformers' plain pass", "in process", "plain"),
            found("streams over gRPC, beside transformers' plain pass", "gRPC, streams", "plain"),
            found("everything over gRPC, beside TransformerLens in process", "gRPC", "lens"),
            found("TransformerLens in process, beside its own plain pass", "lens", "lens plain"),
            found("TransformerLens in process, beside transformers' plain pass", "lens", "plain"),
        ],
    )


if __name__ == "__main__":
    main()
