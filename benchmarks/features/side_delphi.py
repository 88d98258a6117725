"""
Labels and scores of given features by delphi's own code: its cache, examples, explainer and classifiers.

    python benchmarks/features/side_delphi.py CHECKOUT BUCKET SEQUENCES MODEL PLACES URL NAME
        [--tokens 32768] [--examples 20] [--lines 10] [--concurrency 8]

Source: EleutherAI/delphi at 3c2e139, put together as its `__main__.py` does. Runs in an environment that has what its
packages import, vLLM among it. PLACES is a JSON list of [layer, index]. Its client speaks plain chat completions, so
its answers are not held to a schema. Prints one JSON object.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from side_peers import BATCH, encoder, first_ids, in_contexts, layer_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from weft_attribution.core.transcoder import TranscoderReader
from weft_store.opening import open_store


def _records(options: argparse.Namespace, folder: Path) -> Any:
    """Its dataset of these features, out of its cache of them."""
    from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
    from delphi.latents import LatentCache, LatentDataset

    wanted = defaultdict(list)
    for layer, index in json.loads(options.places):
        wanted[f"layers.{layer}.mlp"].append(index)
    latents = {hook: torch.tensor(sorted(each)) for hook, each in wanted.items()}
    reader = TranscoderReader(open_store(options.bucket), "demo")
    encoders = {hook: encoder(*layer_rows(reader, int(hook.split(".")[1]))) for hook in latents}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().model
    cache = LatentCache(model, encoders, batch_size=BATCH, transcode=True, filters=latents)
    cache.run(options.tokens, in_contexts(first_ids(options.sequences, options.tokens)))
    cache.save_splits(1, folder)
    cache.save_config(folder, CacheConfig(n_tokens=options.tokens), str(options.model))
    return LatentDataset(
        raw_dir=folder,
        sampler_cfg=SamplerConfig(n_examples_train=options.examples, n_examples_test=options.lines),
        constructor_cfg=ConstructorConfig(min_examples=options.examples, n_non_activating=options.lines),
        tokenizer=AutoTokenizer.from_pretrained(options.model),
        modules=list(latents),
        latents=latents,
    )


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, str(options.checkout))
    from delphi.clients import OpenRouter
    from delphi.explainers import DefaultExplainer
    from delphi.scorers import DetectionScorer, FuzzingScorer

    counts: Counter[str] = Counter()
    gate = asyncio.Semaphore(options.concurrency)

    class Counting(OpenRouter):
        async def generate(self, prompt: Any, **named: Any) -> Any:
            async with gate:
                counts["calls"] += 1
                return await super().generate(prompt, **named)

    client = Counting(options.name, api_key="none", base_url=f"{options.url}/chat/completions", max_tokens=200)
    explainer = DefaultExplainer(client, threshold=0.3)
    scorers = {
        "detection": DetectionScorer(client, n_examples_shown=5),
        "fuzzing": FuzzingScorer(client, n_examples_shown=5, threshold=0.3),
    }
    decided: dict[str, Counter[tuple[bool, bool | None]]] = {name: Counter() for name in scorers}
    labels = []

    async def one(record: Any) -> None:
        record.explanation = (await explainer(record)).explanation
        counts["unparsed labels"] += record.explanation == "Explanation could not be parsed."
        labels.append(record.explanation)
        for name, scorer in scorers.items():
            for each in (await scorer(record)).score:
                decided[name][each.activating, each.prediction] += 1

    with tempfile.TemporaryDirectory() as folder:
        dataset = _records(options, Path(folder))
        records = [record async for record in dataset if record is not None and record.not_active and record.test]
        begun = time.perf_counter()
        await asyncio.gather(*(one(record) for record in records))
        seconds = time.perf_counter() - begun
    reports = {}
    for name, table in decided.items():
        shares = [table[is_so, is_so] / max(1, table[is_so, True] + table[is_so, False]) for is_so in (True, False)]
        reports[name] = {
            "balanced_accuracy": sum(shares) / 2,
            "decided": sum(count for (_, said), count in table.items() if said is not None),
            "unanswered": sum(count for (_, said), count in table.items() if said is None),
        }
    return {"features": len(records), "seconds": seconds, **counts, "reports": reports, "labels": labels[:10]}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("bucket")
    parser.add_argument("sequences", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("places")
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--lines", type=int, default=10)
    parser.add_argument("--concurrency", type=int, default=8)
    json.dump(asyncio.run(_measure(parser.parse_args())), sys.stdout)


if __name__ == "__main__":
    main()
