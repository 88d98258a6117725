"""
Many clients at once on Capture, each answer compared row by row with what transformers computes by itself.

    python benchmarks/activations/capture_load.py MODELS_FOLDER MODEL [--backend vllm] [--clients 64] [--seconds 300]

The service is in this process, over loopback, and so are the clients: memory is that of both. Prompts have mixed
lengths. One call in ten is cancelled on its way, and one in ten has a deadline that it can hardly meet; a call that
came through all the same has to be right too. At the end nothing may be held for any call.
"""

import argparse
import asyncio
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from figures import FIGURES, machine, row, write_rows

from weft.activations.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.backend_choice import opened_backend
from weft_activations.core.metrics import CAPTURED_BYTES, QUEUE_DEPTH
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_common.client import aio_channel
from weft_common.server import serving
from weft_common.tensors import TensorAssembler
from weft_store.adapters.memory import MemoryObjectStore

LENGTHS = (1, 2, 7, 30, 64, 100, 128, 255, 256, 400, 700, 1000)
TOLERANCE = 1e-4


@dataclass
class LoadReport:
    """
    What clients saw.

    Attributes:
        answered: Calls that came through, each of them compared.
        wrong: Those with a row that is not the model's, or with rows missing.
        ended: Calls that did not come through, by gRPC code.
        latency_ms: 50th, 90th and 99th percentile and the longest, of plain calls.
        peak_growth_mib: Most that the process grew by after its first tenth of calls.
        held_bytes: Bytes that captures hold after the last call.
        waiting: Forward passes that run or wait after the last call.
    """

    answered: int = 0
    wrong: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    latency_ms: dict[str, float] = field(default_factory=dict)
    peak_growth_mib: float = 0.0
    held_bytes: float = 0.0
    waiting: float = 0.0


def reference_captures(
    folder: Path, model_id: str, lengths: Sequence[int], hooks: Sequence[str]
) -> list[tuple[list[int], dict[str, np.ndarray]]]:
    """Make prompts and what is right for each, one prompt by itself."""
    backend = TransformersBackend(folder, dtype="float32")
    info = backend.describe(model_id)
    found = []
    for length in lengths:
        token_ids = np.random.default_rng(length).integers(0, info.vocab_size, length).tolist()
        found.append((token_ids, backend.forward(model_id, token_ids, hooks)))
    return found


async def run_load(
    settings: ActivationsSettings,
    model_id: str,
    *,
    num_clients: int,
    seconds: float,
    hooks: Sequence[str],
    lengths: Sequence[int],
    catalog: Any,
    most_answers: float = math.inf,
) -> LoadReport:
    """Serve, let clients call until the time is over or enough was answered, and look at what is left."""
    right = await asyncio.to_thread(reference_captures, settings.models_dir, model_id, lengths, hooks)
    report, process = LoadReport(), psutil.Process()
    latencies: list[float] = []
    resident: list[int] = []
    async with AsyncExitStack() as stack:
        backend = stack.enter_context(opened_backend(settings))
        served = await stack.enter_async_context(registrations(settings, backend, MemoryObjectStore(), catalog))
        server = await stack.enter_async_context(serving("activations", settings, served))
        channel = await stack.enter_async_context(aio_channel(server.target))
        stub: Any = service_pb2_grpc.ActivationServiceStub(channel)

        async def call(token_ids: list[int], expected: dict[str, np.ndarray], deadline_s: float | None) -> None:
            request = service_pb2.CaptureRequest(
                model=f"models/{model_id}",
                prompt=messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=token_ids)),
                hooks=hooks,
            )
            assembler, found = TensorAssembler(1 << 30), {}
            async for response in stub.Capture(request, timeout=deadline_s):
                if response.WhichOneof("part") == "chunk" and (done := assembler.add(response.chunk)) is not None:
                    found[done[0]] = done[1]
            report.answered += 1
            report.wrong += not is_right(found, expected)

        async def client(number: int) -> None:
            dice = random.Random(number)
            while time.monotonic() < until and report.answered < most_answers:
                token_ids, expected = dice.choice(right)
                kind = dice.random()
                started = time.perf_counter()
                running = asyncio.create_task(call(token_ids, expected, 0.05 if kind < 0.1 else None))
                if kind > 0.9:
                    await asyncio.sleep(dice.random())
                    running.cancel()
                try:
                    await running
                except grpc.aio.AioRpcError as error:
                    report.ended[error.code().name] += 1
                except asyncio.CancelledError:
                    report.ended["cancelled by the client"] += 1
                else:
                    if 0.1 <= kind <= 0.9:
                        latencies.append(time.perf_counter() - started)
                resident.append(process.memory_info().rss)

        # The first pass loads the model.
        await call(*right[0], None)
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(number) for number in range(num_clients)))
        report.held_bytes = CAPTURED_BYTES._value.get()
        report.waiting = QUEUE_DEPTH._value.get()
    early = resident[max(len(resident) // 10, 1) - 1]
    report.peak_growth_mib = (max(resident) - early) / 2**20
    if len(latencies) > 1:
        cuts = statistics.quantiles(latencies, n=100, method="inclusive")
        report.latency_ms = {f"p{at}": round(1e3 * cuts[at - 1], 1) for at in (50, 90, 99)}
        report.latency_ms["longest"] = round(1e3 * max(latencies), 1)
    return report


def is_right(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Whether every row is within the tolerance of its own length."""
    if set(found) != set(expected):
        return False
    for hook, right in expected.items():
        error = np.linalg.norm(found[hook] - right, axis=-1)
        if found[hook].shape != right.shape or not (error <= TOLERANCE * np.linalg.norm(right, axis=-1)).all():
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("model")
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--hooks", nargs="+", default=["layers.3.mlp_in", "layers.7.mlp_out", "logits"])
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--quick", action="store_true", help="eight clients for ten seconds: that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clients, arguments.seconds = 8, 10.0
    settings = ActivationsSettings(
        insecure_no_auth=True,
        bucket_url="memory://",
        models_dir=arguments.models,
        cache_target="unused:1",
        drain_s=0,
        dtype="float32",
        backend=arguments.backend,
    )
    report = asyncio.run(
        run_load(
            settings,
            arguments.model,
            num_clients=arguments.clients,
            seconds=arguments.seconds,
            hooks=arguments.hooks,
            lengths=LENGTHS,
            catalog=None,
        )
    )
    told = (
        f"{machine()}; {arguments.model} by {arguments.backend}, {arguments.clients} clients for "
        f"{arguments.seconds:g} s, prompts of {LENGTHS[0]} to {LENGTHS[-1]} tokens, {len(arguments.hooks)} hooks; "
        f"{report.answered} answers compared, {report.wrong} wrong; ended otherwise: {dict(report.ended)}; held at the "
        f"end: {report.held_bytes:g} bytes"
    )
    name = f"{arguments.clients} clients, {arguments.backend}"
    rows = [row(f"{name}, {at}", latency, None, "ms", told) for at, latency in report.latency_ms.items()]
    rows.append(row(f"{name}, memory gained after the first tenth", report.peak_growth_mib, None, "MiB", told))
    write_rows(arguments.out, rows)
    if report.wrong or report.held_bytes or report.waiting:
        raise SystemExit("a row was wrong, or something was still held at the end")


if __name__ == "__main__":
    main()
