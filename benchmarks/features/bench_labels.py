"""
Labels of real features by a language model, scored, beside shuffled ones.

    python benchmarks/features/bench_labels.py (--vllm PYTHON | --url URL --model NAME) [--features 50]
        [--delphi CHECKOUT --delphi-python PYTHON]

`--vllm` is the Python of an environment that has vLLM: it serves SmolLM2-135M-Instruct, the model of `make model`.
Goes over the bucket that `bench_features.py` leaves: its transcoder, and its index over real tokens. A model of this
size understands little of what it is shown, and its labels are as weak as their scores say; what is measured is the
pipeline. Run again, it pays for nothing that was answered before. With a working tree of EleutherAI/delphi the same
features go through its code afterwards (`side_delphi.py`), with as many examples and lines. Writes
`.weft/bench/labels.json` and fills `docs/benchmarks/features.md`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

sys.path += [str(Path(__file__).resolve().parents[2] / "tests"), str(Path(__file__).resolve().parents[1] / "training")]
from regions import fill
from vllm_server import MODEL as SERVED
from vllm_server import vllm_server

from weft_attribution.adapters.openai_interpreter import openai_interpreter
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.interpretation.asking import Asker
from weft_attribution.core.interpretation.budget import Budget
from weft_attribution.core.interpretation.examples import explaining, held_out
from weft_attribution.core.interpretation.explaining import MIN_EXAMPLES, Explainer, ExplainSettings
from weft_attribution.core.interpretation.journal import Journal
from weft_attribution.core.interpretation.prompts import load_prompt
from weft_attribution.core.interpretation.score_reports import KindReport
from weft_attribution.core.interpretation.scoring import Scorer, ScoreSettings
from weft_attribution.core.interpretation.turns import in_turns
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Origin, Place, ScoreKind
from weft_store.opening import open_store

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".weft" / "bench"
SIDE_DELPHI = Path(__file__).with_name("side_delphi.py")
PAGE = ROOT / "docs" / "benchmarks" / "features.md"
MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models")) / "smollm2-135m-instruct"
KINDS = (ScoreKind.DETECTION, ScoreKind.FUZZING, ScoreKind.INTRUDER)


class _Uncounted:
    def call(self, result: str, question_tokens: int, answer_tokens: int) -> None:
        return

    def broken(self) -> None:
        return


def _chosen(index: OpenIndex, count: int) -> list[Place]:
    """Features at random, of those that have examples for both halves."""
    order = np.random.default_rng(0).permutation(len(index.layer_N))
    found: list[Place] = []
    for number in order:
        place = Place(int(index.layer_N[number]), int(index.index_N[number]))
        examples = index.examples(*place)
        if min(len(explaining(examples, MIN_EXAMPLES)), len(held_out(examples, MIN_EXAMPLES))) == MIN_EXAMPLES:
            found.append(place)
        if len(found) == count:
            break
    return found


def _summary(report: KindReport) -> dict[str, Any]:
    pooled, control = report.pooled.estimate(), report.control.estimate()
    return {
        "features": len(report.values),
        "mean": float(np.mean(report.values)) if report.values else None,
        "pooled": asdict(pooled) if pooled else None,
        "unanswered": report.pooled.unanswered,
        "control": asdict(control) if control else None,
    }


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    store = open_store(f"file://{(BENCH / 'features' / 'bucket').resolve()}")
    index = OpenIndexes(store).open("demo")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    async def texts(token_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(tokenizer.decode([token]) for token in token_ids)

    labels, places = LabelStore(store), _chosen(index, options.features)
    for place in places:
        if labels.get("demo", place).label(Origin.MODEL) is not None:
            # Explained anew, out of the answers that are there.
            labels.add("demo", Label(place, "", Origin.MODEL))
    explain = ExplainSettings(options.model, load_prompt("explain"), options.examples, structured=True)
    prompts = {kind: load_prompt(kind.value) for kind in KINDS}
    score = ScoreSettings(KINDS, options.model, "", prompts, options.lines, structured=True, control=True)
    explainer, scorer = Explainer(index, labels, texts, explain, 0.0), Scorer(index, labels, texts, score)
    async with openai_interpreter(options.url, "", timeout_s=300.0) as interpreter:
        asker = Asker(
            interpreter,
            Journal(store, "demo"),
            Budget(options.max_calls),
            operation=f"operations/bench-{time.time_ns()}",
            gate=asyncio.Semaphore(options.concurrency),
            max_attempts=3,
            observe=_Uncounted(),
        )
        begun = time.perf_counter()
        await in_turns(places, lambda place: explainer.explain(place, asker), options.concurrency)
        explained_s = time.perf_counter() - begun
        print(f"explained: {asdict(explainer.explained)}, {asdict(asker.budget.spend)}", flush=True)
        await scorer.read_labels(places)
        await in_turns(places, lambda place: scorer.score(place, asker), options.concurrency)
    shown = [labels.get("demo", place).label() for place in places]
    return {
        "model": options.model,
        "features": len(places),
        "explained": asdict(explainer.explained),
        "scored": {name: getattr(scorer.scored, name) for name in ("scored", "unlabelled", "too_few", "unanswered")},
        "reports": {kind.value: _summary(scorer.scored.reports[kind]) for kind in KINDS},
        "spend": asdict(asker.budget.spend),
        "explained_s": explained_s,
        "seconds": time.perf_counter() - begun,
        "labels": [label.text for label in shown if label is not None][:10],
        "places": [[place.layer, place.index] for place in places],
    }


def _by_delphi(options: argparse.Namespace, places: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The same features by its own code, with as many examples and lines."""
    folder = (BENCH / "features").resolve()
    command = [
        options.delphi_python, SIDE_DELPHI, options.delphi, f"file://{folder / 'bucket'}", folder / "sequences.npz",
        MODEL, json.dumps(places), options.url, options.model, "--examples", options.examples, "--lines", options.lines,
        "--concurrency", options.concurrency,
    ]  # fmt: skip
    done = subprocess.run([str(each) for each in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit("delphi's side failed; its message stands above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _lines(found: dict[str, Any]) -> list[str]:
    def shown(score: dict[str, Any] | None) -> str:
        return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})" if score else ""

    explained, spend = found["explained"], found["spend"]
    return [
        f"{found['features']} features, of which {explained['labelled']} got a label: {spend['calls']} calls, "
        f"{spend['question_tokens'] + spend['answer_tokens']:,} tokens, {found['seconds']:,.0f} s. "
        f"{spend['broken']} answers were not of the form, {spend['reused']} lay in the bucket.",
        "",
        "| test | features | mean score | all decisions together | shuffled labels |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {each['features']} | {each['mean']:.3f} | {shown(each['pooled'])} | {shown(each['control'])} |"
            for name, each in found["reports"].items()
            if each["mean"] is not None
        ),
        *_delphi_lines(found.get("delphi")),
    ]


