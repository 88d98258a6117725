"""The demo, whole: what it measures, what it reuses, what it leaves behind, and every service killed on the way."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from embedded_weft import SMALL, WEFT, Embedded, clean_environment, demo_folder, run_demo
from small_demo import SmallDemo

pytestmark = [pytest.mark.e2e, pytest.mark.real, pytest.mark.timeout(1500)]

SUMMARY_FIELDS = {
    "model",
    "num_layers",
    "tokens_harvested",
    "tokens_held_out",
    "bytes_per_token",
    "bits_per_value",
    "cache_fvu_max",
    "harvest_tokens_per_s",
    "train_tokens",
    "train_tokens_per_s",
    "world_size",
    "explained_variance",
    "l0_per_layer",
    "dead_share",
    "graphs",
    "console_url",
    "seconds",
    "peak_rss_bytes",
}
GRAPH_FIELDS = {
    "prompt",
    "nodes",
    "edges",
    "replacement_score",
    "completeness_score",
    "seconds",
    "conservation_error",
    "intervention_predicted",
    "intervention_measured",
    "json",
}


def _left_running(run: Embedded) -> list[str]:
    """Name every process that works in this run's folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            where = " ".join([*(process.info["cmdline"] or []), *process.environ().values()])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(run.folder) in where and process.pid != os.getpid():
            found.append(" ".join(process.info["cmdline"] or [])[:200])
    return found


def test_demo_explains_a_real_model(tmp_path: Path, models_dir: Path) -> None:
    """The whole demo reaches its figures, each measured in the run."""
    run = demo_folder(tmp_path, models_dir)
    summary = run_demo(run)
    assert summary.keys() >= SUMMARY_FIELDS
    assert summary["tokens_harvested"] + summary["tokens_skipped"] >= 40_000
    assert summary["tokens_harvested"] >= 40_000
    assert summary["tokens_held_out"] > 2_000
    assert summary["num_layers"] == 30
    assert summary["world_size"] == 2
    assert summary["cache_fvu_max"] <= 1.02e-3
    assert 1 < summary["bits_per_value"] < 8
    assert summary["explained_variance"] >= 0.45
    assert len(summary["l0_per_layer"]) == 30
    assert summary["peak_rss_bytes"] < 8 << 30
    assert len(summary["graphs"]) == 3
    for graph in summary["graphs"]:
        assert graph.keys() >= GRAPH_FIELDS
        assert graph["conservation_error"] < 1e-4
        assert 0 <= graph["replacement_score"] <= 1
        assert 0 <= graph["completeness_score"] <= 1
        assert graph["intervention_measured"] == pytest.approx(graph["intervention_predicted"], rel=0.02, abs=1e-4)
        assert json.loads(Path(graph["json"]).read_text())["nodes"]
    assert summary["graphs"][0]["target"] == " Paris"
    assert _left_running(run) == []


def _wait_for(what: Callable[[], bool], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _assassin(run: Embedded, num_shards: int, killed: list[str]) -> None:
    """Kill each service once, at a moment when it has work; so many shards are there already."""
    bucket, log = run.layout.root / "bucket", run.layout.log_path("activations")

    def there(pattern: str, count: int = 1) -> Callable[[], bool]:
        return lambda: len(list(bucket.glob(pattern))) >= count

    def harvesting() -> bool:
        return log.read_text().count('"model loaded"') == 2

    moments: list[tuple[str, Callable[[], bool]]] = [
        ("cache", run.layout.endpoints_path.exists),
        ("activations", harvesting),
        ("console", there("datasets/*/shards/*.weft", num_shards + 1)),
        ("trainer", there("runs/*/attempts/1/recent.json")),
        ("attribution", there("graphs/*/request.json")),
    ]
    for service, moment in moments:
        _wait_for(moment)
        _wait_for(partial(_killed, run, service))
        killed.append(service)


def _killed(run: Embedded, service: str) -> bool:
    """Kill a service's process, where there is one: endpoints are written before the first of them starts."""
    try:
        run.process(service).kill()
    except (ValueError, psutil.NoSuchProcess):
        return False
    return True


def _interrupted(run: Embedded) -> set[str]:
    """Press Ctrl-C in the middle of the harvest; return the shards that are kept."""
    process = subprocess.Popen(
        # As in a terminal: what starts the tests may have SIGINT ignored, and that is inherited.
        ["env", "--default-signal=INT", WEFT, "demo", "--exit", *SMALL],
        cwd=run.folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    bucket = run.layout.root / "bucket"
    _wait_for(lambda: bool(list(bucket.glob("datasets/*/shards/*.weft"))))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert b"kept" in output
    assert _left_running(run) == []
    return {path.name for path in bucket.glob("datasets/*/shards/*.weft")}


def test_demo_survives_an_interrupt_and_the_death_of_every_service(
    tmp_path: Path, models_dir: Path, small_demo: SmallDemo
) -> None:
    """
    Ctrl-C in the middle of the harvest leaves no process. The next run keeps what was committed; in it each service is
    killed in the middle of its work, and it ends with the same tokens and figures as an undisturbed one.
    """
    undisturbed = small_demo.summary
    run = demo_folder(tmp_path, models_dir)
    committed = _interrupted(run)
    assert committed
    killed: list[str] = []
    thread = threading.Thread(target=_assassin, args=(run, len(committed), killed), daemon=True)
    thread.start()
    struck = run_demo(run, *SMALL)
    thread.join(timeout=10)
    assert killed == ["cache", "activations", "console", "trainer", "attribution"]
    assert committed <= {path.name for path in (run.layout.root / "bucket").glob("datasets/*/shards/*.weft")}
    for figure in ("tokens_harvested", "tokens_held_out", "tokens_skipped", "train_tokens"):
        assert struck[figure] == undisturbed[figure], figure
    assert struck["explained_variance"] == pytest.approx(undisturbed["explained_variance"], rel=1e-4)
    assert struck["graphs"][0]["nodes"] == pytest.approx(undisturbed["graphs"][0]["nodes"], rel=0.01)
    assert _left_running(run) == []


def test_demo_reuses_what_is_there(small_demo: SmallDemo, tmp_path: Path) -> None:
    """A second run does nothing twice, and says so."""
    run, first = small_demo.copied_to(tmp_path), small_demo.summary
    again = run_demo(run, *SMALL)
    assert again["reused"] == ["dataset", "run", "transcoder"]
    assert [graph["reused"] for graph in again["graphs"]] == [True]
    assert again["tokens_harvested"] == first["tokens_harvested"]
    assert again["explained_variance"] == first["explained_variance"]
    assert _left_running(run) == []
