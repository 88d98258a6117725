"""
The chart's ServiceMonitors and PodMonitors, followed by a Prometheus without an operator.

Targets come from the cluster's API, by the labels and named ports that the monitors select, and get the labels that the
Prometheus operator gives them. They go to Prometheus in a file, since Debian's is built without Kubernetes' discovery.
Source: prometheus-operator, `pkg/prometheus/promcfg.go`, and the fields in its API reference. Deviations: only the
fields that the chart uses; any other fails here, so that none is passed over.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from chart_rig import CHART
from cluster_rig.kubectl import Kubectl
from cluster_rig.release import Release, helm

__all__ = ["followed_monitors", "job_of_targets"]

Json = dict[str, Any]
_API = "monitoring.coreos.com/v1"
_EVERY_S = 2.0


def job_of_targets(path: Path) -> Json:
    """Return the scrape job that reads its targets from a file."""
    return {"job_name": "monitors", "file_sd_configs": [{"files": [str(path)]}]}


@contextmanager
def followed_monitors(release: Release, path: Path) -> Iterator[None]:
    """Keep a file of targets as the release's monitors select them; after the context it has none."""
    monitors = _rendered(release)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(_EVERY_S):
            # One call of kubectl may fail on a busy machine: the targets stay as they are until the next.
            with suppress(AssertionError, subprocess.TimeoutExpired):
                _write(path, _targets(monitors, release.kubectl))

    _write(path, _targets(monitors, release.kubectl))
    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _write(path, [])


def _rendered(release: Release) -> list[Json]:
    """Render the release's monitors, which a cluster without the operator does not keep."""
    values = release.authority.parent / "values.yaml"
    rendered = helm(
        "template", release.name, str(CHART), "--namespace", release.kubectl.namespace, "--values", str(values),
        "--api-versions", _API,
    )  # fmt: skip
    documents = [document for document in yaml.safe_load_all(rendered.stdout) if document]
    found = [each for each in documents if each["kind"] in ("ServiceMonitor", "PodMonitor")]
    for monitor in found:
        spec = monitor["spec"]
        listed = "endpoints" if monitor["kind"] == "ServiceMonitor" else "podMetricsEndpoints"
        assert set(spec) == {"selector", "namespaceSelector", listed}, f"{monitor['metadata']['name']}: {sorted(spec)}"
        assert set(spec["selector"]) == {"matchLabels"}
        assert spec["namespaceSelector"] == {"matchNames": [release.kubectl.namespace]}
        for endpoint in spec[listed]:
            assert set(endpoint) <= {"port", "path", "interval", "relabelings"}, sorted(endpoint)
            for rule in endpoint.get("relabelings", []):
                assert set(rule) == {"targetLabel", "replacement"}, rule
    return found


def _targets(monitors: Sequence[Json], kubectl: Kubectl) -> list[Json]:
    """Return the targets of monitors as `file_sd_configs` reads them."""
    items = kubectl.json("services,endpointslices,pods")["items"]
    kinds = {kind: [item for item in items if item["kind"] == kind] for kind in ("Service", "EndpointSlice", "Pod")}
    found = []
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"]
        if monitor["kind"] == "ServiceMonitor":
            services = [item for item in kinds["Service"] if _has(item, wanted)]
            for endpoint in monitor["spec"]["endpoints"]:
                found += [
                    _target(endpoint, address, port, {"job": name, "service": name, "pod": pod})
                    for name in (item["metadata"]["name"] for item in services)
                    for address, port, pod in _of_service(kinds["EndpointSlice"], name, endpoint["port"])
                ]
            continue
        name = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            found += [
                _target(endpoint, address, port, {"job": name, "pod": pod})
                for item in kinds["Pod"]
                if _has(item, wanted)
                for address, port, pod in _of_pod(item, endpoint["port"])
            ]
    for target in found:
        target["labels"]["namespace"] = kubectl.namespace
    return found


def _target(endpoint: Json, address: str, port: int, labels: Mapping[str, str]) -> Json:
    renamed = {rule["targetLabel"]: rule["replacement"] for rule in endpoint.get("relabelings", [])}
    own = {"__metrics_path__": endpoint["path"], "endpoint": endpoint["port"]}
    return {"targets": [f"{address}:{port}"], "labels": {**labels, **own, **renamed}}


def _of_service(slices: Sequence[Json], service: str, port: str) -> Iterator[tuple[str, int, str]]:
    for item in slices:
        if not _has(item, {"kubernetes.io/service-name": service}):
            continue
        for number in (each["port"] for each in item.get("ports") or () if each["name"] == port):
            for endpoint in item.get("endpoints") or ():
                for address in endpoint["addresses"]:
                    yield address, number, endpoint["targetRef"]["name"]


def _of_pod(pod: Json, port: str) -> Iterator[tuple[str, int, str]]:
    address = pod["status"].get("podIP")
    if address and pod["status"]["phase"] not in ("Failed", "Succeeded"):
        for container in pod["spec"]["containers"]:
            for number in (each["containerPort"] for each in container.get("ports", ()) if each.get("name") == port):
                yield address, number, pod["metadata"]["name"]


def _has(item: Json, labels: Mapping[str, str]) -> bool:
    found: Mapping[str, str] = item["metadata"].get("labels", {})
    return labels.items() <= found.items()


def _write(path: Path, targets: Sequence[Json]) -> None:
    """All at once, as Prometheus may read at any time."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(targets))
    beside.rename(path)
