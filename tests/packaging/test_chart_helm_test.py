"""What `helm test` runs: it asks every service for its health and for one answer, as a client in the cluster would."""

import json
from pathlib import Path

import pytest
from chart_rig import CHART, COMPONENTS, Document, find, merged, render
from typer.testing import CliRunner

from weft_client.cli import app
from weft_client.endpoints import read_endpoints

pytestmark = pytest.mark.packaging


def runner_pod(documents: list[Document], name: str = "weft-test") -> Document:
    return find(documents, "Pod", name)


def test_every_service_is_asked_once() -> None:
    """A container for the health of all, one for a call of each service, all of the client's image."""
    pod = runner_pod(render())
    commands = {each["name"]: each["command"] for each in pod["spec"]["containers"]}
    assert commands == {
        "health": ["weft", "health"],
        "activations": ["weft", "models", "list"],
        "cache": ["weft", "datasets", "list"],
        "trainer": ["weft", "runs", "list"],
        "attribution": ["weft", "graphs", "list"],
        "console": ["python", "/etc/weft/console_check.py"],
    }
    assert {each["image"] for each in pod["spec"]["containers"]} == {"localhost/weft-client:0.1.0"}
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"


def test_commands_are_the_clients_own() -> None:
    """Each command of the test is one that `weft` has."""
    for container in runner_pod(render())["spec"]["containers"]:
        program, *words = container["command"]
        if program == "weft":
            shown = CliRunner().invoke(app, [*words, "--help"])
            assert shown.exit_code == 0, shown.output


def test_client_reads_the_endpoints_that_it_is_given(tmp_path: Path) -> None:
    """The file names every service, its token's file and the authority, in the client's own format."""
    documents = render(CHART / "ci" / "everything-values.yaml")
    text = find(documents, "ConfigMap", "circuits-test")["data"]["endpoints.json"]
    services = json.loads(text)["services"]
    pod = runner_pod(documents, "circuits-test")["spec"]
    (tokens,) = (volume["secret"] for volume in pod["volumes"] if volume["name"] == "tokens")
    mounted = {item["path"]: item["key"] for item in tokens["items"]}
    assert mounted == {"activations": "a", "cache": "c", "trainer": "t", "attribution": "g", "console": "page"}
    for component in COMPONENTS:
        entry = services[component]
        port = 8080 if component == "console" else 50051
        assert entry["target"] == f"circuits-{component}.interpretability.svc:{port}"
        assert entry["token_file"] == f"/etc/weft/tokens/{component}"
        assert (entry["tls_ca"], entry["tls_cert"], entry["tls_key"]) == (
            "/etc/weft/tls/ca.crt",
            "/etc/weft/tls/tls.crt",
            "/etc/weft/tls/tls.key",
        )
    # As mounted, only elsewhere.
    for folder, files in (("tokens", COMPONENTS), ("tls", ("ca.crt", "tls.crt", "tls.key"))):
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).write_text(f"{name}-text\n")
    (tmp_path / "endpoints.json").write_text(text.replace("/etc/weft", str(tmp_path)))
    endpoints = read_endpoints(tmp_path / "endpoints.json")
    for component in COMPONENTS[:4]:
        assert endpoints[component].target == f"circuits-{component}.interpretability.svc:50051"
        assert endpoints[component].token == f"{component}-text"
        assert endpoints[component].tls_ca == tmp_path / "tls" / "ca.crt"


def test_only_what_is_needed_is_mounted() -> None:
    """Without TLS there is no certificate to mount; without mutual TLS the client shows none."""
    plain = runner_pod(render(CHART / "ci" / "one-pod-ranks-values.yaml"))
    assert {volume["name"] for volume in plain["spec"]["volumes"]} == {"tmp", "files", "tokens"}
    services = json.loads(find(render(), "ConfigMap", "weft-test")["data"]["endpoints.json"])["services"]
    assert all("tls_cert" not in entry and entry["tls_ca"] for entry in services.values())
    assert services["console"]["url"] == "https://weft-console.interpretability.svc:8080/"


def test_call_of_a_disabled_service_is_left_out() -> None:
    """What is not installed is neither asked nor given a token for."""
    documents = render(merged({"console": {"enabled": False}}))
    pod = runner_pod(documents)["spec"]
    assert "console" not in {each["name"] for each in pod["containers"]}
    (tokens,) = (volume["secret"] for volume in pod["volumes"] if volume["name"] == "tokens")
    assert "console" not in {item["path"] for item in tokens["items"]}
