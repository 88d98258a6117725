"""Values, their comments, their schema and the page made of it say the same; settings are the services' own."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from chart_rig import CHART, CI_FILES, COMPONENTS, ROOT, Document, kinds, main_environment, render

from weft_common.settings import variable_name

pytestmark = pytest.mark.packaging

SCHEMA: Document = json.loads((CHART / "values.schema.json").read_text())
TEXT = (CHART / "values.yaml").read_text()
VALUES: Document = yaml.safe_load(TEXT)
EVERYTHING: Document = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())
# Settings that the chart writes itself, from other values.
MANAGED = re.compile(
    r"host|port|metrics_port|token|insecure_no_auth|log_level|log_format|drain_s|otlp_endpoint|models_dir|(rank_)?device"
    r"|allowed_hosts|static_dir|launcher|work_dir|(tls|peers_tls|bucket|kubernetes|report)_.*|.*_(target|token)"
    r"|interpreter_(url|key|model)"
)


def resolved(schema: Document) -> Document:
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return {**SCHEMA["$defs"][name], **schema} if name else schema


def described(schema: Document, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Document]]:
    """Every value that the schema names, references followed."""
    for name, part in schema.get("properties", {}).items():
        whole = resolved(part)
        yield (*path, name), whole
        yield from described(whole, (*path, name))


def comments() -> dict[tuple[str, ...], str]:
    """The comment right above each key of values.yaml, by the key's path."""
    found: dict[tuple[str, ...], str] = {}
    path: list[str] = []
    above: list[str] = []
    for line in TEXT.splitlines():
        comment = re.match(r" *# (.*)", line)
        key = re.match(r"( *)([A-Za-z]+):", line)
        if comment:
            above.append(comment[1])
            continue
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
            found[tuple(path)] = " ".join(above)
        above = []
    return found


def keys_of(values: Document, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*path, name)
        # What users fill in has no keys of its own.
        if isinstance(value, dict) and value and (*path, name)[-1] not in ("resources", "requests", "limits"):
            yield from keys_of(value, (*path, name))


def test_every_value_is_described_once_and_the_same() -> None:
    """Above each value stands its description of the schema, word for word."""
    written, schema = comments(), dict(described(SCHEMA))
    for path in keys_of(VALUES):
        assert schema[path]["description"], path
        assert written[path] == schema[path]["description"], path


def test_every_described_value_has_a_default() -> None:
    """What the schema takes stands in values.yaml, but for what only lists, other services' pods and helm have."""
    present = set(keys_of(VALUES))
    for path, _ in described(SCHEMA):
        inside = {"settings", "resources", "global"} & set(path) or (len(path) > 2 and path[1] == "pod")
        assert path in present or inside, path


def objects(schema: Any) -> Iterator[Document]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for part in schema.values():
            yield from objects(part)
    if isinstance(schema, list):
        for part in schema:
            yield from objects(part)


def test_schema_is_closed_everywhere() -> None:
    """No object with named values takes others, at any depth."""
    found = list(objects(SCHEMA))
    assert len(found) > 30
    assert all(each["additionalProperties"] is False for each in found)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("values", [CHART / "values.yaml", *CI_FILES], ids=lambda path: path.stem)
def test_defaults_and_examples_are_of_the_schema(values: Any) -> None:
    """Also by another validator than helm's."""
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(values.read_text()))


def test_no_default_is_a_password() -> None:
    """What would be a secret is the name of one, and empty."""
    for path in keys_of(VALUES):
        value: Any = VALUES
        for name in path:
            value = value[name]
        if re.search(r"(?i)password|secret$|token$", path[-1]) and not isinstance(value, dict):
            assert (path[-1] in ("existingSecret", "tlsSecret"), value) == (True, ""), path


