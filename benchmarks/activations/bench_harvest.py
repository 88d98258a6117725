"""
What harvesting costs beside reading: plain prefill and whole harvests in turn, in one process.

    python benchmarks/activations/bench_harvest.py MODELS_FOLDER MODEL [--tokens 8192] [--rounds 3] [--backends ...]

The backend `vllm` wants the environment that `make setup-vllm` makes.

Plain prefill is a backend's own fastest way through the same sequences with nothing kept: transformers runs its
model's body on batches of 2,048 tokens, with all threads in every operation, and again with a batch of 512 and of 256
tokens a core, and the fastest of the three counts; vLLM runs prompts that no hook is asked of. A harvest goes end to
end through the service's own worker: leases, model, codec, SHA-256, shards put into a bucket that is a folder, and
commits to a cache service, a process of its own on the same cores, which reads and checks every shard. Planning
(tokens of the corpus) is not timed, as prefill has its tokens too. Ratios are of neighbours in one round.
"""

import argparse
import asyncio
import os
import pydoc_data.topics
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import FIGURES, machine, row, write_rows
from own_process import own_process
from prometheus_client import CollectorRegistry
from transformers import LlamaForCausalLM

from weft_activations.adapters.grpc_catalog import GrpcCatalog
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.adapters.turns import equal_lengths
from weft_activations.adapters.vllm_backend import VllmBackend
from weft_activations.adapters.vllm_engine import CaptureRequest
from weft_activations.core.corpus import CorpusUpload, store_corpus
from weft_activations.core.harvest_records import HarvestProgress, HarvestSpec
from weft_activations.core.harvest_worker import HarvestWorker
from weft_activations.core.harvests import Harvests
from weft_activations.core.inference import Inference
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import DatasetCatalog, ModelBackend
from weft_cache.settings import CacheSettings
from weft_cache.wiring import registration
from weft_common.client import aio_channel
from weft_common.server import serving
from weft_store import ObjectStore, open_bucket, open_store

SEQUENCE_TOKENS = 256
LEASE_SEQUENCES = 16
TURN_TOKENS = 2048


@asynccontextmanager
async def cache_of(folder: Path) -> AsyncIterator[str]:
    """Serve a cache over a bucket in a folder."""
    settings = CacheSettings(insecure_no_auth=True, bucket_url=f"file://{folder}", drain_s=0, log_level="warning")
    served = [registration(open_bucket(settings), registry=CollectorRegistry())]
    async with serving("cache", settings, served) as server:
        yield server.target


@asynccontextmanager
async def bucket_and_catalog(folder: Path) -> AsyncIterator[tuple[ObjectStore, DatasetCatalog]]:
    """Open a bucket in a folder, and the cache that serves it."""
    with own_process(cache_of, folder) as target:
        async with aio_channel(target) as channel:
            yield open_store(f"file://{folder}"), GrpcCatalog(channel)


def transformers_prefill(body: Any, batch_tokens: int, *, one_core: bool) -> Callable[[Any], None]:
    """Return a plain pass of transformers' own model over sequences."""
    pool = ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) if one_core else None

    def run(sequences: Sequence[np.ndarray]) -> None:
        def run_batch(batch: Sequence[int]) -> None:
            with torch.inference_mode():
                body(torch.from_numpy(np.stack([sequences[member] for member in batch])), use_cache=False)

        batches = equal_lengths([len(sequence) for sequence in sequences], batch_tokens)
        list((pool.map if pool else map)(run_batch, batches))

    return run


def vllm_prefill(backend: VllmBackend, model_id: str) -> Callable[[Any], None]:
    """Return a plain pass of vLLM over sequences, as many at once as a harvest gives it."""
    info, at_once = backend.describe(model_id), TURN_TOKENS // SEQUENCE_TOKENS

    def run(sequences: Sequence[np.ndarray]) -> None:
        for first in range(0, len(sequences), at_once):
            turn = sequences[first : first + at_once]
            backend._run(info, [CaptureRequest(sequence.tolist(), {}) for sequence in turn])

    return run


