"""
A training run of at least half an hour through the services themselves: harvest, training, evaluation, and its page.

    python benchmarks/training/long_run.py [--minutes 30] [--num-tokens 200000] [--num-features 1024] [--top-k 32]
        [--activation top-k] [--aux-top-k 512] [--step-tokens 1024] [--feature-ranks 2] [--learning-rate 2e-3]

Starts `weft` in `.weft/bench/long-run`, harvests Python's help topics and the docstrings of its library with the model
of `make model`, measures in a run of a few steps how many fit into the time, trains, and evaluates the run's checkpoint
with the replacement model. Names follow from what is asked for, so the same command goes on after an interruption.
Writes `.weft/bench/long-run.json` with every step, and fills `docs/benchmarks/long-run.md`, with a plot. The folder
takes about 20 KB a token and 30 bytes a parameter; delete it when done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import uuid
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from quality.long_page import curve_plot, long_lines
from quality.text import topics_and_docstrings
from regions import fill

from weft.training.v1 import messages_pb2 as training
from weft_client import Client
from weft_client.local.control import running
from weft_client.local.layout import Layout
from weft_client.specs import harvest_spec, training_spec

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".weft" / "bench"
MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models")) / "smollm2-135m-instruct"
PAGE = ROOT / "docs" / "benchmarks" / "long-run.md"
IMAGE = "long-run.svg"
PROBE_STEPS, PROBE_WARM_STEPS = 12, 4
"""Steps of the run that only measures, and how many of them at its beginning do not count."""
_SPARE = 1.05
_STOPPED = (training.RUN_STATE_PAUSED, training.RUN_STATE_FAILED)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="of training steps, at least")
    parser.add_argument("--num-tokens", type=int, default=200_000, help="to harvest, a tenth of them held out")
    parser.add_argument("--num-features", type=int, default=1024, help="a layer")
    parser.add_argument("--activation", default="top-k", help="top-k, batch-top-k or joint-top-k")
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--aux-top-k", type=int, default=512, help="dead features that AuxK revives; 0 leaves it out")
    parser.add_argument("--step-tokens", type=int, default=1024)
    parser.add_argument("--feature-ranks", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--evaluations", type=int, default=15, help="on the way")
    parser.add_argument("--replacement-tokens", type=int, default=4_096, help="of the last evaluation")
    parser.add_argument("--folder", type=Path, default=BENCH / "long-run")
    parser.add_argument("--output", type=Path, default=BENCH / "long-run.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown to fill")
    return parser.parse_args()


def _name(prefix: str, *made_from: Message | str) -> str:
    digest = hashlib.sha256()
    for part in made_from:
        digest.update(part.encode() if isinstance(part, str) else part.SerializeToString(deterministic=True))
    return f"{prefix}-{digest.hexdigest()[:10]}"


def _request_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _harvest(client: Client, num_tokens: int) -> str:
    """Return the name of the sealed dataset."""
    documents = topics_and_docstrings()
    text_digest = hashlib.sha256(b"\0".join(text for _, text in documents)).hexdigest()
    corpus = client.corpora.upload(f"python-{text_digest[:10]}", documents)
    spec = harvest_spec(model=f"models/{MODEL.name}", corpus=corpus.name, num_tokens=num_tokens)
    harvest = _name("python", spec)
    spec.dataset = f"datasets/{harvest}"
    operation = client.harvests.create(harvest, spec=spec, request_id=_request_id(harvest))
    shown = 0

    def show(metadata: Any) -> None:
        nonlocal shown
        if metadata.progress.completed >= shown + num_tokens // 20:
            shown = metadata.progress.completed
            print(f"harvest: {shown:,} of {num_tokens:,} tokens", flush=True)

    client.operations.wait(operation, progress=show)
    return spec.dataset


def _spec(options: argparse.Namespace, dataset: str, num_steps: int) -> training.TrainingSpec:
    aux = {"aux_top_k": min(options.aux_top_k, options.num_features), "aux_coeff": 1 / 32} if options.aux_top_k else {}
    measured = num_steps > PROBE_STEPS
    every = max(1, num_steps // max(1, options.evaluations)) if measured else 0
    return training_spec(
        dataset=dataset,
        num_features=options.num_features,
        activation=training.Activation.Value("ACTIVATION_" + options.activation.upper().replace("-", "_")),
        top_k=options.top_k,
        num_steps=num_steps,
        step_tokens=options.step_tokens,
        feature_ranks=options.feature_ranks,
        learning_rate=options.learning_rate,
        warmup_steps=min(20, num_steps // 10),
        dead_after_tokens=50 * options.step_tokens,
        # Few: with Adam's moments each has three times the size of the parameters.
        checkpoint_steps=-(-num_steps // 3) if measured else 0,
        evaluation_steps=every,
        evaluation_tokens=4_096,
        **aux,
    )


def _train(
    client: Client, spec: training.TrainingSpec
) -> tuple[str, list[training.Metrics], list[training.Evaluation]]:
    """Start a run, or go on with it, and return its id and all that it measured."""
    run = _name("long", spec)
    operation = client.runs.create(run, spec=spec, request_id=_request_id(run))
    if client.runs.get(run).state in _STOPPED:
        client.runs.resume(run)
    metrics: dict[int, training.Metrics] = {}
    evaluations: dict[int, training.Evaluation] = {}
    for event in client.runs.watch(run):
        if event.HasField("metrics"):
            now = event.metrics
            metrics[now.step] = now
            if now.step % 10 == 0:
                print(
                    f"step {now.step} of {spec.num_steps}: loss {now.loss:.1f}, explained variance "
                    f"{now.explained_variance:.3f}, L0 {now.l0:.1f}, {now.tokens_per_s:,.0f} tokens/s",
                    flush=True,
                )
        elif event.HasField("evaluation"):
            evaluations[event.evaluation.step] = event.evaluation
    client.operations.wait(operation)  # raises what a run failed with
    return run, list(metrics.values()), list(evaluations.values())


def _num_steps(client: Client, options: argparse.Namespace, dataset: str) -> int:
    """Return how many steps take the time; measured once for a folder and what is asked for."""
    probe = _spec(options, dataset, PROBE_STEPS)
    plan = options.folder / f"{_name('steps', probe, str(options.minutes))}.json"
    if not plan.is_file():
        _, metrics, _ = _train(client, probe)
        rate = statistics.median(each.tokens_per_s for each in metrics[PROBE_WARM_STEPS:])
        steps = math.ceil(_SPARE * 60 * options.minutes * rate / options.step_tokens)
        plan.write_text(json.dumps({"tokens_per_s": rate, "num_steps": max(steps, PROBE_STEPS + 1)}))
    return int(json.loads(plan.read_text())["num_steps"])


def _plain(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """Do everything that is missing, and return what the page and the file are made of."""
    layout = Layout(options.folder.resolve())
    layout.root.mkdir(parents=True, exist_ok=True)
    if not layout.models.exists():
        layout.models.symlink_to(MODEL.parent.resolve())
    with running(layout), Client.connect(layout.endpoints_path) as client:
        dataset = _harvest(client, options.num_tokens)
        spec = _spec(options, dataset, _num_steps(client, options, dataset))
        run, metrics, evaluations = _train(client, spec)
        print("evaluation, with the replacement model", flush=True)
        evaluation = client.operations.wait(client.runs.evaluate(run, replacement_tokens=options.replacement_tokens))
        train_tokens = client.datasets.get(dataset).num_train_tokens
    return {
        "spec": _plain(spec),
        "train_tokens": train_tokens,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seconds": sum(spec.step_tokens / each.tokens_per_s for each in metrics),
        "steps": [
            {name: getattr(each, name) for name in ("step", "tokens", "loss", "explained_variance", "l0", "dead_share")}
            for each in metrics
        ],
        "evaluations": [
            {
                "step": each.step,
                "explained_variance": each.explained_variance,
                "l0_by_layer": list(each.l0_by_layer),
            }
            for each in evaluations
        ],
        "evaluation": _plain(evaluation),
    }


def main() -> None:
    """Run, and write everything."""
    options = _options()
    fill(options.page.read_text(), "long run", [])  # refuses a page that could not be filled in the end
    document = _measured(options)
    image = options.page.parent.parent / "images" / IMAGE
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    text = fill(options.page.read_text(), "long run", long_lines(document, f"../images/{IMAGE}"))
    image.parent.mkdir(exist_ok=True)
    image.write_text(curve_plot(document))
    options.page.write_text(text)
    evaluation = document["evaluation"]
    print(
        f"{document['seconds'] / 60:.1f} minutes of steps; explained variance {evaluation['explained_variance']:.3f}, "
        f"top-1 agreement {evaluation['replacement']['all']['top1_agreement']:.1%}; see {options.page}"
    )


if __name__ == "__main__":
    main()
