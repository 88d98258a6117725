"""What the attribution service is told of the endpoint that labels features."""

import pytest

from weft_attribution.settings import AttributionSettings
from weft_common.settings import load_settings

BASE = {"TOKEN": "t", "BUCKET_URL": "memory://", "MODELS_DIR": "models", "ACTIVATIONS_TARGET": "localhost:1"}


def settings(monkeypatch: pytest.MonkeyPatch, **given: str) -> AttributionSettings:
    for name, value in {**BASE, **{f"INTERPRETER_{name}": value for name, value in given.items()}}.items():
        monkeypatch.setenv(f"WEFT_ATTRIBUTION_{name}", value)
    return load_settings(AttributionSettings)


def test_nobody_is_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no endpoint that was not named; answers may be as long as what asks them takes by itself."""
    made = settings(monkeypatch)
    assert made.interpreter_url is None
    assert (made.interpreter_explain_tokens, made.interpreter_score_tokens) == (640, 60)


def test_endpoint_is_taken_and_its_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key stands in no text that is made of the settings."""
    made = settings(monkeypatch, URL="https://models.example/v1", MODEL="m", KEY="sk-secret")
    assert (made.interpreter_url, made.interpreter_model) == ("https://models.example/v1", "m")
    assert "sk-secret" not in repr(made) + str(made.model_dump())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"URL": "https://models.example/v1"}, "INTERPRETER_MODEL"),
        ({"URL": "models.example", "MODEL": "m"}, "no URL"),
        ({"URL": "ftp://models.example", "MODEL": "m"}, "no URL"), ({"URL": "https:///v1", "MODEL": "m"}, "no URL"),
        ({"URL": "https://sk-secret@models.example/v1", "MODEL": "m"}, "INTERPRETER_KEY"),
        ({"URL": "https://models.example/v1?key=sk-secret", "MODEL": "m"}, "INTERPRETER_KEY"),
        ({"URL": "https://models.example/v1", "MODEL": "m", "KEY": "sk-secret\n"}, "INTERPRETER_KEY"),
        ({"URL": "https://models.example/v1", "MODEL": "m", "KEY": "sk-secret sk-secret"}, "INTERPRETER_KEY"),
        ({"URL": "https://models.example/v1", "MODEL": "m", "KEY": "sk-secret\u00e9"}, "INTERPRETER_KEY"),
        ({"CONCURRENCY": "0"}, "INTERPRETER_CONCURRENCY"), ({"TIMEOUT_S": "0"}, "INTERPRETER_TIMEOUT_S"),
    ],
)  # fmt: skip
def test_wrong_endpoint_is_refused_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: dict[str, str], said: str
) -> None:
    """The service does not start, and a key that stands in a wrong place is not repeated."""
    with pytest.raises(SystemExit):
        settings(monkeypatch, **given)
    told = capsys.readouterr().err
    assert said in told
    assert "sk-secret" not in told
