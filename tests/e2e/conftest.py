"""Whole services as processes, started by `weft up` as a user would."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium_browser import chromium
from embedded_weft import Embedded
from small_demo import SmallDemo, small_demo_in

__all__ = ["chromium"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Callable[[Path], None]], Embedded]]:
    """Start embedded runs over prepared folders; all of them are stopped in the end."""
    started: list[Embedded] = []

    def make(prepare: Callable[[Path], None]) -> Embedded:
        run = Embedded(tmp_path_factory.mktemp("weft"))
        prepare(run.layout.root)
        result = run.weft("up")
        assert result.returncode == 0, result.stderr
        started.append(run)
        return run

    yield make
    for run in started:
        result = run.weft("down")
        assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Return the folder with the real model; without it the test fails and says what to do."""
    folder = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    assert (folder / "smollm2-135m-instruct" / "config.json").is_file(), "the real model is missing: run `make model`"
    return folder


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> SmallDemo:
    """A small demo, run once; processes that run tests side by side have one folder above their own."""
    own = tmp_path_factory.getbasetemp()
    return small_demo_in((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "small-demo", models_dir)
