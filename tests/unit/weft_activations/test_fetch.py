"""Models before the start: whole or not there, from the bucket or the hub."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from weft_activations import fetch_corpus
from weft_activations.fetch import HubModel, copy_models, download_model, main
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_store import ObjectStore, open_store

COMMIT = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"


def bucket(*names: str) -> ObjectStore:
    store = open_store("memory://")
    for name in names:
        store.put(f"models/{name}/config.json", b"{}")
        store.put(f"models/{name}/model.safetensors", name.encode() * 100)
        store.put(f"models/{name}/onnx/extra.json", b"[]")
    return store


class Hub:
    """Writes what a repository holds, and what the hub's client leaves beside it."""

    def __init__(self, *files: str) -> None:
        self.files = files
        self.asked: list[tuple[str, str]] = []

    def __call__(self, repo_id: str, *, revision: str, local_dir: Path, allow_patterns: Sequence[str]) -> str:
        self.asked.append((repo_id, revision))
        (local_dir / ".cache").mkdir()
        for name in self.files:
            (local_dir / name).write_text(name)
        return str(local_dir)


def test_every_model_below_the_prefix_is_copied(tmp_path: Path) -> None:
    """Each folder becomes a model with all its files; nothing else is left in the folder of models."""
    store = bucket("a", "b")
    store.put("datasets/x/config.json", b"{}")
    assert copy_models(store, "models/", tmp_path) == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == b"b" * 100
    assert (tmp_path / "b" / "onnx" / "extra.json").read_bytes() == b"[]"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_model_that_is_there_is_kept(tmp_path: Path) -> None:
    """A second start copies only what is missing."""
    (tmp_path / "a").mkdir()
    assert copy_models(bucket("a", "b"), "models/", tmp_path) == ["b"]
    assert list((tmp_path / "a").iterdir()) == []


def test_empty_prefix_says_what_to_put_there(tmp_path: Path) -> None:
    """A wrong prefix is no empty success."""
    with pytest.raises(NotFoundError, match=r"other/my-model/config\.json"):
        copy_models(bucket("a"), "other/", tmp_path)


def test_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    """What no loader could read is refused, and leaves nothing."""
    store = open_store("memory://")
    store.put("models/a/config.json", b"{}")
    store.put("models/a/pytorch_model.bin", b"pickle")
    with pytest.raises(FailedPreconditionError, match="safetensors"):
        copy_models(store, "models/", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_that_comes_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is being replaced is noticed by its size."""
    store = bucket("a")

    def half(key: str, path: Path) -> None:
        path.write_bytes(store.get(key)[:1])

    monkeypatch.setattr(store, "get_to_file", half)
    with pytest.raises(DataLossError, match="expected"):
        copy_models(store, "models/", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_hub_model_is_fetched_once_at_its_commit(tmp_path: Path) -> None:
    """The folder has the model's own name and not the client's notes; a second start asks nothing."""
    hub, model = Hub("config.json", "model.safetensors"), HubModel("small", "org/Small", COMMIT)
    assert download_model(model, tmp_path, hub)
    assert not download_model(model, tmp_path, hub)
    assert hub.asked == [("org/Small", COMMIT)]
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["config.json", "model.safetensors"]


def test_hub_model_has_three_parts() -> None:
    """A name, a repository and a commit, or a message with the form; the name is an id."""
    for text in ("small", "small=org/Small", "=org/Small@main", "../up=org/Small@main"):
        with pytest.raises(InvalidArgumentError, match="hub"):
            HubModel.parse(text)


def test_command_line_reports_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was done stands on stdout, what went wrong on stderr with exit 1, and wrong usage exits 2."""
    arguments = [str(tmp_path), "--bucket-prefix=models/"]
    assert main(arguments, open_bucket=lambda: bucket("a")) == 0
    assert (
        main([str(tmp_path), f"--hub=b=org/B@{COMMIT}"], hub_snapshot=lambda: Hub("config.json", "x.safetensors")) == 0
    )
    assert capsys.readouterr().out == "fetch: a copied\nfetch: b fetched\n"
    assert main([str(tmp_path), "--bucket-prefix=none/"], open_bucket=lambda: bucket("a")) == 1
    assert "none/" in capsys.readouterr().err
    for both in ([str(tmp_path)], [*arguments, f"--hub=b=org/B@{COMMIT}"]):
        with pytest.raises(SystemExit, match="2"):
            main(both)


class DataHub:
    """A data set of the hub, and what else may lie in its folder."""

    def __init__(self, files: dict[str, bytes], outside: Path) -> None:
        self.files = files
        self.outside = outside
        self.asked: list[dict[str, object]] = []

    def __call__(self, repo_id: str, *, local_dir: str, **asked: object) -> str:
        self.asked.append({"repo_id": repo_id, **asked})
        for name, data in {**self.files, ".cache/huggingface/a.jsonl": b"notes"}.items():
            path = Path(local_dir, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        Path(local_dir, "link.txt").symlink_to(self.outside)
        return local_dir


def test_data_set_of_the_hub_goes_into_the_bucket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that an import reads, at the commit that was asked for; no script, no link, none of the client's notes."""
    (tmp_path / "secret").write_text("of this machine")
    hub = DataHub({"data/a.parquet": b"1", "b.jsonl.zst": b"2", "notes.py": b"print()", "README.md": b"x"}, tmp_path)
    store = open_store("memory://")
    arguments = [f"notes=org/notes@{COMMIT}", "--files", "data/*"]
    assert fetch_corpus.main(arguments, lambda: store, lambda: hub) == 0
    assert hub.asked == [
        {"repo_id": "org/notes", "repo_type": "dataset", "revision": COMMIT, "allow_patterns": ["data/*"]}
    ]
    keys = ["corpora/notes/files/b.jsonl.zst", "corpora/notes/files/data/a.parquet"]
    assert [info.key for info in store.list("")] == keys
    assert store.get(keys[1]) == b"1"
    assert capsys.readouterr().out.split() == ["fetch_corpus:", keys[0], "fetch_corpus:", keys[1]]
    empty = DataHub({"README.md": b"x"}, tmp_path)
    assert fetch_corpus.main([f"notes=org/notes@{COMMIT}"], lambda: store, lambda: empty) == 1
    assert "no file that an import reads" in capsys.readouterr().err
    assert fetch_corpus.main(["notes"], lambda: store, lambda: empty) == 1
    assert "hub" in capsys.readouterr().err
