"""Checkpoints that are complete and not whole: a run goes on from the newest that is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_process import NUM_STEPS, load, prepare, train

from weft_common.errors import DataLossError
from weft_store.adapters.file import FileObjectStore
from weft_store.documents import list_ids
from weft_trainer.worker.checkpoints import RunCheckpoints

_FOLDER = "runs/r/checkpoints/{:08d}/"


def _nothing(moment: str, op: str, key: str, count: int) -> None:
    """Let every write pass."""


def _file_of(store: FileObjectStore, step: int) -> str:
    keys = [info.key for info in store.list(_FOLDER.format(step)) if info.key.endswith(".safetensors")]
    assert len(keys) == 1
    return keys[0]


def _lose_the_file(store: FileObjectStore, step: int) -> None:
    store.delete(_file_of(store, step))


def _change_a_bit(store: FileObjectStore, step: int) -> None:
    key = _file_of(store, step)
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))


def _shorten_the_file(store: FileObjectStore, step: int) -> None:
    key = _file_of(store, step)
    store.put(key, store.get(key)[:-8])


def _shorten_the_manifest(store: FileObjectStore, step: int) -> None:
    key = f"{_FOLDER.format(step)}manifest.json"
    store.put(key, store.get(key)[:-20])


def _forget_the_file(store: FileObjectStore, step: int) -> None:
    key = f"{_FOLDER.format(step)}manifest.json"
    store.put(key, json.dumps(json.loads(store.get(key)) | {"files": {}}).encode())


def _forget_the_step(store: FileObjectStore, step: int) -> None:
    key = f"{_FOLDER.format(step)}manifest.json"
    store.put(key, json.dumps({"attempt": 1}).encode())


DAMAGES = [
    _lose_the_file, _change_a_bit, _shorten_the_file, _shorten_the_manifest, _forget_the_file, _forget_the_step,
]  # fmt: skip


def _complete(store: FileObjectStore) -> list[int]:
    return [int(name) for name in list_ids(store, "runs/r/checkpoints/", "/manifest.json")]


@pytest.fixture
def store(tmp_path: Path) -> FileObjectStore:
    """A run that has ended, with the checkpoints of steps 2, 4 and 5."""
    prepare(str(tmp_path))
    train(str(tmp_path), _nothing, keep=9)
    return FileObjectStore(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damaged_checkpoint_gives_way_to_the_next_older_one(
    store: FileObjectStore, tmp_path: Path, damage: Callable[[FileObjectStore, int], None]
) -> None:
    """The two newest are damaged: the run goes on from the third, saves them again, and ends with the same bits."""
    checkpoints = RunCheckpoints(store, "r", 1)
    wanted = dict(load(checkpoints).state())
    for step in (4, NUM_STEPS):
        damage(store, step)
    assert load(checkpoints).step == 2
    assert _complete(store) == [2]
    train(str(tmp_path), _nothing, keep=9)
    assert _complete(store) == [2, 4, NUM_STEPS]
    trainer = load(checkpoints)
    assert trainer.step == NUM_STEPS
    found = dict(trainer.state())
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_run_without_a_whole_checkpoint_does_not_begin_again(store: FileObjectStore) -> None:
    """The error names what is wrong, nothing is put aside, and the next start says the same."""
    for step in (2, 4, NUM_STEPS):
        _change_a_bit(store, step)
    for _ in range(2):
        with pytest.raises(DataLossError, match=r"3 complete checkpoints, and none of them is whole.*SHA-256"):
            load(RunCheckpoints(store, "r", 1))
        assert _complete(store) == [2, 4, NUM_STEPS]


def test_checkpoint_that_is_asked_for_is_never_another(store: FileObjectStore) -> None:
    """Whoever names a step gets that one, or the reason why not; it stays as it is."""
    _change_a_bit(store, NUM_STEPS)
    checkpoints = RunCheckpoints(store, "r", 1)
    trainer = load(RunCheckpoints(store, "none", 1))
    with pytest.raises(DataLossError, match="SHA-256"):
        checkpoints.load(NUM_STEPS, 0, 1, trainer.state())
    assert _complete(store) == [2, 4, NUM_STEPS]
