"""The benchmarks of training, at sizes at which only their rows mean something."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import Shape
from sides import Given, take_turns

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks" / "training"
CONTRACT = {"name", "ours", "peer", "ratio", "unit", "conditions"}
LESS_IS_BETTER = {"GiB", "s", "us/token"}
SHAPE = Shape(2, 16, 32, 24, 3)

FAKE = """
import sys
from serving import Done, serve

def make(shape):
    print("a library says something")
    with open({log!r}, "a") as log:
        print("started", shape.rank, file=log)
    def step():
        with open({log!r}, "a") as log:
            print("step", file=log)
        if shape.active == 0 and len(open({log!r}).readlines()) > 2:
            sys.exit(3)
        return Done(active=shape.active, parts_s={{"part": 0.5 + shape.rank}})
    return step

serve(make)
"""


def _python(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the benchmarks write."""
    return tmp_path_factory.mktemp("figures")


def _measured(figures: Path, name: str) -> None:
    done = _python("bench_all.py", "--quick", "--only", name, "--folder", str(figures))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def step(figures: Path) -> list[dict[str, Any]]:
    """The rows of the comparison."""
    _measured(figures, "step")
    return _rows(figures, "training")


@pytest.fixture(scope="module")
def scaling(figures: Path) -> list[dict[str, Any]]:
    """The rows of the sweeps."""
    _measured(figures, "scaling")
    return _rows(figures, "scaling")


@pytest.fixture(scope="module")
def roofline(figures: Path) -> list[dict[str, Any]]:
    """The rows of the kernels."""
    _measured(figures, "roofline")
    return _rows(figures, "roofline")


def _rows(figures: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((figures / f"{name}.json").read_text())
    for row in rows:
        assert row.keys() >= CONTRACT
        assert row["ours"] > 0
        if row["peer"] is not None:
            better = row["peer"] / row["ours"] if row["unit"] in LESS_IS_BETTER else row["ours"] / row["peer"]
            assert row["ratio"] == pytest.approx(better)
        assert "others took at most" in row["conditions"]
        assert str(ROOT) not in row["conditions"]
    return rows


def test_step_is_compared_with_dense_torch_and_the_floor(step: list[dict[str, Any]]) -> None:
    """Both sides have the L0 that was asked for, each row its figures and what they were measured under."""
    assert [row["unit"] for row in step] == ["tokens/s", "GiB", "s"]
    for row in step:
        assert row.keys() == CONTRACT
        assert "L 2, d 16, F 32, T 24" in row["name"]
        assert "side by side" in row["conditions"]
    assert "L0 3.0 and 3.0" in step[0]["conditions"]
    assert 0.1 < step[1]["ours"] < 2


def test_scaling_has_every_figure_of_every_point(scaling: list[dict[str, Any]]) -> None:
    """Three rows a point, each beside the first of its sweep; two ranks take more memory than one."""
    rows = {row["name"]: row for row in scaling}
    points = ["F 32", "F 64", "ranks, F 32 1", "ranks, F 32 2"]
    assert list(rows) == [f"{what}, {point}" for point in points for what in ("training step", "peak memory", "decode")]
    assert rows["peak memory, ranks, F 32 2"]["ours"] > 1.5 * rows["peak memory, ranks, F 32 1"]["ours"]
    assert "2 rank(s), L0 3.0" in rows["training step, ranks, F 32 2"]["conditions"]
    assert {row["ratio"] for name, row in rows.items() if name.endswith((" F 32", " 1"))} == {1.0}


def test_roofline_accounts_for_the_whole_step(roofline: list[dict[str, Any]]) -> None:
    """The kernels and the rest add up to the step; what is under half says why."""
    rows = {row["part"]: row for row in roofline}
    assert list(rows)[-2:] == ["everything else", "whole step"]
    assert {"encode and select", "decode", "value gradients", "decoder gradient and Adam", "encoder gradient"} < set(
        rows
    )
    whole = rows.pop("whole step")["ours"]
    assert sum(row["ours"] for row in rows.values()) == pytest.approx(whole)
    for part, row in rows.items():
        if part == "everything else":
            continue
        assert row["ratio"] == max(row["share_of_product"], row["share_of_copy"])
        assert ("why" in row) == (row["ratio"] < 0.5)
    assert rows["decode"]["flop"] == 2 * 16 * 3 * 24 * (2 + 1)


@pytest.mark.usefixtures("step", "scaling", "roofline")
def test_page_is_written_from_the_figures(figures: Path, tmp_path: Path) -> None:
    """The page itself has all regions, and each gets its table and its plot."""
    page = tmp_path / "benchmarks.md"
    before = (ROOT / "docs" / "benchmarks.md").read_text()
    page.write_text(before)
    images = tmp_path / "images"
    done = _python("write_page.py", "--figures", str(figures), "--page", str(page), "--images", str(images))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for region in ("step", "scaling", "roofline"):
        inside = text.split(f"<!-- begin figures: {region} -->")[1].split(f"<!-- end figures: {region} -->")[0]
        assert "| --- |" in inside
        assert f"](images/bench-{region}.svg)" in inside
        assert (images / f"bench-{region}.svg").read_text().rstrip().endswith("</svg>")
    assert text.split("<!-- begin")[0] == before.split("<!-- begin")[0]


def test_benchmark_refuses_a_folder_that_is_not_clt_forges(tmp_path: Path) -> None:
    """It says what it looked for."""
    done = _python("bench_step.py", "--clt-forge", str(tmp_path))
    assert done.returncode == 1
    assert "src/clt_forge/clt.py" in done.stderr


@pytest.mark.parametrize("together", [True, False])
def test_sides_take_turns(tmp_path: Path, together: bool) -> None:
    """One warm-up is not counted; sides that do not fit together are started in every round."""
    log, script = tmp_path / "log", tmp_path / "fake.py"
    script.write_text(FAKE.format(log=str(log)))
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    sides = [Given(name, str(script), SHAPE, 0) for name in ("a", "b")]
    found = take_turns(sides, 2, environment, together=together, title="")
    assert [len(taken.rounds) for taken in found.values()] == [2, 2]
    assert found["a"].active == 3
    assert found["a"].part_s("part") == 0.5
    assert found["a"].peak_gib > 0
    lines = log.read_text().splitlines()
    assert lines.count("started 0") == (2 if together else 4)
    assert lines.count("step") == 4 + (2 if together else 4)


def test_side_of_two_ranks_is_as_slow_as_the_slower(tmp_path: Path) -> None:
    """Each rank is told which it is; parts are of the slower, memory is of both."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(log=str(tmp_path / "log")))
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    shape = Shape(2, 16, 32, 24, 3, num_ranks=2)
    taken = take_turns([Given("a", str(script), shape, 0)], 1, environment, together=True, title="")["a"]
    answers = taken.rounds[0].answers
    assert len(answers) == 2
    assert taken.part_s("part") == 1.5
    assert math.isclose(taken.peak_gib, sum(answer.peak_bytes for answer in answers) / (1 << 30))


def test_side_that_ends_early_leaves_the_others(tmp_path: Path) -> None:
    """It has a failure in place of rounds; the other has all of its own."""
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    sides = []
    for name, active in (("good", 3), ("bad", 0)):
        script = tmp_path / f"{name}.py"
        script.write_text(FAKE.format(log=str(tmp_path / name)))
        sides.append(Given(name, str(script), Shape(2, 16, 32, 24, active), 0))
    found = take_turns(sides, 2, environment, together=True, title="")
    assert len(found["good"].rounds) == 2
    assert not found["good"].failure
    assert not found["bad"].rounds
    assert found["bad"].failure.startswith("it ended with 3")
