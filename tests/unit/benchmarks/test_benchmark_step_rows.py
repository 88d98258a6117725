"""Which rows a comparison of steps has, where peers fit into memory, fit in part, or end early."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_step
import pytest
from footprints import clt_forge_bytes, dense_bytes
from serving import Answer, Shape
from sides import Given, Round, Taken

SHAPE = Shape(12, 768, 2048, 4096, 16)
GIB = 1 << 30
SECONDS = {"TopK": 2.0, "JumpReLU": 4.0, "floor": 1.0, "dense torch": 20.0, "CLT-Forge": 40.0}
PEAK_GIB = {"TopK": 2, "JumpReLU": 3, "floor": 1, "dense torch": 6, "CLT-Forge": 12}


class Turns:
    """Takes the place of the processes."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.given: dict[str, Given] = {}
        self.together = False

    def __call__(
        self, sides: Sequence[Given], rounds: int, environment: Mapping[str, str], *, together: bool, title: str
    ) -> dict[str, Taken]:
        self.given, self.together = {given.name: given for given in sides}, together
        found = {}
        for given in sides:
            answer = Answer(SECONDS[given.name], 1.0, 16.0, PEAK_GIB[given.name] * GIB, {})
            failed = given.name == self.failing
            found[given.name] = Taken(given, [] if failed else [Round([answer], 0.05)] * rounds, "it ended" * failed)
        return found


def rows_of(
    monkeypatch: pytest.MonkeyPatch, turns: Turns, memory_gib: float, forge: bool = True
) -> list[dict[str, Any]]:
    """Compare with as much memory, margin included."""
    monkeypatch.setattr(bench_step, "take_turns", turns)
    options = argparse.Namespace(
        memory_gib=memory_gib / 0.85, clt_forge=Path("code") if forge else None, clt_forge_python="python", threads=1,
        rounds=3,
    )  # fmt: skip
    return bench_step.Comparison(SHAPE, options).run()


def test_step_rows_have_ratios_above_one_where_weft_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is ours over theirs, memory and the floor theirs over ours."""
    turns = Turns()
    rows = {row["name"].removesuffix(f", {SHAPE}"): row for row in rows_of(monkeypatch, turns, 1000.0)}
    assert turns.together
    assert {name: row["ratio"] for name, row in rows.items()} == pytest.approx(
        {
            "training step, TopK, against dense torch": 10,
            "peak memory of training, TopK, against dense torch": 3,
            "training step, TopK, against CLT-Forge": 20,
            "peak memory of training, TopK, against CLT-Forge": 6,
            "training step, JumpReLU, against CLT-Forge": 10,
            "peak memory of training, JumpReLU, against CLT-Forge": 4,
            "training step, TopK, against its floor": 0.5,
            "training step, JumpReLU, against its floor": 0.25,
        }
    )
    assert turns.given["JumpReLU"].shape.activation == turns.given["CLT-Forge"].shape.activation == "jump-relu"
    assert all("processes side by side" in str(row["conditions"]) for row in rows.values())


def test_step_rows_tell_the_passes_of_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that fits only in passes has as few as fit; only its own rows say so, and sides are started anew."""
    turns = Turns()
    room = clt_forge_bytes(SHAPE) / GIB - 0.1
    rows = rows_of(monkeypatch, turns, room)
    assert turns.given["CLT-Forge"].shape.passes == 2
    assert turns.given["dense torch"].shape.passes == turns.given["TopK"].shape.passes == 1
    assert not turns.together
    for row in rows:
        told = "CLT-Forge in 2 passes whose gradients add up, as one needs about" in str(row["conditions"])
        assert told == ("CLT-Forge" in str(row["name"]))
        assert "each started anew in every round" in str(row["conditions"])


def test_peer_without_room_has_rows_without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported, not left out in silence."""
    turns = Turns()
    rows = rows_of(monkeypatch, turns, 0.1, forge=False)
    assert list(turns.given) == ["TopK", "floor"]
    assert [(row["peer"] is None, row["ratio"] is None) for row in rows] == [(True, True), (True, True), (False, False)]
    assert f"dense torch left out: it needs about {dense_bytes(SHAPE) / GIB:.1f} GiB" in str(rows[0]["conditions"])


def test_peer_that_ends_early_has_rows_without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' rows have theirs."""
    rows = rows_of(monkeypatch, Turns("CLT-Forge"), 1000.0)
    missing = [str(row["name"]) for row in rows if row["peer"] is None]
    assert len(missing) == 4
    assert all("against CLT-Forge" in name for name in missing)
    assert "CLT-Forge has no figures: it ended" in str(rows[2]["conditions"])


def test_comparison_without_weft_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weft's own side ends early there is nothing to compare."""
    with pytest.raises(SystemExit, match="TopK has no figures: it ended"):
        rows_of(monkeypatch, Turns("TopK"), 1000.0)
