"""Points of the quality benchmark: how they are kept, and how two sides are compared at one L0."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.training.quality.arms import PEER, Job
from benchmarks.training.quality.evaluator import Quality
from benchmarks.training.quality.fronts import at_l0, means, rows, spanning
from benchmarks.training.quality.page import pareto_plot
from benchmarks.training.quality.points import Point, PointFile
from plotted import num_dots

JOB = Job("weft", "top-k", "k", 8, 1, {"side": "weft", "spec": {"top_k": 8}})


def quality(l0: float, explained_variance: float) -> Quality:
    return Quality(10, explained_variance, explained_variance, [explained_variance], l0, [l0], 0.25)


def point(side: str, l0: float, explained_variance: float, seed: int = 1, value: float = 1.0) -> Point:
    name = f"{side}-{l0}-{seed}"
    return Point(name, side, "recipe", "k", value, seed, 2.0, quality(l0, explained_variance))


def test_front_is_read_between_its_neighbours_over_log_l0() -> None:
    """Order does not matter; the geometric mean of two L0s lies half-way, and a point itself is returned exactly."""
    front = [(64.0, 0.9), (4.0, 0.1), (16.0, 0.5)]
    assert at_l0(front, 8.0) == pytest.approx(0.3)
    assert at_l0(front, 32.0) == pytest.approx(0.7)
    assert at_l0(front, 16.0) == 0.5


def test_front_is_never_extended() -> None:
    """Beyond the densest point that one counts; below the sparsest there is nothing."""
    front = [(4.0, 0.1), (16.0, 0.5)]
    assert at_l0(front, 1000.0) == 0.5
    assert at_l0(front, 3.9) is None


@pytest.mark.parametrize("l0s", [[30.0], [3.2, 200.0], [11.0, 12.0, 40.0]])
def test_k_spans_the_other_sides_l0(l0s: list[float]) -> None:
    """The least is below all of them, the largest above, and none is there twice."""
    found = spanning(l0s, 1024)
    assert found[0] < min(l0s)
    assert found[-1] > max(l0s)
    assert found == sorted(set(found))
    assert len(found) <= 4


def test_k_is_at_most_half_of_the_features() -> None:
    """A side that is hardly sparse does not make the others dense."""
    assert spanning([500.0, 900.0], 64) == [32]
    assert max(spanning([10.0, 900.0], 64)) == 32


def test_rows_compare_each_seed_with_itself() -> None:
    """Each seed's L0 is looked up on that seed's own front, and the means are compared."""
    points = [
        point("weft", 4, 0.2), point("weft", 16, 0.4), point("weft", 4, 0.4, seed=2), point("weft", 16, 0.8, seed=2),
        point(PEER, 8, 0.2), point(PEER, 16, 0.3, seed=2),
    ]  # fmt: skip
    (row,) = rows(points, "conditions")
    assert row["ours"] == pytest.approx((0.3 + 0.8) / 2)
    assert row["peer"] == pytest.approx(0.25)
    assert row["ratio"] == pytest.approx(2.2)
    assert row["name"] == "explained variance at L0 12.0, recipe, against CLT-Forge, recipe"
    assert "seed 2: 0.8000 and 0.3000" in str(row["conditions"])


def test_row_is_left_out_where_a_seed_has_nothing_as_sparse() -> None:
    """One seed of the other side that is sparser than all of ours ends the comparison."""
    points = [point("weft", 4, 0.2), point("weft", 4, 0.2, seed=2), point(PEER, 8, 0.2), point(PEER, 3, 0.3, seed=2)]
    assert list(rows(points, "conditions")) == []


def test_row_has_no_ratio_where_the_other_explains_nothing() -> None:
    """A quotient with a negative share would turn better into worse."""
    (row,) = rows([point("weft", 4, 0.2), point(PEER, 8, -0.2)], "conditions")
    assert row["ratio"] is None
    assert "densest point has L0 4.0" in str(row["conditions"])


def test_means_are_over_the_seeds_of_a_setting() -> None:
    """Two seeds of one setting become one line of the table, another setting another."""
    found = means([point("weft", 4, 0.2), point("weft", 6, 0.4, seed=2), point("weft", 9, 0.9, value=2.0)])
    assert [(mean.value, mean.l0, len(mean.points)) for mean in found] == [(1.0, 5.0, 2), (2.0, 9.0, 1)]
    assert found[0].explained_variance == pytest.approx(0.3)
    assert found[0].spread == (0.2, 0.4)


def test_points_are_found_again_by_all_that_decides_them(tmp_path: Path) -> None:
    """What was added is there after a restart; a job with another setting of anything is not."""
    path = tmp_path / "new" / "points.jsonl"
    added = Point.of(JOB, quality(7.5, 0.5), 3.0)
    PointFile(path).add(added)
    again = PointFile(path)
    assert again.find(JOB) == added
    assert again.of([JOB, JOB]) == [added, added]
    assert again.find(replace(JOB, conditions={"side": "weft", "spec": {"top_k": 9}})) is None


def test_point_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    """After a kill in the middle of a line, whole lines count and the next one begins on a line of its own."""
    path = tmp_path / "points.jsonl"
    first, second = Point.of(JOB, quality(7.5, 0.5), 3.0), Point.of(replace(JOB, conditions={}), quality(1, 0.1), 1.0)
    PointFile(path).add(first)
    with path.open("a") as file:
        file.write('{"digest": "cut')
    again = PointFile(path)
    again.add(second)
    assert PointFile(path).of([JOB, replace(JOB, conditions={})]) == [first, second]


def test_plot_has_a_front_for_each_arm() -> None:
    """The other side's is dashed, and its name says whose it is."""
    svg = pareto_plot([point("weft", 4, 0.2), point("weft", 9, 0.4, value=2.0), point(PEER, 8, 0.3)])
    assert num_dots(svg) == 3
    assert f">{PEER}, recipe</text>" in svg
    # Its line, and the legend's.
    assert svg.count("stroke-dasharray: 5") == 2
