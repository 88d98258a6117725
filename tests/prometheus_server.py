"""A real Prometheus that scrapes processes and evaluates the chart's rules."""

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dashboard_queries import RULES


def prometheus_tool(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; without it the test fails and says what to do."""
    found = shutil.which(name)
    assert found, f"{name} is missing: run `make prometheus`, or install the package `prometheus` of Debian or Ubuntu"
    return found


@dataclass(frozen=True)
class PrometheusServer:
    """A Prometheus that answers."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the HTTP API and return its data."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def values(self, expr: str, start_s: float, end_s: float | None = None) -> list[float]:
        """Evaluate at every second since `start_s`, until `end_s` or now, and return all values that are numbers."""
        end_s = end_s or time.time()
        found = self.get("query_range", query=expr, start=f"{start_s:.0f}", end=f"{end_s:.0f}", step="1")
        values = [float(value) for series in found["result"] for _, value in series["values"]]
        return [value for value in values if math.isfinite(value)]

    def rule_groups(self) -> list[dict[str, Any]]:
        """Return the groups of rules once each rule was evaluated; until then nobody knows its health."""
        until = time.monotonic() + 60
        while True:
            groups: list[dict[str, Any]] = self.get("rules")["groups"]
            waiting = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "unknown"]
            if groups and not waiting:
                return groups
            assert time.monotonic() < until, f"Prometheus did not evaluate these rules in a minute: {waiting}"
            time.sleep(0.2)

    def label_values(self, label: str, selector: str, start_s: float) -> list[str]:
        """List the values that a label had since `start_s`."""
        found = self.get(
            f"label/{label}/values", **{"match[]": selector}, start=f"{start_s:.0f}", end=f"{time.time():.0f}"
        )
        return [str(value) for value in found]


@contextmanager
def prometheus_server(folder: Path, targets: Mapping[str, int]) -> Iterator[PrometheusServer]:
    """Scrape each job's metrics port on loopback every second, for as long as the context lasts."""
    jobs = [
        {
            "job_name": f"weft-{component}",
            "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "e2e"}}],
        }
        for component, port in targets.items()
    ]
    with scraping(folder, jobs) as found:
        yield found


@contextmanager
def scraping(folder: Path, jobs: Sequence[Mapping[str, Any]]) -> Iterator[PrometheusServer]:
    """Scrape jobs, described as in Prometheus' own configuration, for as long as the context lasts."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [dict(job) for job in jobs],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen(
        [
            prometheus_tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={address}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < until, f"Prometheus is not ready; its log is {folder / 'prometheus.log'}"
            try:
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield PrometheusServer(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()
