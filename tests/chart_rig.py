"""
The chart as helm renders it, for tests: documents as parsed YAML, refusals as the message a person reads.

helm is taken from the PATH where it is version 4, else from where `make helm` puts it; where it is in neither place the
tests fail and say so.
"""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = [
    "CHART",
    "CI_FILES",
    "COMPONENTS",
    "MINIMAL",
    "ROOT",
    "Document",
    "find",
    "helm",
    "kinds",
    "main_environment",
    "merged",
    "pod_specs",
    "refusal",
    "render",
]

Document = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "weft"
CI_FILES = sorted((CHART / "ci").glob("*.yaml"))
COMPONENTS = ("activations", "cache", "trainer", "attribution", "console")
MINIMAL: Document = yaml.safe_load((CHART / "ci" / "minimal-values.yaml").read_text())
NAMESPACE = "interpretability"
PROMETHEUS = "monitoring.coreos.com/v1"


@functools.cache
def helm() -> str:
    """Find helm 4."""
    script = ROOT / "scripts" / "helm.py"
    built = subprocess.check_output([sys.executable, script, "--path"], text=True).strip()
    for candidate in (shutil.which("helm"), built):
        if candidate and Path(candidate).is_file():
            answer = subprocess.run([candidate, "version", "--short"], capture_output=True, text=True, check=False)
            if answer.stdout.startswith("v4."):
                return candidate
    pytest.fail(f"no helm 4 on the PATH or at {built}: run `make helm`, which puts it there once (PyPI needed).")


def run(*arguments: str | Path, values: Mapping[str, Any] | Path) -> "subprocess.CompletedProcess[str]":
    """Run helm with values from a file or, written as JSON, from a dictionary."""
    given = values if isinstance(values, Path) else "-"
    text = None if isinstance(values, Path) else json.dumps(values)
    command = [helm(), *arguments, "--values", given]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)


def merged(changes: Mapping[str, Any], base: Mapping[str, Any] = MINIMAL) -> Document:
    """Change values, key by key and as deep as the changes go."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(value, old) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def render(
    values: Mapping[str, Any] | Path = MINIMAL, *, release: str = "weft", apis: tuple[str, ...] = (PROMETHEUS,)
) -> list[Document]:
    """Render the chart; the test fails with helm's message where it does not render."""
    key = str(values) if isinstance(values, Path) else json.dumps(values, sort_keys=True)
    return json.loads(_rendered(key, release, apis))  # type: ignore[no-any-return]


@functools.cache
def _rendered(key: str, release: str, apis: tuple[str, ...]) -> str:
    values = Path(key) if key.startswith("/") else json.loads(key)
    flags = [f"--api-versions={api}" for api in apis]
    answer = run("template", release, CHART, "--namespace", NAMESPACE, *flags, values=values)
    if answer.returncode != 0:
        pytest.fail(f"the chart does not render: {answer.stderr}")
    return json.dumps([document for document in yaml.safe_load_all(answer.stdout) if document])


def refusal(changes: Mapping[str, Any], base: Mapping[str, Any] = MINIMAL) -> str:
    """Return what helm says about values that it must refuse."""
    answer = run("template", "weft", CHART, "--namespace", NAMESPACE, values=merged(changes, base))
    assert answer.returncode != 0, "helm took these values"
    return answer.stderr


def kinds(documents: list[Document], kind: str) -> dict[str, Document]:
    """Give the objects of a kind by name."""
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def find(documents: list[Document], kind: str, name: str) -> Document:
    """Give one object; the test fails where it is missing."""
    found = kinds(documents, kind)
    assert name in found, f"there is no {kind} {name}, only {sorted(found)}"
    return found[name]


def pod_specs(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Walk the pod specs of all workloads, with the component that each belongs to."""
    for each in documents:
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        if each["kind"] == "Pod":
            yield component, each["spec"]
        elif each["kind"] == "Deployment":
            yield component, each["spec"]["template"]["spec"]


def main_environment(documents: list[Document], deployment: str) -> dict[str, str]:
    """Give the variables that a service sees; those of Secrets are `from-a-secret`, of the pod `from-the-pod`."""
    (container,) = find(documents, "Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    (source,) = container["envFrom"]
    environment = dict(find(documents, "ConfigMap", source["configMapRef"]["name"])["data"])
    for entry in container["env"]:
        origin = "from-a-secret" if "secretKeyRef" in entry.get("valueFrom", {}) else "from-the-pod"
        environment[entry["name"]] = entry.get("value", origin)
    return environment