class Bench:
    """One backend and what its rounds found, in tokens a second."""

    def __init__(self, name: str, backend: ModelBackend, prefills: dict[str, Callable[[Any], None]]) -> None:
        self.name, self.backend, self.prefills = name, backend, prefills
        self.rates: dict[str, list[float]] = {way: [] for way in (*prefills, "harvest")}

    async def round(self, store: ObjectStore, catalog: DatasetCatalog, spec: HarvestSpec, number: int) -> None:
        """Run every plain way and one whole harvest over the same sequences."""
        inference = Inference(self.backend)
        planner = HarvestPlanner(store, inference)
        harvests = Harvests(store, catalog, inference, planner, max_lease_bytes=1 << 31)
        planned = await planner.plan(spec)
        sequences = [sequence.ids for lease in planned.plan.leases for sequence in lease.sequences]
        num_tokens = sum(map(len, sequences))
        harvest_id = f"{self.name}-{number}"
        await harvests.create(harvest_id, spec, harvest_id)
        worker = HarvestWorker(store, catalog, inference, planner, owner=harvest_id)

        async def report(progress: HarvestProgress) -> None:
            return None

        for way, prefill in self.prefills.items():
            started = time.perf_counter()
            await asyncio.to_thread(prefill, sequences)
            self.rates[way].append(num_tokens / (time.perf_counter() - started))
        started = time.perf_counter()
        await worker.run(harvest_id, report)
        self.rates["harvest"].append(num_tokens / (time.perf_counter() - started))
        inference.close()

    def leave_out_slow_ways(self) -> None:
        """Run no plain way again that has just taken half as long again as the fastest."""
        fastest = max(self.rates[way][-1] for way in self.prefills)
        self.prefills = {way: run for way, run in self.prefills.items() if self.rates[way][-1] > fastest / 1.5}

    def ratio(self) -> float:
        """Return the median, over rounds, of the harvest's rate over the fastest plain one's."""
        return statistics.median(
            rate / max(self.rates[way][number] for way in self.prefills)
            for number, rate in enumerate(self.rates["harvest"])
        )


async def measure(arguments: argparse.Namespace) -> list[Bench]:
    """Take turns."""
    folder, model_id = arguments.models, arguments.model
    benches = []
    if "transformers" in arguments.backends:
        transformers = TransformersBackend(folder, dtype="float32")
        plain = LlamaForCausalLM.from_pretrained(folder / model_id, dtype=torch.float32, attn_implementation="sdpa")
        body = plain.model.eval().requires_grad_(False)
        ways = {
            "prefill, all cores an operation": transformers_prefill(body, TURN_TOKENS, one_core=False),
            "prefill, a core a batch of 512": transformers_prefill(body, 512, one_core=True),
            "prefill, a core a batch of 256": transformers_prefill(body, 256, one_core=True),
        }
        benches.append(Bench("transformers", transformers, ways))
    if "vllm" in arguments.backends:
        vllm = VllmBackend(folder, dtype="float32", batch_tokens=arguments.batch_tokens)
        benches.append(Bench("vllm", vllm, {"prefill": vllm_prefill(vllm, model_id)}))
    with tempfile.TemporaryDirectory() as scratch:
        async with bucket_and_catalog(Path(scratch)) as (store, catalog):
            upload = CorpusUpload(max_bytes=1 << 26)
            for name, text in pydoc_data.topics.topics.items():
                upload.add(name, text.encode())
            store_corpus(store, "pydoc", upload.finish())
            for number in range(-1, arguments.rounds):
                for bench in benches:
                    spec = HarvestSpec(
                        model=model_id,
                        dataset=f"{bench.name}-{number + 1}",
                        corpus="pydoc",
                        # A first round loads models and compiles kernels, and does not count.
                        num_tokens=arguments.tokens if number >= 0 else TURN_TOKENS,
                        held_out_share=0.1,
                        sequence_tokens=SEQUENCE_TOKENS,
                        input_hook="mlp_in",
                        output_hook="mlp_out",
                        codec=arguments.codec,
                        target_fvu=arguments.target_fvu,
                        max_norm_ratio=0.0,
                        lease_sequences=LEASE_SEQUENCES,
                    )
                    await bench.round(store, catalog, spec, number + 1)
                    if number < 0:
                        bench.rates = {way: [] for way in bench.rates}
                    else:
                        print(
                            number,
                            bench.name,
                            {way: round(rates[-1]) for way, rates in bench.rates.items()},
                            flush=True,
                        )
                        bench.leave_out_slow_ways()
    return benches


def rows_of(bench: Bench, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the harvest beside plain prefill, and what either reaches."""
    told = (
        f"{machine()}; {arguments.model}, {arguments.tokens} tokens in sequences of {SEQUENCE_TOKENS}, codec "
        f"{arguments.codec} at FVU {arguments.target_fvu:g}, bucket in a folder; medians of {arguments.rounds} rounds"
    )
    harvest = statistics.median(bench.rates["harvest"])
    way = max(bench.prefills, key=lambda name: statistics.median(bench.rates[name]))
    found = row(f"harvest, {bench.name}", harvest, statistics.median(bench.rates[way]), "tokens/s", f"{told}; {way}")
    return [found | {"ratio": bench.ratio()}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--codec", default="uniform")
    parser.add_argument("--target-fvu", type=float, default=1e-3)
    parser.add_argument("--backends", nargs="+", default=["transformers"], choices=["transformers", "vllm"])
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: that it runs, not how fast")
    parser.add_argument("--out", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.rounds = 2 * TURN_TOKENS, 1
    for bench in asyncio.run(measure(arguments)):
        write_rows(arguments.out, rows_of(bench, arguments))


if __name__ == "__main__":
    main()