def test_page_lists_every_value() -> None:
    """The page of the documentation names each value with its default."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        reference = importlib.import_module("chart_reference")
    finally:
        sys.path.pop(0)
    page: str = reference.page(SCHEMA, VALUES, "9.9.9")
    assert "chart 9.9.9" in page
    for path in keys_of(VALUES):
        assert f"`{'.'.join(path)}`" in page or f"## {path[0]}\n" in page, path
    assert "| `cache.replicas` | integer | `2` | Replicas, where autoscaling is off. |" in page
    assert "| `models.hub[].revision` | string |  | Commit, so that every replica has the same weights. |" in page


def settings_of(component: str) -> Any:
    module = importlib.import_module(f"weft_{component}.settings")
    return getattr(module, f"{component.capitalize()}Settings")


@pytest.mark.parametrize("component", COMPONENTS)
def test_settings_of_the_values_are_the_services_own(component: str) -> None:
    """`settings` takes every setting that the chart does not write itself, and no other; types agree."""
    allowed = SCHEMA["$defs"][f"{component}Settings"]["properties"]
    fields = settings_of(component).model_fields
    assert set(allowed) == {name for name in fields if not MANAGED.fullmatch(name)}
    types: dict[Any, Document] = {int: {"type": "integer"}, float: {"type": "number"}}
    types |= {bool: {"type": "boolean"}, str: {"type": "string"}}
    types[tuple[str, ...]] = {"type": "array", "items": {"type": "string"}}
    for name, schema in allowed.items():
        annotation = fields[name].annotation
        expected = types.get(annotation) or {"enum": list(annotation.__args__)}
        assert schema == expected, name


@pytest.mark.parametrize("values", CI_FILES, ids=lambda path: path.stem)
def test_variables_of_pods_are_settings(values: Any) -> None:
    """Each variable that a pod gets is read by its service; a misspelt one would be ignored in silence."""
    documents = render(values)
    for name in kinds(documents, "Deployment"):
        component = name.rpartition("-")[2]
        cls = settings_of(component)
        known = {variable_name(cls, field) for field in cls.model_fields}
        given = {variable for variable in main_environment(documents, name) if variable.startswith("WEFT_")}
        assert len(given) > 8
        assert given <= known, given - known


@pytest.mark.parametrize("values", CI_FILES, ids=lambda path: path.stem)
def test_services_take_what_pods_give_them(
    values: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Read as at a start, with stand-ins for secrets and files, the environment makes valid settings."""
    folder = tmp_path_factory.mktemp("tls")
    documents = render(values)
    for name in kinds(documents, "Deployment"):
        cls = settings_of(name.rpartition("-")[2])
        with monkeypatch.context() as patch:
            for variable, value in main_environment(documents, name).items():
                if value.startswith("/etc/weft/"):
                    file = folder / value.rpartition("/")[2]
                    file.write_text("PEM")
                    value = str(file)
                patch.setenv(variable, value)
            settings = cls()
        assert settings.host == "0.0.0.0"
        assert settings.token.get_secret_value() == "from-a-secret"


def test_numbers_reach_services_as_numbers() -> None:
    """Large integers are no floating-point text, and fractions stay fractions."""
    documents = render(CHART / "ci" / "everything-values.yaml")
    environment = main_environment(documents, "circuits-activations")
    assert environment["WEFT_ACTIVATIONS_MAX_INFLIGHT_BYTES"] == "268435456"
    assert environment["WEFT_ACTIVATIONS_LEASE_S"] == "30.5"
    assert json.loads(environment["WEFT_ACTIVATIONS_CORPUS_PREFIXES"]) == ["corpora/", "texts/"]


def test_launcher_is_told_all_about_ranks() -> None:
    """The values of ranks, of Secrets and of images arrive in the controller's settings."""
    environment = main_environment(render(CHART / "ci" / "everything-values.yaml"), "circuits-trainer")
    prefix = "WEFT_TRAINER_KUBERNETES_"
    told = {name.removeprefix(prefix): value for name, value in environment.items() if name.startswith(prefix)}
    labels = json.loads(told.pop("POD_LABELS"))
    assert labels["team"] == "interpretability"
    assert labels["app.kubernetes.io/component"] == "rank"
    assert json.loads(told.pop("RANK_RESOURCES")) == VALUES["trainer"]["ranks"]["resources"]
    assert json.loads(told.pop("POD_ANNOTATIONS")) == {"example.com/scanned": "yes"}
    assert told == {
        "POD": "from-the-pod",
        "NAMESPACE": "interpretability",
        "LEASE": "circuits-trainer",
        "RANK_KIND": "jobset",
        "RANK_IMAGE": EVERYTHING["trainer"]["ranks"]["image"],
        "RANK_IMAGE_PULL_POLICY": "Always",
        "PULL_SECRETS": '["registry"]',
        "NODE_SELECTOR": "{}",
        "TOLERATIONS": "[]",
        "QUEUE": "research",
        "SERVICE_ACCOUNT": "circuits-rank",
        "AUTH_SECRET": "tokens",
        "CACHE_TOKEN_KEY": "c",
        "ACTIVATIONS_TOKEN_KEY": "a",
        "REPORT_TOKEN_KEY": "r",
        "BUCKET_SECRET": "bucket-keys",
        "ACCESS_KEY_KEY": "id",
        "SECRET_KEY_KEY": "secret",
        "BUCKET_CA_CONFIG_MAP": "company-authority",
        "BUCKET_CA_KEY": "root.pem",
        "TLS_SECRET": "certificates",
        "REPORTS_SERVICE": "circuits-trainer.interpretability.svc:50052",
    }


def test_page_is_asked_for_by_known_names() -> None:
    """The console takes requests for its Service, its Ingress and the names of the values."""
    environment = main_environment(render(CHART / "ci" / "everything-values.yaml"), "circuits-console")
    hosts = json.loads(environment["WEFT_CONSOLE_ALLOWED_HOSTS"])
    assert hosts[:3] == ["127.0.0.1", "localhost", "[::1]"]
    assert {"circuits-console.interpretability.svc", "weft.example.com", "weft.internal"} <= set(hosts)
