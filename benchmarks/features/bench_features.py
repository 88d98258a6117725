"""
An index of features on real tokens, recounted and killed, and how fast a million features answer.

    python benchmarks/features/bench_features.py [--tokens 200000] [--features 512] [--steps 38] [--kills 3] [--quick]
        [--only index|queries]

Starts `weft` in `.weft/bench/features`, harvests Python's help topics and docstrings with the model of `make model`,
trains the demo's transcoder on them for a few steps, and lets the services go. Then, each in a process of its own over
the same bucket: the index, measured; the same again, killed at random moments and resumed until it is whole, which must
give the same bytes; a recount of 50 random features by other code in float64. The million features are made up: a
summary and triggers of all, labels of a tenth, and the text of one layer. Questions go through the servicer, with its
messages, without the network. Writes `.weft/bench/features.json` and fills `docs/benchmarks/features.md`.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from recount import recount
from side_index import SavedSequences
from synthetic import WORDS, make_index, make_labels

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))
from quality.text import topics_and_docstrings
from regions import fill

from weft.features.v1 import index_pb2, queries_pb2, service_pb2
from weft_attribution.adapters.grpc_sequences import GrpcSequences
from weft_attribution.core.feature_index.labelled import LabelTable
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.queries import FeatureQueries
from weft_attribution.core.feature_index.settings import IndexKeys, IndexRequest, IndexSettings
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Place
from weft_attribution.core.standing_labels import StandingLabels
from weft_attribution.features_servicer import FeatureDomain, FeatureServicer
from weft_client import Client
from weft_client.local.control import running
from weft_client.local.layout import Layout
from weft_client.specs import harvest_spec, training_spec
from weft_common.client import aio_channel
from weft_store.opening import open_store
from weft_store.port import ObjectStore

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".weft" / "bench"
MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models")) / "smollm2-135m-instruct"
PAGE = ROOT / "docs" / "benchmarks" / "features.md"
SIDE = Path(__file__).with_name("side_index.py")
RECOUNTED = 50


def _prepare(folder: Path, options: argparse.Namespace) -> None:
    """Have the dataset, the transcoder and the sequences, whatever is there already."""
    layout = Layout(folder.resolve())
    layout.root.mkdir(parents=True, exist_ok=True)
    if not layout.models.exists():
        layout.models.symlink_to(MODEL.parent.resolve())
    saved = folder / "sequences.npz"
    if saved.is_file():
        return
    with running(layout) as (endpoints, _), Client.connect(layout.endpoints_path) as client:
        corpus = client.corpora.upload("python", _some(topics_and_docstrings(), 8 * options.tokens))
        spec = harvest_spec(
            model=f"models/{MODEL.name}",
            corpus=corpus.name,
            dataset="datasets/python",
            # A tenth is held out, and the index goes over the training split.
            num_tokens=round(options.tokens / 0.9),
            held_out_share=0.1,
            # Nothing is left out, so that an index needs no model.
            max_norm_ratio=0.0,
        )
        print("harvest", flush=True)
        client.operations.wait(client.harvests.create("python", spec=spec))
        print("train", flush=True)
        run = training_spec(
            dataset="datasets/python",
            num_features=options.features,
            top_k=max(1, options.features // 16),
            num_steps=options.steps,
            step_tokens=1024,
            warmup_steps=min(5, options.steps // 4),
            learning_rate=2e-3,
        )
        client.operations.wait(client.runs.create("demo", spec=run))
        client.operations.wait(client.runs.export("demo", transcoder_id="demo"))
        there = endpoints.services["activations"]

        async def read() -> Any:
            async with aio_channel(there.target, token=there.token) as channel:
                return await GrpcSequences(channel, timeout_s=600).sequences("python", held_out=False, max_tokens=0)

        SavedSequences.save(saved, asyncio.run(read()))


def _some(documents: Sequence[tuple[str, bytes]], num_bytes: int) -> list[tuple[str, bytes]]:
    """The first documents that have so many bytes together: what is not read need not be tokenised."""
    sizes = np.cumsum([len(text) for _, text in documents])
    return list(documents[: int(np.searchsorted(sizes, num_bytes)) + 1])


def index_request(index_id: str, max_tokens: int) -> IndexRequest:
    return IndexRequest("demo", index_id, "python", held_out=False, max_tokens=max_tokens, settings=IndexSettings())


def _side(folder: Path, request: IndexRequest, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, str(SIDE), f"file://{(folder / 'bucket').resolve()}", str(folder / "sequences.npz"),
        json.dumps(request.to_json()), *arguments,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _bytes_of(store: ObjectStore, index_id: str) -> dict[str, str]:
    prefix = IndexKeys("demo", index_id).prefix
    return {
        info.key.removeprefix(prefix): hashlib.sha256(store.get(info.key)).hexdigest()
        for info in store.list(prefix)
        # Id and time of the request stand in these.
        if not info.key.endswith(("manifest.json", "request.json"))
    }


def clear_index(store: ObjectStore, index_id: str) -> None:
    for info in list(store.list(IndexKeys("demo", index_id).prefix)):
        store.delete(info.key)


def _measure_index(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    store = open_store(f"file://{(folder / 'bucket').resolve()}")
    workers = str(len(os.sched_getaffinity(0)))
    for index_id in ("whole", "killed"):
        clear_index(store, index_id)
    whole = index_request("whole", options.tokens)
    child = _side(folder, whole, "--workers", workers)
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit("the index failed; its message stands above")
    found: dict[str, Any] = json.loads(output)
    print(f"index: {found['tokens']:,} tokens in {found['seconds']:.1f} s", flush=True)
    found["workers"] = int(workers)
    found["index_bytes"] = sum(info.size_bytes for info in store.list(whole.keys.prefix))
    killed, rng, kills = index_request("killed", options.tokens), random.Random(0), 0
    while True:
        child = _side(folder, killed, "--workers", workers, "--store-every", "2")
        if kills < options.kills:
            try:
                child.wait(rng.uniform(0.1, 0.3) * found["seconds"])
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                kills += 1
                child.wait()
                continue
        child.communicate()
        if child.returncode:
            raise SystemExit("the resumed index failed; its message stands above")
        break
    found["kills"] = kills
    found["equal_bytes"] = _bytes_of(store, "whole") == _bytes_of(store, "killed")
    print(f"killed {kills} times, equal bytes: {found['equal_bytes']}", flush=True)
    if kills < options.kills or not found["equal_bytes"]:
        raise SystemExit("the index was not killed as often as asked, or came out otherwise")
    clear_index(store, "killed")
    index = OpenIndexes(store).open("demo")
    numbers = np.random.default_rng(0).choice(len(index.layer_N), RECOUNTED, replace=False)
    places = [(int(index.layer_N[number]), int(index.index_N[number])) for number in numbers]
    found["recount"] = asdict(recount(store, index, places))
    print(f"recount: {found['recount']}", flush=True)
    return found


async def _times(call: Callable[[int], Awaitable[Any]], count: int) -> dict[str, float]:
    begun = time.perf_counter()
    await call(0)
    first = time.perf_counter() - begun
    taken = []
    for number in range(1, count + 1):
        begun = time.perf_counter()
        await call(number)
        taken.append(time.perf_counter() - begun)
    return {
        "first_ms": 1e3 * first,
        "median_ms": 1e3 * statistics.median(taken),
        "p95_ms": 1e3 * sorted(taken)[int(0.95 * (len(taken) - 1))],
    }


def _measure_queries(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    num_layers = 4 if options.quick else 20
    num_features = (20_000 if options.quick else 1_000_000) // num_layers
    store = open_store(f"file://{(folder / 'made-up').resolve()}")
    print("making features up", flush=True)
    make_index(store, num_layers=num_layers, num_features=num_features)
    begun, num_labels = time.perf_counter(), num_layers * num_features // 10
    make_labels(store, num_layers=num_layers, num_features=num_features, num_labels=num_labels)
    print(f"{num_labels:,} labels written in {time.perf_counter() - begun:.1f} s", flush=True)
    num_pages = sum(1 for _ in store.list("features/made-up/labels/"))
    standing = StandingLabels(store)
    labels, writer = LabelTable(standing), LabelStore(store, changed=standing.changed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def detokenize(model: str, token_ids: list[int]) -> tuple[str, ...]:
        return tuple(f"t{token_id}" for token_id in token_ids)

    async def pieces(model: str, token_ids: list[int]) -> tuple[bytes, ...]:
        return tuple(f"t{token_id}".encode() for token_id in token_ids)

    async def tokenize(model: str, text: str) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(id=ord(each)) for each in text)

    runner: Any = SimpleNamespace(detokenize=detokenize, pieces=pieces, tokenize=tokenize)
    domain: Any = SimpleNamespace(
        indexing=None,
        queries=FeatureQueries(OpenIndexes(store), labels),
        matching=None,
        on_prompt=None,
        opened=None,
        exports=None,
        graphs=None,
        steered=None,
    )
    nothing: Any = None
    assert set(FeatureDomain.__dataclass_fields__) == set(vars(domain))
    servicer = FeatureServicer(store, runner, nothing, domain, nothing)
    parent = "transcoders/made-up"
    masked = service_pb2.GetFeatureRequest()
    masked.read_mask.paths.extend(["name", "statistics", "examples", "neighbours", "partners", "label"])

    def of_layers(number: int) -> queries_pb2.FeatureFilter:
        return queries_pb2.FeatureFilter(layers=[number % num_layers], density=queries_pb2.Bounds(min=1e-5, max=1e-2))

    def get(number: int) -> Awaitable[Any]:
        request = service_pb2.GetFeatureRequest(name=f"{parent}/features/0-{number * 7919 % num_features}")
        request.read_mask.CopyFrom(masked.read_mask)
        return servicer.GetFeature(request, nothing)

    def lists(**fields: Any) -> Callable[[int], Awaitable[Any]]:
        def ask(number: int) -> Awaitable[Any]:
            given = {name: value(number) if callable(value) else value for name, value in fields.items()}
            return servicer.ListFeatures(queries_pb2.ListFeaturesRequest(parent=parent, **given), nothing)

        return ask

    def search(**fields: Any) -> Callable[[int], Awaitable[Any]]:
        def ask(number: int) -> Awaitable[Any]:
            given = {name: value(number) if callable(value) else value for name, value in fields.items()}
            return servicer.SearchFeatures(queries_pb2.SearchFeaturesRequest(parent=parent, **given), nothing)

        return ask

    def said_before(ask: Callable[[int], Awaitable[Any]]) -> Callable[[int], Awaitable[Any]]:
        """A question of whoever has just labelled a feature, or beside a job that labels."""

        def add(number: int) -> None:
            place = Place(number % num_layers, number * 7919 % num_features)
            writer.add("made-up", Label(place, f"said {number} {time.time_ns()}"))

        async def both(number: int) -> Any:
            await asyncio.to_thread(add, number)
            return await ask(number)

        return both

    scored = queries_pb2.FeatureFilter(score_kind="detection", score=queries_pb2.Bounds(min=0.9))
    states = queries_pb2.FeatureFilter(states=[index_pb2.FEATURE_STATE_ACTIVE])
    questions = {
        "GetFeature with 60 windows": get,
        "ListFeatures, no filter": lists(),
        "ListFeatures, a layer and densities, by largest activation": lists(
            filter=of_layers, order_by="max_activation desc"
        ),
        "ListFeatures, active, by density": lists(filter=states, order_by="density"),
        "ListFeatures, by score above .9": lists(filter=scored, order_by="score desc"),
        "SearchFeatures, a word in a quarter of the labels": search(label=lambda number: WORDS[number % len(WORDS)]),
        "SearchFeatures, one label": search(label=lambda number: f"{number * 7919 % num_labels}"),
        "SearchFeatures, a word, a label said before each": said_before(
            search(label=lambda number: WORDS[number % len(WORDS)])
        ),
        "SearchFeatures, a token": search(token_id=lambda number: number * 31 % 49_152),
    }

    async def ask() -> dict[str, Any]:
        return {name: await _times(call, options.repeats) for name, call in questions.items()}

    found = asyncio.run(ask())
    for name, times in found.items():
        print(f"{name}: median {times['median_ms']:.1f} ms, first {times['first_ms']:.0f} ms", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "features": num_layers * num_features,
        "labels": num_labels,
        "label_pages": num_pages,
        "questions": found,
        "added_kib": peak - before,
    }


def _index_lines(found: dict[str, Any]) -> list[str]:
    recounted = found["recount"]
    rate = found["tokens"] / found["seconds"]
    return [
        "| what | figure |",
        "| --- | --- |",
        f"| text | {found['tokens']:,} tokens, {found['layers']} layers of {found['features']:,} features |",
        f"| time | {found['seconds']:.1f} s with {found['workers']} workers: {rate:,.0f} tokens/s, "
        f"{rate * found['layers']:,.0f} tokens of a layer a second |",
        f"| peak memory | {found['peak_kib'] / 1024:,.0f} MiB, {found['before_kib'] / 1024:,.0f} before it |",
        f"| size in the bucket | {found['index_bytes'] / 2**20:,.1f} MiB |",
        f"| killed and resumed | {found['kills']} times; files equal: {'yes' if found['equal_bytes'] else 'NO'} |",
        f"| recounted | {recounted['features']} features, {recounted['active']:,} activations, "
        f"{recounted['examples']:,} windows |",
        f"| that differ | {recounted['counts_off']} counts, {recounted['bins_off']} in histograms, "
        f"{recounted['examples_off']} windows; {recounted['near_threshold']} tokens lie within 1e-4 of a threshold |",
    ]


def _query_lines(found: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {times['median_ms']:.1f} ms | {times['p95_ms']:.1f} ms | {times['first_ms']:,.0f} ms |"
        for name, times in found["questions"].items()
    ]
    return [
        f"{found['features']:,} features, {found['labels']:,} labels in {found['label_pages']:,} pages of the bucket:",
        "",
        "| question | median | 95 of 100 within | the first time |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def main() -> None:
    """Measure, write, fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=512, help="a layer")
    parser.add_argument("--steps", type=int, default=38, help="of training")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=50, help="of every question")
    parser.add_argument(
        "--quick", action="store_true", help="2,000 real tokens, 20,000 made-up features; fills no page"
    )
    parser.add_argument("--only", choices=("index", "queries"))
    parser.add_argument("--folder", type=Path, default=BENCH / "features")
    parser.add_argument("--output", type=Path, default=BENCH / "features.json")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.steps, options.repeats = 2_000, 4, 5
        options.folder = options.folder.with_name("features-quick")
    parts: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], list[str]]]] = {
        "index": (lambda: _measure_index(options.folder, options), _index_lines),
        "queries": (lambda: _measure_queries(options.folder, options), _query_lines),
    }
    if options.only != "queries":
        _prepare(options.folder, options)
    found: dict[str, Any] = {}
    for name, (measure, lines_of) in parts.items():
        if options.only not in (None, name):
            continue
        load = os.getloadavg()[0]
        found[name] = {"cores": len(os.sched_getaffinity(0)), "load": load, **measure()}
        # A part that took long is not lost by a later one that fails.
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
        if not options.quick:
            note = f"Measured on {found[name]['cores']} cores with a load of {load:.1f} at the beginning."
            page = PAGE.read_text(encoding="utf-8")
            PAGE.write_text(fill(page, name, [note, "", *lines_of(found[name])]), encoding="utf-8")


if __name__ == "__main__":
    main()
