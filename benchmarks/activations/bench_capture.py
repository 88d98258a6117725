"""
What it costs to see everything in a pass: beside transformers' plain forward pass, and beside TransformerLens.

    python benchmarks/activations/bench_capture.py MODELS_FOLDER MODEL [--tokens 128] [--rounds 9]

In each round, in turn: transformers' own model run plainly; TransformerLens's `run_with_cache` in process, beside its
own plain pass; weft's transformers backend in process; and weft's Capture over gRPC on loopback, from a service in a
process of its own, until the last tensor is there as an array. Everything means, for both, what TransformerLens caches
unless told otherwise. Bytes on the wire are most of the cost: so the same server also sends as many messages of zeros
as there are tensors, of their sizes, which nobody encodes, checks or decodes; and the streams alone (what enters and
leaves each layer and each MLP) have a row.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import torch
from figures import FIGURES, machine, row, write_rows
from own_process import own_process
from transformers import AutoModelForCausalLM, AutoTokenizer

from weft.activations.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.hooks import expand_hooks
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_common.client import aio_channel
from weft_common.server import Registration, serving
from weft_common.tensors import TensorAssembler
from weft_store.adapters.memory import MemoryObjectStore

# TransformerLens keeps neither each head's own result nor what an MLP is given, unless told to.
LEFT_OUT = ("attn.result", "mlp_in", "logits_all")
STREAMS = ("resid_pre", "resid_mid", "mlp_in", "mlp_out", "resid_post")
WAYS = ("plain", "lens plain", "lens", "in process", "zeros", "gRPC", "gRPC, streams")
CHUNK_BYTES = 1 << 20
_ZEROS = "weft.bench.Zeros"

Way = Callable[[], Awaitable[None]]


def _by_lens(folder: Path) -> Any:
    """Return the model as TransformerLens runs it, with the weights as they are."""
    from transformer_lens.model_bridge import TransformerBridge

    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=own, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu", dtype=torch.float32
    )
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return bridge


def _register_zeros(server: grpc.aio.Server) -> None:
    """Add a method that sends messages of zeros, of the sizes that it is sent as int64."""

    async def send(request: bytes, context: object) -> AsyncIterator[bytes]:
        for size in np.frombuffer(request, np.int64).tolist():
            yield bytes(size)

    handlers = {"Send": grpc.unary_stream_rpc_method_handler(send)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_ZEROS, handlers),))


@asynccontextmanager
async def service_of(models: Path) -> AsyncIterator[str]:
    """Serve a folder of models, and messages of zeros beside them."""
    settings = ActivationsSettings(
        insecure_no_auth=True, bucket_url="memory://", models_dir=models, cache_target="unused:1", drain_s=0
    )
    backend, no_catalog = TransformersBackend(models, dtype="float32"), cast(Any, None)
    async with (
        registrations(settings, backend, MemoryObjectStore(), no_catalog) as served,
        serving("activations", settings, [*served, Registration(_ZEROS, _register_zeros)]) as server,
    ):
        yield server.target


async def measure(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], str]:
    """Take turns; seconds by way, and how much everything is."""
    folder = arguments.models / arguments.model
    backend = TransformersBackend(arguments.models, dtype="float32")
    info = backend.describe(arguments.model)
    ids = np.random.default_rng(0).integers(0, info.vocab_size, arguments.tokens).tolist()
    tokens = torch.tensor([ids])
    names = [name for name in info.components if name.removeprefix("layers.*.") not in LEFT_OUT]
    everything = list(expand_hooks(names, info).values())
    streams = [f"layers.{layer}.{name}" for layer in range(info.num_layers) for name in STREAMS]
    sizes = [value.nbytes for value in backend.forward(arguments.model, ids, everything).values()]
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lens = _by_lens(folder)
    async with AsyncExitStack() as stack:
        target = stack.enter_context(own_process(service_of, arguments.models))
        channel = await stack.enter_async_context(aio_channel(target))
        stub: Any = service_pb2_grpc.ActivationServiceStub(channel)
        send: Any = channel.unary_stream(f"/{_ZEROS}/Send")

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

        async def zeros() -> None:
            wanted = [min(CHUNK_BYTES, size - at) for size in sizes for at in range(0, size, CHUNK_BYTES)]
            assert [len(message) async for message in send(np.array(wanted, np.int64).tobytes())] == wanted

        def over_grpc(hooks: list[str]) -> Way:
            async def run() -> None:
                request = service_pb2.CaptureRequest(
                    model=f"models/{arguments.model}",
                    prompt=messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=ids)),
                    hooks=hooks,
                )
                assembler, found = TensorAssembler(1 << 31), {}
                async for response in stub.Capture(request):
                    if response.WhichOneof("part") == "chunk" and (done := assembler.add(response.chunk)) is not None:
                        found[done[0]] = done[1]
                assert found.keys() == set(hooks)

            return run

        runs = (plain, lens_plain, lens_cache, in_process, zeros, over_grpc(everything), over_grpc(streams))
        ways = dict(zip(WAYS, runs, strict=True))
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(-1, arguments.rounds):
            for way, run in ways.items():
                started = time.perf_counter()
                await run()
                if number >= 0:
                    taken[way].append(time.perf_counter() - started)
    return taken, f"{len(everything)} tensors of {sum(sizes) / 1e6:.0f} MB in all"


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
    taken, everything = asyncio.run(measure(arguments))
    told = (
        f"{machine()}; {arguments.model}, {arguments.tokens} tokens, everything is {everything}; medians of "
        f"{arguments.rounds} rounds"
    )

    def found(name: str, way: str, beside: str) -> dict[str, Any]:
        ratio = statistics.median(ours / peer for ours, peer in zip(taken[way], taken[beside], strict=True))
        ours, peer = (statistics.median(taken[each]) for each in (way, beside))
        return row(name, ours, peer, "s", f"{told}; {ratio:.2f} times as long", less_is_better=True)

    write_rows(
        arguments.out,
        [
            found("everything over gRPC, beside transformers' plain pass", "gRPC", "plain"),
            found("everything in process, beside transformers' plain pass", "in process", "plain"),
            found("zeros of everything's sizes over gRPC, beside transformers' plain pass", "zeros", "plain"),
            found("streams over gRPC, beside transformers' plain pass", "gRPC, streams", "plain"),
            found("everything over gRPC, beside TransformerLens in process", "gRPC", "lens"),
            found("TransformerLens in process, beside its own plain pass", "lens", "lens plain"),
            found("TransformerLens in process, beside transformers' plain pass", "lens", "plain"),
        ],
    )


if __name__ == "__main__":
    main()
