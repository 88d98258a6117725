"""The page of the long run, from a document of a few steps, and the regions of pages."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.training.quality.long_page import curve_plot, long_lines
from plotted import num_dots
from regions import fill

ROOT = Path(__file__).parents[3]
SCORE = {"cross_entropy": 3.5, "kl_divergence": 0.25, "top1_agreement": 0.625, "recovered": 0.875}


def _document(num_steps: int) -> dict[str, Any]:
    """Numbers are as protobuf's JSON has them: 64-bit integers are text, and so is what is no number."""
    return {
        "spec": {
            "activation": "ACTIVATION_BATCH_TOP_K",
            "top_k": 32,
            "num_features": 1024,
            "aux_top_k": 512,
            "learning_rate": 0.002,
            "step_tokens": 100,
            "feature_ranks": 2,
        },
        "train_tokens": 5_000,
        "cores": 2,
        "seconds": 1_800.0,
        "steps": [
            {
                "step": step,
                "tokens": 100 * step,
                "loss": 10.0 / step,
                "explained_variance": 1 - 1 / step,
                "l0": 32.0,
                "dead_share": 0.0,
            }
            for step in range(1, num_steps + 1)
        ],
        "evaluations": [{"step": num_steps, "explained_variance": 0.5, "l0_by_layer": [30.0, 32.0]}],
        "evaluation": {
            "tokens": "4096",
            "explained_variance": 0.5,
            "explained_variance_by_layer": [0.375, 0.625],
            "l0_by_layer": [30.0, 32.0],
            "silent_share": 0.125,
            "silent_share_by_layer": [0.25, 0.0],
            "replacement": {
                "tokens": "2000",
                "all": SCORE,
                "by_layer": [SCORE, SCORE | {"recovered": "NaN"}],
            },
        },
    }


def test_long_page_has_the_figures_of_the_run() -> None:
    """Recipe, time, totals and a line for each layer."""
    lines = long_lines(_document(900), "../images/long-run.svg")
    for line in (
        "| recipe | batch-top-k, k 32, F 1024, AuxK 512, learning rate 0.002 |",
        "| steps | 900 of 100 tokens, 90,000 tokens in all, out of 5,000 |",
        "| time | 30.0 minutes of steps, 50 tokens/s |",
        "| L0, held out | 31.0 |",
        "| top-1 agreement, all layers replaced | 62.5% |",
        "| 0 | 0.375 | 30.0 | 25.0% | 62.5% | 0.2500 | 0.875 |",
        "| 1 | 0.625 | 32.0 | 0.0% | 62.5% | 0.2500 | nan |",
        "![Loss, explained variance and L0 over tokens](../images/long-run.svg)",
    ):
        assert line in lines


def test_curves_of_many_steps_are_thinned() -> None:
    """A long run's plot has a few hundred points, and evaluations are marked where they were made."""
    svg = curve_plot(_document(5_000))
    assert svg.count("\nL ") < 1_000
    assert num_dots(svg) == 2


def test_region_is_filled_again_and_again() -> None:
    """What stands around it stays, backslashes are no escapes, and the next figures replace the last."""
    page = "before\n<!-- begin figures: a -->\nold\n<!-- end figures: a -->\n<!-- begin figures: b -->\nb\n"
    once = fill(page, "a", ["one \\1", ""])
    assert once == page.replace("old\n", "one \\1\n\n")
    assert fill(once, "a", ["old"]) == page


def test_page_without_the_region_is_refused() -> None:
    """The message has the lines that are missing."""
    with pytest.raises(SystemExit, match="<!-- begin figures: quality -->"):
        fill("text\n", "quality", ["figures"])


@pytest.mark.parametrize(("page", "name"), [("quality.md", "quality"), ("long-run.md", "long run")])
def test_pages_have_their_regions(page: str, name: str) -> None:
    """What the benchmarks fill is there."""
    text = (ROOT / "docs" / "benchmarks" / page).read_text()
    assert "figures of a test" in fill(text, name, ["figures of a test"])
