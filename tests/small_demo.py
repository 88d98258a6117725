"""
A small demo that was gone once, with a Prometheus at its side, for all tests that look at what is left of one.

It takes a minute of both processors, so processes that run tests side by side share one: the first makes it.
"""

import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded_weft import SMALL, Embedded, demo_folder, run_demo
from page_open import page_open
from prometheus_server import prometheus_server

from weft_client.local.layout import Layout

__all__ = ["SmallDemo", "small_demo_in"]


@dataclass(frozen=True)
class SmallDemo:
    """
    What a demo with the options `SMALL` has left. Its services are stopped.

    Args:
        folder: Where it ran; tests work in copies.
        summary: What it measured.
        prometheus: Folder of the Prometheus that scraped its services.
        start_s: When they ran, as seconds since 1970.
        end_s: Until then.
    """

    folder: Path
    summary: dict[str, Any]
    prometheus: Path
    start_s: float
    end_s: float

    def copied_to(self, folder: Path) -> Embedded:
        """Copy what it has left; objects are never written in place, so the copy's bucket shares them."""
        made, run = Layout(self.folder / ".weft").root, Embedded(folder)
        shutil.copytree(made, run.layout.root, symlinks=True, ignore=shutil.ignore_patterns("bucket", "up.lock"))
        shutil.copytree(made / "bucket", run.layout.root / "bucket", copy_function=os.link)
        return run


def small_demo_in(folder: Path, models_dir: Path) -> SmallDemo:
    """Run the demo in a folder, or read what is left of the one that another process has run there."""
    folder.mkdir(exist_ok=True)
    made = folder / "made.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            start_s, end_s, summary = _run(folder, models_dir)
            made.write_text(json.dumps({"start_s": start_s, "end_s": end_s, "summary": summary}))
    return SmallDemo(folder / "demo", prometheus=folder / "prometheus", **json.loads(made.read_text()))


def _run(folder: Path, models_dir: Path) -> tuple[float, float, dict[str, Any]]:
    run = demo_folder(folder / "demo", models_dir)
    (folder / "prometheus").mkdir()
    started = run.weft("up")
    assert started.returncode == 0, started.stderr
    try:
        endpoints = run.endpoints
        ports = {service: endpoint.metrics_port for service, endpoint in endpoints.services.items()}
        start_s = time.time()
        with prometheus_server(folder / "prometheus", ports):
            with page_open(f"http://{endpoints['console'].target}"):
                summary = run_demo(run, *SMALL)
            # The last figures are scraped, then the rules are evaluated on them.
            time.sleep(5)
            end_s = time.time()
    finally:
        stopped = run.weft("down")
        assert stopped.returncode == 0, stopped.stderr
    return start_s, end_s, summary
