"""deploy/compose: as the specification has it, closed by default, and in step with the services' settings."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from weft_activations.settings import ActivationsSettings
from weft_attribution.settings import AttributionSettings
from weft_cache.settings import CacheSettings
from weft_client.endpoints import read_endpoints
from weft_common.settings import ServiceSettings
from weft_console.settings import ConsoleSettings
from weft_trainer.settings import TrainerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
SETTINGS: dict[str, type[ServiceSettings]] = {
    "activations": ActivationsSettings,
    "attribution": AttributionSettings,
    "cache": CacheSettings,
    "console": ConsoleSettings,
    "trainer": TrainerSettings,
}
OTHERS = ("minio", "bucket", "prometheus", "grafana")

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    """The script that makes the secrets."""
    spec = importlib.util.spec_from_file_location("compose_prepare", COMPOSE / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made(prepare: ModuleType, tmp_path: Path) -> dict[str, str]:
    """What prepare.py writes into .env."""
    prepare.prepare(tmp_path, "localhost/minio:1")
    return dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())


def interpolated(environment: dict[str, str]) -> dict[str, Any]:
    """Read compose.yaml as compose would with this .env; a required variable that is missing is an error."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"], match["rest"]
        if name in environment:
            return environment[name]
        assert operator == ":-", f"{name}: {rest}"
        return rest

    pattern = r"\$\{(?P<name>[A-Z_]+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}"
    text = re.sub(pattern, value, (COMPOSE / "compose.yaml").read_text())
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def test_compose_file_is_what_the_specification_allows(made: dict[str, str]) -> None:
    """The specification's own model reads the file, and every volume that is used is declared."""
    document = interpolated(made)
    compose = PyCompose.from_yaml(yaml.safe_dump(document))
    compose.validate()
    assert sorted(compose.service_names()) == sorted([*SETTINGS, *OTHERS])


def test_compose_check_refuses_a_key_that_is_not_in_the_specification(made: dict[str, str]) -> None:
    """The check above would see a misspelt key."""
    document = interpolated(made)
    document["services"]["cache"]["read_onyl"] = True
    with pytest.raises(ValueError, match="read_onyl"):
        PyCompose.from_yaml(yaml.safe_dump(document))


@pytest.mark.parametrize("name", [*SETTINGS, *OTHERS])
def test_compose_service_has_no_rights(made: dict[str, str], name: str) -> None:
    """Every container has a read-only root, no capabilities, no way to new ones, and ports on loopback only."""
    service = interpolated(made)["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert all(volume.endswith(":ro") or not volume.startswith((".", "/")) for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", [*SETTINGS, "prometheus", "grafana"])
def test_compose_service_is_watched(made: dict[str, str], name: str) -> None:
    """Everything that others wait for says whether it is ready."""
    assert interpolated(made)["services"][name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SETTINGS)
def test_compose_service_gets_settings_that_its_service_takes(
    made: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each WEFT_ variable is a setting of that service, and the service starts with them."""
    service, cls = interpolated(made)["services"][name], SETTINGS[name]
    prefix = f"WEFT_{name.upper()}_"
    for variable, value in service["environment"].items():
        assert variable.startswith(prefix)
        assert variable.removeprefix(prefix).lower() in cls.model_fields
        monkeypatch.setenv(variable, value)
    settings = cls()
    assert settings.host == "0.0.0.0"
    assert settings.metrics_port == 9090
    assert settings.token is not None
    assert service["user"] == "10001:10001"


def test_compose_starts_the_images_of_this_version(made: dict[str, str]) -> None:
    """Without a word said, the images are the ones that `make images` names."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    services = interpolated(made)["services"]
    for name in SETTINGS:
        assert services[name]["image"] == f"localhost/weft-{name}:{version}"
    assert services["bucket"]["image"] == f"localhost/weft-cache:{version}"


def test_compose_has_no_password_of_its_own() -> None:
    """Without prepare.py's file nothing starts: there is no default for a secret."""
    text = (COMPOSE / "compose.yaml").read_text()
    for name in re.findall(r"\$\{([A-Z_]*(?:TOKEN|PASSWORD|KEY|USER))", text):
        assert f"${{{name}:?" in text
        assert f"${{{name}:-" not in text
        assert f"${{{name}-" not in text


def test_compose_secrets_are_long_different_and_private(prepare: ModuleType, tmp_path: Path) -> None:
    """Two runs share no secret, and nobody but their owner reads them."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        prepare.prepare(tmp_path / folder, "localhost/minio:1")
    values = []
    for folder in ("one", "two"):
        lines = (tmp_path / folder / ".env").read_text().splitlines()
        values += [value for name, value in (line.split("=", 1) for line in lines) if name in prepare.MADE]
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / folder).iterdir()} == {0o600}
    assert len(set(values)) == 2 * len(prepare.MADE)
    assert all(len(value) >= 43 for value in values)


def test_compose_secrets_are_not_written_over(prepare: ModuleType, tmp_path: Path) -> None:
    """A second run leaves the secrets of a running machine alone and says what to do."""
    prepare.prepare(tmp_path, "localhost/minio:1")
    before = (tmp_path / ".env").read_bytes()
    with pytest.raises(SystemExit, match="delete it"):
        prepare.prepare(tmp_path, "localhost/minio:1")
    assert (tmp_path / ".env").read_bytes() == before


def test_compose_endpoints_are_what_the_client_reads(prepare: ModuleType, tmp_path: Path, made: dict[str, str]) -> None:
    """The `weft` command finds the services at the ports that compose opens, with their tokens."""
    endpoints = read_endpoints(tmp_path / "endpoints.json")
    services = interpolated(made)["services"]
    for name in ("activations", "attribution", "cache", "trainer"):
        assert services[name]["ports"] == [f"{endpoints[name].target}:50051"]
        assert endpoints[name].token == made[f"{name.upper()}_TOKEN"]
    console = endpoints["console"]
    assert services["console"]["ports"] == [f"{str(console.url).removeprefix('http://').rstrip('/')}:8080"]
    assert console.token == made["CONSOLE_TOKEN"]


def test_compose_prometheus_scrapes_every_service(made: dict[str, str]) -> None:
    """Each service is a job of the name that the alerts and dashboards know, in a namespace."""
    configuration = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    found = {}
    for job in configuration["scrape_configs"]:
        (group,) = job["static_configs"]
        assert group["labels"] == {"namespace": "compose"}
        found[job["job_name"]] = group["targets"]
    assert found == {f"weft-{name}": [f"{name}:9090"] for name in SETTINGS}
    mounts = interpolated(made)["services"]["prometheus"]["volumes"]
    assert "../../charts/weft/rules:/etc/prometheus/rules:ro" in mounts


def test_prepare_says_what_it_needs() -> None:
    """Without the name of a MinIO image the command says so and writes nothing."""
    done = subprocess.run([sys.executable, COMPOSE / "prepare.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--minio-image" in done.stderr


def test_git_does_not_know_the_secrets() -> None:
    """Both files that hold secrets are ignored, and so is the build context's view of them."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/deploy/compose/.env", "/deploy/compose/endpoints.json"} <= set(ignored)
    assert not [line for line in (ROOT / ".dockerignore").read_text().splitlines() if "compose" in line]


def test_endpoints_file_is_plain_json(prepare: ModuleType, tmp_path: Path) -> None:
    """Other tools can read it too."""
    prepare.prepare(tmp_path, "localhost/minio:1")
    assert set(json.loads((tmp_path / "endpoints.json").read_text())["services"]) == set(SETTINGS)
