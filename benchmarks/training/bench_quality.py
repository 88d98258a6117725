"""
How good a trained CLT is, over recipes, sparsities and seeds, beside CLT-Forge's recipe in its own code.

    python benchmarks/training/bench_quality.py [--clt-forge FOLDER --clt-forge-python PYTHON] [--quick]
        [--first-layer 12] [--num-layers 5] [--num-features 1024] [--train-tokens 65536] [--held-out-tokens 4096]
        [--num-steps 256] [--step-tokens 256] [--seeds 3] [--sparsity-coeff 2,5,12] [--top-k 8,16,32,64]
        [--arms NAME;NAME] [--threads 2]

All sides train on the same tokens, in the same order and units; one evaluator judges them on held-out ones (`quality`).
CLT-Forge's runs come first; unless told otherwise, k spans what L0 they came to, so that the fronts overlap.
The tokens are harvested once from the model of `make model`, over Python's help topics. Every run is kept as a line of
`.weft/bench/quality/points.jsonl` as soon as it is evaluated, so the same command goes on after an interruption.
Writes `.weft/bench/training-quality.json`: rows of explained variance at CLT-Forge's L0, of which a ratio above 1 means
that weft's is higher; and fills `docs/benchmarks/quality.md`, with a plot. `--quick` tries all of it at a size at which
only the rows' form means something, and fills no page. With LD_PRELOAD of tcmalloc
CLT-Forge's runs take about half the time; no figure changes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from quality.arms import Job
    from quality.evaluator import Weights
    from quality.points import Point
    from quality.tokens import TokenData

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".weft" / "bench"
MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models")) / "smollm2-135m-instruct"
PAGE = ROOT / "docs" / "benchmarks" / "quality.md"
IMAGE = "quality-pareto.svg"
QUICK = {
    "first_layer": 14,
    "num_layers": 2,
    "num_features": 32,
    "train_tokens": 512,
    "held_out_tokens": 128,
    "num_steps": 10,
    "step_tokens": 64,
    "seeds": 2,
    "sparsity_coeff": [0.5, 2.0],
}


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    """
    Split names of arms, some of which have a comma: between arms stands a semicolon.

    >>> _names("top-k;top-k, AuxK")
    ['top-k', 'top-k, AuxK']
    """
    return text.split(";")


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny size, to try it; sizes that are given still count")
    parser.add_argument("--model", type=Path, default=MODEL, help="a Hugging Face folder")
    parser.add_argument("--first-layer", type=int, default=12, help="of the layers that are kept")
    parser.add_argument("--num-layers", type=int, default=5)
    parser.add_argument("--num-features", type=int, default=1024, help="a layer")
    parser.add_argument("--train-tokens", type=int, default=65_536)
    parser.add_argument("--held-out-tokens", type=int, default=4_096)
    parser.add_argument("--num-steps", type=int, default=256)
    parser.add_argument("--step-tokens", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--top-k", type=_integers, help="for the arms that count; spans CLT-Forge's L0, or 8,16,32,64")
    parser.add_argument("--sparsity-coeff", type=_numbers, default=[2.0, 5.0, 12.0], help="lambda of the others")
    parser.add_argument("--arms", type=_names, default=[], help="weft's recipes, by the page's names; by default all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clt-forge", type=Path, help="a working tree of CLT-Forge")
    parser.add_argument("--clt-forge-python", default=sys.executable, help="Python of an environment that it runs in")
    parser.add_argument("--folder", type=Path, default=BENCH / "quality", help="for tokens and finished runs")
    parser.add_argument("--output", type=Path, default=BENCH / "training-quality.json")
    parser.add_argument(
        "--page", type=Path, help=f"the page to write; by default {PAGE.relative_to(ROOT)}, of --quick none"
    )
    if "--quick" in sys.argv[1:]:
        parser.set_defaults(**QUICK, output=BENCH / "training-quality-quick.json")
    else:
        parser.set_defaults(page=PAGE)
    options = parser.parse_args()
    if options.clt_forge and not (options.clt_forge / "src" / "clt_forge" / "training" / "clt_trainer.py").is_file():
        parser.exit(
            1, f"{options.clt_forge} has no src/clt_forge/training/clt_trainer.py; give a working tree of CLT-Forge.\n"
        )
    return options


def _held_out(data: TokenData) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Held-out inputs and targets, [T, L, D] in batches."""
    import torch

    from weft_activations.core.ports import Split

    inputs_NLD, targets_NLD = data.read(Split.HELD_OUT)
    for start in range(0, len(inputs_NLD), 512):
        inputs_TLD, targets_TLD = (stream[start : start + 512].copy() for stream in (inputs_NLD, targets_NLD))
        yield torch.from_numpy(inputs_TLD).float(), torch.from_numpy(targets_TLD).float()


