"""All values files of ci/: linted, rendered, and what comes out is Kubernetes' own, field by field."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from chart_rig import CHART, CI_FILES, COMPONENTS, MINIMAL, ROOT, Document, find, kinds, merged, render, run

pytestmark = pytest.mark.packaging

OLDEST = "1.30"
RECOMMENDED = {
    "app.kubernetes.io/name": "weft",
    "app.kubernetes.io/instance": "weft",
    "app.kubernetes.io/managed-by": "Helm",
    "app.kubernetes.io/part-of": "weft",
}
VERSIONS = (OLDEST, kubernetes_validate.latest_version())
ci_file = pytest.mark.parametrize("values", CI_FILES, ids=lambda path: path.stem)


def meta() -> Document:
    return yaml.safe_load((CHART / "Chart.yaml").read_text())  # type: ignore[no-any-return]


@ci_file
def test_lint_finds_nothing(values: Path) -> None:
    """`helm lint --strict` has no error and no warning."""
    answer = run("lint", CHART, "--strict", values=values)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "0 chart(s) failed" in answer.stdout
    assert "[WARNING]" not in answer.stdout


@pytest.mark.parametrize("version", VERSIONS)
@ci_file
def test_every_object_is_valid_for_kubernetes(values: Path, version: str) -> None:
    """Each object is of the API's schema, unknown fields refused, in the oldest and the newest version."""
    checked = 0
    for document in render(values):
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked > 10


def test_oldest_version_is_the_charts() -> None:
    """What is checked above is what Chart.yaml promises."""
    assert meta()["kubeVersion"] == f">={OLDEST}.0-0"


def test_chart_and_images_have_semantic_versions() -> None:
    """The chart's version is semantic, and the images' default tag is the package's version."""
    chart = meta()
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", chart["version"])
    text = (CHART.parent.parent / "pyproject.toml").read_text()
    assert f'version = "{chart["appVersion"]}"' in text


@ci_file
def test_every_object_has_the_recommended_labels(values: Path) -> None:
    """Name, instance, component, version and manager stand on all objects, in one namespace."""
    chart = meta()
    for document in render(values):
        labels = document["metadata"]["labels"]
        assert RECOMMENDED.items() <= labels.items(), document["metadata"]["name"]
        assert labels["app.kubernetes.io/version"] == chart["appVersion"]
        assert labels["app.kubernetes.io/component"]
        assert labels["helm.sh/chart"] == f"weft-{chart['version']}"
        assert document["metadata"]["namespace"] == "interpretability"


def test_own_labels_stand_on_every_object() -> None:
    """`labels` reach all objects and never what selects pods."""
    documents = render(merged({"labels": {"team": "a"}}))
    assert all(document["metadata"]["labels"]["team"] == "a" for document in documents)
    for deployment in kinds(documents, "Deployment").values():
        assert "team" not in deployment["spec"]["selector"]["matchLabels"]


def test_no_object_is_made_twice() -> None:
    """Two objects of one kind and name would overwrite each other."""
    for values in CI_FILES:
        names = [(document["kind"], document["metadata"]["name"]) for document in render(values)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("release", "override", "prefix"),
    [("weft", "", "weft"), ("team-weft", "", "team-weft"), ("team", "", "team-weft"), ("team", "circuits", "circuits")],
)
def test_names_begin_with_the_release(release: str, override: str, prefix: str) -> None:
    """Names follow the release, without saying weft twice, or what overrides them."""
    documents = render(merged({"fullnameOverride": override}), release=release)
    assert set(kinds(documents, "Deployment")) == {f"{prefix}-{component}" for component in COMPONENTS}
    settings = find(documents, "ConfigMap", f"{prefix}-console")["data"]
    for peer in ("activations", "cache"):
        assert settings[f"WEFT_CONSOLE_{peer.upper()}_TARGET"] == f"{prefix}-{peer}.interpretability.svc:50051"


def test_long_release_names_fit() -> None:
    """Every name stays a DNS label."""
    for document in render(MINIMAL, release="a" * 53):
        assert len(document["metadata"]["name"]) <= 63


def test_disabled_components_leave_nothing() -> None:
    """What is not enabled has no object, and the test does not ask for it."""
    documents = render(merged({"console": {"enabled": False}, "attribution": {"enabled": False}}))
    components = {document["metadata"]["labels"]["app.kubernetes.io/component"] for document in documents}
    assert components - {"monitoring"} == {"activations", "cache", "trainer", "rank", "test"}
    containers = find(documents, "Pod", "weft-test")["spec"]["containers"]
    assert {each["name"] for each in containers} == {"health", "activations", "cache", "trainer"}


def test_guide_says_what_the_chart_takes() -> None:
    """Values of the guide render as they stand there, and its Secrets have the keys that the chart asks for."""
    guide = (ROOT / "docs" / "how-to" / "install-on-kubernetes.md").read_text()
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    minimal, *changes = (block for block in blocks if "kind" not in block)
    assert render(minimal)
    assert len(changes) >= 2
    for change in changes:
        # Where models come from is one of several ways.
        base = {**minimal, "models": {}} if "models" in change else minimal
        assert render(merged(change, base)), change
    keys = yaml.safe_load((CHART / "values.yaml").read_text())
    for value, secret in (("auth", "weft-auth"), ("bucket", "weft-bucket"), ("tls", "weft-tls")):
        (command,) = re.findall(rf"kubectl create secret generic {secret} .*?(?=\n\n|\n```)", guide, re.DOTALL)
        assert set(re.findall(r"--from-file=([\w.-]+)", command)) == set(keys[value]["keys"].values())
        assert minimal[value]["existingSecret"] == secret


def test_notes_say_how_to_reach_the_page() -> None:
    """After the install a person reads the next commands, and a warning where TLS is off."""
    command = ("install", "weft", CHART, "--namespace", "interpretability", "--dry-run=client")
    safe = run(*command, values=MINIMAL).stdout
    assert "helm test weft -n interpretability --logs" in safe
    assert "kubectl port-forward -n interpretability service/weft-console 8080" in safe
    assert "WARNING" not in safe
    unsafe = run(*command, values=merged({"tls": {"enabled": False, "existingSecret": ""}})).stdout
    assert "WARNING: TLS is off" in unsafe
