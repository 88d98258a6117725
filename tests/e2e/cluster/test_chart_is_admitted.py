"""The API server itself takes what the chart renders, in a namespace that enforces restricted Pod Security."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from chart_rig import CHART, CI_FILES, Document, helm

pytestmark = pytest.mark.cluster

# What a cluster knows only where somebody put it there: Prometheus's operator, classes of pods.
LEFT_OUT = "monitoring.install=auto,pod.priorityClassName=,pod.runtimeClassName="
LEVEL = "pod-security.kubernetes.io"


def kubectl(*arguments: str, given: object = None) -> "subprocess.CompletedProcess[str]":
    """Run kubectl against the cluster of KUBECONFIG."""
    program = shutil.which("kubectl")
    if program is None or not os.environ.get("KUBECONFIG"):
        pytest.fail("no cluster: set KUBECONFIG and put kubectl on the PATH, or run `make cluster-test`.")
    text = None if given is None else json.dumps(given)
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace of this module's own, restricted; it is deleted in the end."""
    name = f"weft-chart-{secrets.token_hex(4)}"
    labels = {f"{LEVEL}/{mode}": "restricted" for mode in ("enforce", "warn")}
    made = kubectl(
        "create",
        "-f",
        "-",
        given={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
    )
    assert made.returncode == 0, made.stderr
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def make_secrets(namespace: str, values: Document) -> None:
    """Make the Secrets and the ConfigMap that the values name, with the keys that they name."""
    defaults: Document = yaml.safe_load((CHART / "values.yaml").read_text())
    for part in ("auth", "bucket", "tls"):
        name = values[part].get("existingSecret")
        if not name:
            continue
        keys = {**defaults[part]["keys"], **values[part].get("keys", {})}.values()
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": dict.fromkeys(keys, "value"),
        }
        applied = kubectl("apply", "-f", "-", given=secret)
        assert applied.returncode == 0, applied.stderr
    if authority := values["bucket"].get("ca", {}).get("existingConfigMap"):
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": authority, "namespace": namespace},
            "data": {{**defaults["bucket"]["ca"], **values["bucket"]["ca"]}["key"]: "value"},
        }
        applied = kubectl("apply", "-f", "-", given=config)
        assert applied.returncode == 0, applied.stderr


def rendered(namespace: str, values: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [helm(), "template", "weft", CHART, "-n", namespace, "-f", values, "--dry-run=server", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("values", CI_FILES, ids=lambda path: path.stem)
def test_api_server_takes_the_chart(values: Path, namespace: str) -> None:
    """Each object passes the server's validation and admission, and no pod template would violate the level."""
    make_secrets(namespace, yaml.safe_load(values.read_text()))
    answer = rendered(namespace, values, "--set", LEFT_OUT)
    assert answer.returncode == 0, answer.stderr
    documents = [each for each in yaml.safe_load_all(answer.stdout) if each]
    assert {each["kind"] for each in documents} >= {"Deployment", "Pod", "Service", "ConfigMap"}
    items = {"apiVersion": "v1", "kind": "List", "items": documents}
    applied = kubectl("apply", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", "-", given=items)
    assert applied.returncode == 0, applied.stderr
    assert "PodSecurity" not in applied.stderr
    assert applied.stdout.count("(server dry run)") == len(documents)


def test_level_is_enforced_here(namespace: str) -> None:
    """A pod that breaks the level is refused, so that the test above shows something."""
    container = {"name": "a", "image": "localhost/a:1", "securityContext": {"privileged": True}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [container]}}
    refused = kubectl("apply", "--dry-run=server", "-n", namespace, "-f", "-", given=pod)
    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted' in refused.stderr


def test_missing_secret_ends_the_install(namespace: str) -> None:
    """On a real cluster too, a Secret that nobody made is named before anything is installed."""
    make_secrets(namespace, yaml.safe_load((CHART / "ci" / "minimal-values.yaml").read_text()))
    assert kubectl("delete", "secret", "weft-bucket", "-n", namespace).returncode == 0
    answer = rendered(namespace, CHART / "ci" / "minimal-values.yaml")
    assert answer.returncode != 0
    assert f"there is no such Secret in namespace {namespace}" in answer.stderr