def _measured(options: argparse.Namespace) -> tuple[list[Point], str]:
    """Do the runs that are missing; return all of them, and what they were measured under."""
    import torch
    from quality.arms import ARMS, Training, own_jobs, peer_jobs
    from quality.evaluator import evaluate
    from quality.fronts import spanning
    from quality.page import conditions_of
    from quality.points import Point, PointFile
    from quality.sides import PeerEnvironment, train_clt_forge, train_weft
    from quality.tokens import TokenSize, make_tokens

    torch.set_num_threads(options.threads)
    size = TokenSize(options.first_layer, options.num_layers, options.train_tokens, options.held_out_tokens)
    data = make_tokens(options.model, size, options.folder, threads=options.threads)
    training = Training(options.num_features, options.num_steps, options.step_tokens)
    seeds, coeffs = range(1, options.seeds + 1), options.sparsity_coeff
    file = PointFile(options.folder / "points.jsonl")

    def finished(jobs: list[Job], train: Callable[[Job], tuple[Weights, float]]) -> list[Point]:
        for number, job in enumerate(jobs, start=1):
            point = file.find(job)
            if point is None:
                weights, seconds = train(job)
                point = Point.of(job, evaluate(weights, _held_out(data)), seconds)
                file.add(point)
            print(
                f"{number} of {len(jobs)}: {job}: L0 {point.quality.l0:.1f}, explained variance "
                f"{point.quality.explained_variance:.4f}, {training.num_tokens / point.seconds:,.0f} tokens/s",
                flush=True,
            )
        return file.of(jobs)

    points, top_ks = list[Point](), options.top_k or [8, 16, 32, 64]
    if options.clt_forge:
        peer = PeerEnvironment(options.clt_forge.resolve(), options.clt_forge_python)
        points = finished(
            list(peer_jobs(training, data.digest, seeds=seeds, sparsity_coeffs=coeffs)),
            lambda job: train_clt_forge(job, data, peer, threads=options.threads),
        )
        top_ks = options.top_k or spanning([point.quality.l0 for point in points], training.num_features)
        # Two runs of one recipe do not come to quite the same L0 either.
        coeffs = [min(coeffs) / 2, *coeffs, 2 * max(coeffs)]
    arms = [arm for arm in ARMS if not options.arms or arm.name in options.arms]
    jobs = own_jobs(training, data.digest, seeds=seeds, top_ks=top_ks, sparsity_coeffs=coeffs, arms=arms)
    points += finished(list(jobs), lambda job: train_weft(job, data))
    return points, conditions_of(data, training, options.threads)


def _fill_page(page: Path, points: Sequence[Point], rows: Sequence[dict[str, object]], conditions: str) -> None:
    from quality.page import pareto_plot, quality_lines
    from regions import fill

    text = fill(page.read_text(), "quality", quality_lines(points, rows, conditions, f"../images/{IMAGE}"))
    image = page.parent.parent / "images" / IMAGE
    image.parent.mkdir(exist_ok=True)
    image.write_text(pareto_plot(points))
    page.write_text(text)


def main() -> None:
    """Measure what is missing and write everything."""
    # Numba and torch read these when they are imported.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "weft" / "numba"))
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    from quality.fronts import rows as rows_of
    from regions import fill

    if options.page:
        fill(options.page.read_text(), "quality", [])  # refuses a page that could not be filled in the end
    points, conditions = _measured(options)
    rows = list(rows_of(points, conditions))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    if options.page:
        _fill_page(options.page, points, rows, conditions)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
