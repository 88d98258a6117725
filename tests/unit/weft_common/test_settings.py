"""Settings: read once, checked, and answered with what to do."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from weft_common.settings import BucketSettings, ServiceSettings, load_settings


class ExampleSettings(ServiceSettings, BucketSettings):
    model_config = SettingsConfigDict(env_prefix="WEFT_EXAMPLE_", frozen=True)


@pytest.fixture(autouse=True)
def _right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_EXAMPLE_TOKEN", "hunter2")
    monkeypatch.setenv("WEFT_EXAMPLE_BUCKET_URL", "memory://")


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables with the service's prefix fill the fields; the rest have their defaults."""
    monkeypatch.setenv("WEFT_EXAMPLE_PORT", "7001")
    settings = load_settings(ExampleSettings)
    assert (settings.port, settings.host, settings.max_message_bytes) == (7001, "127.0.0.1", 8 << 20)
    assert settings.token is not None
    assert settings.token.get_secret_value() == "hunter2"


def test_secrets_are_not_shown() -> None:
    """Printing settings does not print tokens."""
    assert "hunter2" not in repr(load_settings(ExampleSettings))


def test_settings_are_frozen() -> None:
    """Nobody changes a setting after the start."""
    settings = load_settings(ExampleSettings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"PORT": "seventy"}, ["WEFT_EXAMPLE_PORT", "integer"]),
        ({"PORT": "70000"}, ["WEFT_EXAMPLE_PORT", "65535"]),
        ({"PORT": "x", "DRAIN_S": "-1"}, ["WEFT_EXAMPLE_PORT", "WEFT_EXAMPLE_DRAIN_S"]),
        ({"TOKEN": None}, ["WEFT_EXAMPLE_TOKEN", "WEFT_EXAMPLE_INSECURE_NO_AUTH=true"]),
        ({"INSECURE_NO_AUTH": "true"}, ["contradict", "unset one"]),
        ({"TOKEN": "two words"}, ["WEFT_EXAMPLE_TOKEN", "without spaces"]),
        ({"LOG_LEVEL": "loud"}, ["WEFT_EXAMPLE_LOG_LEVEL", "'debug'"]),
        ({"BUCKET_URL": None}, ["WEFT_EXAMPLE_BUCKET_URL: is not set", "file:///absolute/path"]),
        ({"BUCKET_URL": "/data"}, ["WEFT_EXAMPLE_BUCKET_URL is '/data'", "file:///absolute/path"]),
        ({"BUCKET_URL": "file://data"}, ["file:///absolute/path"]),
        ({"BUCKET_URL": "s3+http://host:9000"}, ["s3+http://host:port/bucket"]),
        ({"BUCKET_URL": "s3+http://host:9000/b", "BUCKET_CA": __file__}, ["WEFT_EXAMPLE_BUCKET_CA", "s3+https://"]),
        ({"BUCKET_URL": "s3+https://host/b", "BUCKET_CA": "/nowhere"}, ["WEFT_EXAMPLE_BUCKET_CA: cannot be read"]),
        ({"BUCKET_URL": "s3+https://key:word@host/bucket"}, ["WEFT_EXAMPLE_BUCKET_ACCESS_KEY"]),
        ({"BUCKET_ACCESS_KEY": "k"}, ["WEFT_EXAMPLE_BUCKET_SECRET_KEY", "set both or neither"]),
        ({"TLS_CERT": "/nowhere.pem"}, ["WEFT_EXAMPLE_TLS_CERT", "No such file", "PEM"]),
        ({"TLS_CERT": __file__}, ["WEFT_EXAMPLE_TLS_KEY", "go together"]),
        ({"TLS_CLIENT_CA": __file__}, ["WEFT_EXAMPLE_TLS_CLIENT_CA", "needs TLS"]),
        ({"MAX_INFLIGHT_BYTES": "70000"}, ["WEFT_EXAMPLE_MAX_INFLIGHT_BYTES is 70000", "raise it"]),
        ({"OTLP_ENDPOINT": "collector:4317"}, ["WEFT_EXAMPLE_OTLP_ENDPOINT", "http://collector:4317"]),
    ],
)
def test_wrong_settings_exit_2_and_say_what_to_do(
    changes: dict[str, str | None],
    wanted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each wrong variable is named with the value expected, and no secret is printed."""
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(f"WEFT_EXAMPLE_{name}")
        else:
            monkeypatch.setenv(f"WEFT_EXAMPLE_{name}", value)
    with pytest.raises(SystemExit) as caught:
        load_settings(ExampleSettings)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    for part in wanted:
        assert part in said
    assert "hunter2" not in said
    assert "two words" not in said
    assert "key:word" not in said
    assert "pydantic" not in said


def test_every_setting_is_documented() -> None:
    """A docstring stands under each field, since messages and docs show it."""
    undocumented = [name for name, field in ExampleSettings.model_fields.items() if not field.description]
    assert undocumented == []


def test_tls_files_are_accepted(tmp_path: Path) -> None:
    """Both files together are fine."""
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    settings = ServiceSettings(token="t", tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    assert settings.tls_cert == tmp_path / "cert.pem"
