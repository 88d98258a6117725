"""Checkpoints whose writer is killed at each write, whose bucket is full or away, or whose disk has no space."""

import resource
import signal
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from checkpoint_process import NUM_STEPS, config, load, prepare, train
from clt_cases import own_batch
from faulty_store import FaultyObjectStore, kill_after
from forked_ranks import FORKS

from weft_clt.checkpoint import file_name, write_tensors
from weft_clt.trainer import Trainer
from weft_common.errors import FailedPreconditionError, StorageFullError, UnavailableError
from weft_store.adapters.file import FileObjectStore
from weft_store.documents import encode_json, list_ids, read_json
from weft_trainer.core.scratch import remove_stale
from weft_trainer.worker import patience
from weft_trainer.worker.background import Background
from weft_trainer.worker.checkpoints import RunCheckpoints
from weft_trainer.worker.saving import CheckpointSaver


def _nothing(moment: str, op: str, key: str, count: int) -> None:
    """Let every write pass."""


def _train_and_die(root: str, write: int) -> None:
    tempfile.tempdir = root
    train(root, kill_after(write))


def _state(root: Path) -> dict[str, torch.Tensor]:
    trainer = load(RunCheckpoints(FileObjectStore(root), "r", 1))
    assert trainer.step == NUM_STEPS
    return dict(trainer.state())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, torch.Tensor]]:
    """Writes and last state of a run that nothing happened to."""
    root = tmp_path_factory.mktemp("alone")
    prepare(str(root))
    return train(str(root), _nothing), _state(root)


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that killed writers leave go with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def _check_all_whole(root: Path) -> None:
    """Every checkpoint that says that it is complete can be loaded."""
    store = FileObjectStore(root)
    checkpoints = RunCheckpoints(store, "r", 1)
    for name in list_ids(store, "runs/r/checkpoints/", "/manifest.json"):
        trainer = load(RunCheckpoints(FaultyObjectStore(store, _nothing), "none", 1))
        checkpoints.load(int(name), 0, 1, trainer.state())


