"""What of a folder is sent, and where what arrives may be put."""

from pathlib import Path

import pytest

from weft_client.transcoder_folder import files_of, place_for
from weft_common.errors import DataLossError, InvalidArgumentError


def test_files_are_named_below_their_folder_without_links_and_hidden_ones(tmp_path: Path) -> None:
    """Order is the same everywhere; nothing from outside the folder comes along."""
    folder, outside = tmp_path / "t", tmp_path / "secret"
    outside.write_text("x")
    for name in ("layer_1/cfg.json", "layer_0/cfg.json", ".git/config", "layer_0/.cache", "a.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    assert [name for name, _ in files_of(folder)] == ["a.safetensors", "layer_0/cfg.json", "layer_1/cfg.json"]


def test_folders_without_files_or_with_pickles_are_refused(tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgumentError, match="holds no files"):
        list(files_of(tmp_path))
    (tmp_path / "a.safetensors").write_text("x")
    (tmp_path / "b.pt").write_text("x")
    with pytest.raises(InvalidArgumentError, match=r"b\.pt is a pickled checkpoint"):
        list(files_of(tmp_path))


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc/x", "a/../../x", "a//b", ".x", "a\\..\\x", "a/" * 8 + "a"])
def test_names_that_lead_elsewhere_are_not_written(tmp_path: Path, name: str) -> None:
    """Whatever a service names, nothing outside the folder is touched."""
    with pytest.raises(DataLossError, match="no path below a folder"):
        place_for(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_names_below_the_folder_get_their_place(tmp_path: Path) -> None:
    """Folders on the way are made."""
    assert place_for(tmp_path, "layer_0/cfg.json") == tmp_path / "layer_0" / "cfg.json"
    assert (tmp_path / "layer_0").is_dir()
