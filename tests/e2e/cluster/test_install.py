"""What `helm install` gives: pods that serve, rights that end where they should, and wrong values refused in words."""

import json
from pathlib import Path

import pytest
import yaml
from chart_rig import CHART, merged
from cluster_rig.release import SERVICES, Release, helm

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# What the controller's account must not do, in its own namespace and elsewhere.
FORBIDDEN = (
    ("get", "secrets"),
    ("list", "secrets"),
    ("create", "secrets"),
    ("get", "configmaps"),
    ("create", "deployments.apps"),
    ("create", "pods"),
    ("create", "pods", "--subresource=exec"),
    ("get", "nodes"),
    ("list", "pods", "--namespace=kube-system"),
    ("create", "jobs.batch", "--namespace=default"),
    ("create", "roles.rbac.authorization.k8s.io"),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
)
ALLOWED = (
    ("create", "jobs.batch"),
    ("list", "pods"),
    ("patch", "pods"),
    ("get", "pods", "--subresource=log"),
    ("list", "events"),
)


def test_all_pods_serve(release: Release) -> None:
    """Every service has a ready pod, in a namespace that enforces the restricted level; the time is printed."""
    print(f"ready {release.ready_s:.0f} s after helm install")  # noqa: T201  shown with -s
    for component in SERVICES:
        pods = release.pods(component)
        assert pods, component
        for pod in pods:
            assert all(container["ready"] for container in pod["status"]["containerStatuses"]), component


def test_helm_test_is_green(release: Release) -> None:
    """`helm test` asks every service for its health and for one answer, with TLS and tokens."""
    result = helm("test", release.name, "--namespace", release.kubectl.namespace, "--timeout", "5m", check=False)
    assert result.returncode == 0, result.stdout + result.stderr + release.kubectl("get", "pods", "--output=wide")


def test_controller_can_do_no_more_than_it_needs(release: Release) -> None:
    """Asked of the API server itself, for the account of the trainer's pod."""
    account = release.pods("trainer")[0]["spec"]["serviceAccountName"]
    assert [what for what in FORBIDDEN if release.kubectl.can(account, *what)] == []
    assert [what for what in ALLOWED if not release.kubectl.can(account, *what)] == []


def test_other_services_have_no_credentials_of_the_cluster(release: Release) -> None:
    """No token of an account is mounted but the controller's."""
    for component in SERVICES:
        for pod in release.pods(component):
            mounted = any("kube-api-access" in volume["name"] for volume in pod["spec"]["volumes"])
            assert mounted == (component == "trainer"), component


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache": {"replica": 2}}, "replica"),
        ({"auth": {"existingSecret": "nobody-made-this"}}, "nobody-made-this"),
        ({"models": {"bucketPrefix": "models/", "persistentVolumeClaim": "also"}}, "exclude each other"),
        ({"bucket": {"url": "http://no-scheme"}}, "/bucket/url"),
    ],
)
def test_wrong_values_fail_at_install(release: Release, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """A typo, a missing Secret, two settings that exclude each other: a sentence, and nothing is installed."""
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(merged(changes, release.values)))
    namespace = release.kubectl.namespace
    result = helm("install", "wrong", str(CHART), "-n", namespace, "-f", str(path), check=False)
    assert result.returncode != 0
    assert words in result.stderr, result.stderr
    found = json.loads(helm("list", "--namespace", namespace, "--output", "json").stdout)
    assert "wrong" not in {each["name"] for each in found if each["status"] == "deployed"}