def _delphi_lines(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    return [
        "",
        f"The same features by delphi's own code: {found['features']} had as many windows as it asks for, "
        f"{found['calls']} calls, {found['seconds']:,.0f} s; {found['unparsed labels']} labels were not of its form.",
        "",
        "| test | lines decided | lines whose answer was not of its form | balanced accuracy of the decided |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {each['decided']} | {each['unanswered']} | {each['balanced_accuracy']:.3f} |"
            for name, each in found["reports"].items()
        ),
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="Python of an environment with vLLM, which serves the model of `make model`")
    parser.add_argument("--url", help="base URL of an endpoint that speaks OpenAI's protocol")
    parser.add_argument("--model", default=SERVED)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--examples", type=int, default=20, help="most examples that a label is made from")
    parser.add_argument("--lines", type=int, default=10, help="most active lines, and silent ones, that score it")
    parser.add_argument("--max-calls", type=int, default=5_000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--delphi", type=Path, help="a working tree of EleutherAI/delphi")
    parser.add_argument("--delphi-python", default=sys.executable, help="Python of an environment that it runs in")
    options = parser.parse_args()
    if bool(options.vllm) == bool(options.url):
        parser.error("give --vllm or --url")
    BENCH.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if options.vllm:
            # delphi's prompts are long.
            server = vllm_server(options.vllm, MODEL, BENCH / "vllm.log", max_model_len=8192)
            options.url = stack.enter_context(server)
        found = asyncio.run(_measure(options))
        if options.delphi:
            found["delphi"] = _by_delphi(options, found["places"])
    (BENCH / "labels.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(found, indent=1, ensure_ascii=False))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), "labels", _lines(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
