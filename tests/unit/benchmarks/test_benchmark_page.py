"""How the figures of the benchmarks become tables and plots."""

import doctest
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import plots
import pytest
import regions
import write_page

SVG = "{http://www.w3.org/2000/svg}"
CONDITIONS = "L 2, d 8, F 16, T 1024, L0 3.0, float32, CPU (some, 2 cores), others took at most {load} cores"


def row(name: str, ours: float, peer: float | None, ratio: float | None, **more: Any) -> dict[str, Any]:
    """A row as the benchmarks write it."""
    load = more.pop("load", "0.01")
    return {
        "name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": "tokens/s",
        "conditions": CONDITIONS.format(load=load), **more,
    }  # fmt: skip


@pytest.mark.parametrize("module", [plots, regions, write_page])
def test_examples_of_the_page_hold(module: Any) -> None:
    """The benchmarks are no package of the distribution, so nothing else runs their doctests."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_conditions_say_once_what_all_rows_share() -> None:
    """What is in the name is not said again, and of the load of others the largest counts."""
    rows = [row("training step, T 1024", 1, 1, 1), row("memory, T 1024", 1, 1, 1, load="0.25")]
    rows[1]["conditions"] = rows[1]["conditions"].replace("L0 3.0", "L0 4.0, in 2 passes")
    shared, own = write_page.conditions(rows)
    assert shared == "L 2, d 8, F 16, T 1024, float32, CPU (some, 2 cores), others took at most 0.25 cores"
    assert own == ["L0 3.0", "L0 4.0, in 2 passes"]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("training step, TopK, against CLT-Forge, L 12, d 768, F 2048, T 1024", 8),
        ("training step, TopK, against CLT-Forge, L 12, d 768, F 2048, T 4096", 15),
        ("peak memory of training, TopK, against CLT-Forge, L 12, d 768, F 2048, T 4096", 3),
        ("training step, TopK, against its floor, L 12, d 768, F 2048, T 4096", 0.5),
    ],
)
def test_ratio_that_was_wanted_is_bold(name: str, least: float) -> None:
    """A ratio at what is wanted is marked; one below is not, nor one that is missing."""
    drawn: list[str] = []

    def image(_: str, text: str) -> str:
        drawn.append(text)
        return "images/plot.svg"

    rows = [row(name, 1, 1, least), row(name, 1, 1, least * 0.99), row(name, 1, None, None)]
    lines = write_page.step_region(rows, image)
    cells = [line.split(" | ")[4] for line in lines[2:5]]
    assert cells == [f"**{least:g}**", f"{least * 0.99:.3g}", "–"]
    ElementTree.fromstring(drawn[0])


def test_scaling_has_a_table_for_each_sweep_and_plots_without_ranks() -> None:
    """The figures of a point stand in one line; three plots for each sweep but that of ranks."""
    rows = [
        row(f"{what}, {over} {at}", at * factor, 1, 2.0, over=over, at=at)
        for over, ats in (("F", (16, 32)), ("ranks, F 16", (1, 2)))
        for at in ats
        for what, factor in (("training step", 1), ("peak memory", 10), ("decode", 100))
    ]
    drawn: list[str] = []

    def image(_: str, text: str) -> str:
        drawn.append(text)
        return "images/plot.svg"

    lines = write_page.scaling_region(rows, image)
    assert "| 32 | 32 | 2 | 320 | 2 | 3,200 | 2 |" in lines
    assert "Over ranks, F 16:" in lines
    titles = [text.text for text in ElementTree.fromstring(drawn[0]).iter(f"{SVG}text")]
    assert all(titles.count(title) == 1 for title in ("tokens/s", "peak memory, GiB", "decode, µs a token"))


def test_figures_that_are_missing_leave_their_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of one benchmark alone does not wipe out what others have measured."""
    regions = "\n".join(
        f"<!-- begin figures: {each} -->\n{each}\n<!-- end figures: {each} -->" for each in write_page.REGIONS
    )
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(regions)
    work = dict.fromkeys(("flop", "memory_bytes", "cache_bytes"), 1e9)
    shares = {f"share_of_{what}": 0.25 for what in ("product", "copy", "cache")}
    rows = [row("decode, L 2", 1.0, 0.25, 0.25, part="decode", why="it must", **work, **shares)]
    (tmp_path / "roofline.json").write_text(json.dumps(rows))
    images = tmp_path / "docs" / "images"
    arguments = ["", "--figures", str(tmp_path), "--page", str(page), "--images", str(images)]
    monkeypatch.setattr("sys.argv", arguments)
    write_page.main()
    text = page.read_text()
    assert "begin figures: step -->\nstep\n" in text
    assert "begin figures: scaling -->\nscaling\n" in text
    assert "| decode | 1,000 | 1 | 1 | 1 | 25% | 25% | 25% |" in text
    assert "- Under half, decode: it must." in text
    assert "![Shares of the roof](images/bench-roofline.svg)" in text
    assert (images / "bench-roofline.svg").is_file()
    assert "step: left as it is" in capsys.readouterr().out