def test_writer_killed_at_any_write_loses_no_bit(alone: tuple[int, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """SIGKILL after each put and delete: what is complete is whole, and the run ends with the same bits."""
    writes, wanted = alone
    assert writes > 9
    # Right after a write the bucket is what it is right before the next.
    for write in range(1, writes + 1):
        root = tmp_path / str(write)
        root.mkdir()
        prepare(str(root))
        child = FORKS.Process(target=_train_and_die, args=(str(root), write))
        child.start()
        child.join(300)
        assert child.exitcode == -signal.SIGKILL
        _check_all_whole(root)
        train(str(root), _nothing)
        found = _state(root)
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), (write, name)


def test_copy_of_a_killed_rank_goes_when_the_next_starts(tmp_path: Path) -> None:
    """It was killed in the middle of an upload, whose copy would else fill this machine."""
    prepare(str(tmp_path))
    child = FORKS.Process(target=_train_and_die, args=(str(tmp_path), 1))
    child.start()
    child.join(300)
    assert len(list(tmp_path.glob("weft-scratch-*/files/*.safetensors"))) == 1
    assert remove_stale() == 1
    assert list(tmp_path.glob("weft-*")) == []


@pytest.mark.parametrize("error", [UnavailableError("the bucket answers 503"), StorageFullError("the bucket is full")])
def test_bucket_that_refuses_for_a_while_delays_nothing_but_the_checkpoint(
    alone: tuple[int, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Every write fails twice, once before and once after it was done; the run ends with the same bits."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.001)
    failed: dict[str, int] = {}

    def fault(moment: str, op: str, key: str, count: int) -> None:
        if failed.setdefault(f"{moment} {key}", 0) == 0:
            failed[f"{moment} {key}"] = 1
            raise error

    prepare(str(tmp_path))
    train(str(tmp_path), fault, retry_s=120.0)
    assert len(failed) > 12
    found = _state(tmp_path)
    for name, tensor in alone[1].items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("error", [UnavailableError("the bucket answers 503"), StorageFullError("the bucket is full")])
def test_bucket_that_refuses_for_too_long_is_told(tmp_path: Path, error: Exception) -> None:
    """After the bound the rank ends with the bucket's own words; what was complete stays so."""

    def fault(moment: str, op: str, key: str, count: int) -> None:
        if count > 4:
            raise error

    prepare(str(tmp_path))
    with pytest.raises(type(error), match="the bucket"):
        train(str(tmp_path), fault)
    _check_all_whole(tmp_path)
    assert RunCheckpoints(FileObjectStore(tmp_path), "r", 1).newest_step() == 2


def _train_on_a_small_disk(root: str, largest: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        train(root, _nothing)
    except StorageFullError as error:
        raise SystemExit(7 if "TMPDIR" in error.message else 8) from error


def test_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    """No space for the copy of the state: an error that names the place, and no checkpoint that seems whole."""
    prepare(str(tmp_path))
    child = FORKS.Process(target=_train_on_a_small_disk, args=(str(tmp_path), 8192))
    child.start()
    child.join(300)
    assert child.exitcode == 7
    assert RunCheckpoints(FileObjectStore(tmp_path), "r", 1).newest_step() == 0


def test_attempt_that_was_replaced_completes_nothing(tmp_path: Path) -> None:
    """Ranks that another start has taken the place of write no manifest, and over no file of their successors."""
    prepare(str(tmp_path))
    FileObjectStore(tmp_path).put("runs/r/run.json", encode_json({"attempt": 2}))
    with pytest.raises(FailedPreconditionError, match="attempt 2 is the present one"):
        train(str(tmp_path), _nothing)
    assert list(FileObjectStore(tmp_path).list("runs/r/checkpoints/")) == []


def test_late_manifest_of_an_earlier_attempt_gives_way(tmp_path: Path) -> None:
    """The present attempt's own takes its place, and the checkpoint is what that one saved."""
    store = FileObjectStore(tmp_path)
    early, late = load(RunCheckpoints(store, "r", 1)), load(RunCheckpoints(store, "r", 1))
    early.train_step(own_batch(1, early.mesh))
    late.train_step(own_batch(2, late.mesh))
    for attempt, trainer in ((1, early), (2, late), (2, late)):
        store.put("runs/r/run.json", encode_json({"attempt": attempt}))
        checkpoints = RunCheckpoints(store, "r", attempt)
        path = tmp_path / file_name(0, 1)
        write_tensors(path, trainer.state())
        checkpoints.upload(1, path)
        checkpoints.commit(1, {"draws": 1}, config(), trainer.mesh)
        assert checkpoints.manifest(1).attempt == attempt
    found = dict(load(RunCheckpoints(store, "r", 2)).state())
    for name, tensor in late.state():
        assert torch.equal(found[name], tensor), name


def _steps_of_two_attempts(tmp_path: Path) -> tuple[Trainer, list[Path]]:
    """The later of two trainers that came to different bytes, and the files of both."""
    paths, trainer = [], None
    for attempt in (1, 2):
        trainer = load(RunCheckpoints(FileObjectStore(tmp_path), "none", attempt))
        trainer.train_step(own_batch(attempt, trainer.mesh))
        paths.append(tmp_path / str(attempt) / file_name(0, 1))
        paths[-1].parent.mkdir()
        write_tensors(paths[-1], trainer.state())
    assert trainer is not None
    assert paths[0].read_bytes() != paths[1].read_bytes()
    return trainer, paths


@pytest.mark.parametrize("asleep_at", ["rank0-of-1.safetensors", "part-rank0-of-1.json", "manifest.json"])
def test_rank_of_an_earlier_attempt_that_wakes_up_changes_no_checkpoint(tmp_path: Path, asleep_at: str) -> None:
    """It slept between its look at the present attempt and its write, while the next attempt saved the same step."""
    later, (early_path, late_path) = _steps_of_two_attempts(tmp_path)
    store = FileObjectStore(tmp_path)
    prepare(str(tmp_path))
    present = RunCheckpoints(store, "r", 2)

    def sleep(moment: str, op: str, key: str, count: int) -> None:
        if moment == "before" and key.endswith(asleep_at):
            store.put("runs/r/run.json", encode_json({"attempt": 2}))
            present.upload(1, late_path)
            present.commit(1, {"draws": 1}, config(), later.mesh)

    sleeper = RunCheckpoints(FaultyObjectStore(store, sleep), "r", 1)
    with suppress(FailedPreconditionError):
        sleeper.upload(1, early_path)
        sleeper.commit(1, {"draws": 1}, config(), later.mesh)
    assert present.manifest(1).attempt == 2
    found = dict(load(present).state())
    for name, tensor in later.state():
        assert torch.equal(found[name], tensor), name


def test_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its files have no attempt in their names."""
    later, (path, _) = _steps_of_two_attempts(tmp_path)
    store = FileObjectStore(tmp_path)
    prepare(str(tmp_path))
    checkpoints = RunCheckpoints(store, "r", 1)
    checkpoints.upload(1, path)
    checkpoints.commit(1, {"draws": 1}, config(), later.mesh)
    folder = checkpoints.folder(1)
    manifest, _ = read_json(store, f"{folder}manifest.json")
    ((name, facts),) = manifest["files"].items()
    assert name == "attempt1-rank0-of-1.safetensors"
    store.put_file(f"{folder}rank0-of-1.safetensors", path)
    store.delete(f"{folder}{name}")
    store.put(f"{folder}manifest.json", encode_json(manifest | {"files": {"rank0-of-1.safetensors": facts}}))
    assert load(checkpoints).step == 1


def test_steps_go_on_while_a_checkpoint_is_uploaded(tmp_path: Path) -> None:
    """The copy is of the step at which it was begun, whatever later steps do to the parameters before it is stored."""
    trainer = load(RunCheckpoints(FileObjectStore(tmp_path), "r", 1))
    prepare(str(tmp_path))
    gate, saved = threading.Event(), []

    def fault(moment: str, op: str, key: str, count: int) -> None:
        assert gate.wait(60)

    store = FaultyObjectStore(FileObjectStore(tmp_path), fault)
    checkpoints = RunCheckpoints(store, "r", 1)
    saver = CheckpointSaver(checkpoints, config(), trainer.mesh, Background(0.0), saved.append)
    trainer.train_step(own_batch(1, trainer.mesh))
    wanted = {name: tensor.clone() for name, tensor in trainer.state()}
    saver.begin(1, trainer.state(), {"draws": 1})
    for step in (2, 3):
        trainer.train_step(own_batch(step, trainer.mesh))
        saver.advance()
    assert saved == []
    gate.set()
    saver.finish()
    assert saved == [1]
    found = dict(load(checkpoints).state())
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
