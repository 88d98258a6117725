"""What a process keeps on this machine for a while is gone after it, however it ended."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft_trainer.core.scratch import ScratchFolder, remove_stale

_HOLD = (
    "import sys\n"
    "from weft_trainer.core.scratch import ScratchFolder\n"
    "folder = ScratchFolder()\n"
    "(folder.path / 'copy').write_bytes(b'weights')\n"
    "print('ready', flush=True)\n"
    "sys.stdin.read()\n"
)
_START = "import os\nfrom weft_trainer.worker.starting import prepare_process\nprepare_process(dict(os.environ), 1)\n"

Held = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def _python(tmp_path: Path, code: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe, text=True)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Held]:
    """Start processes that hold a folder each, until their input ends."""
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        process = _python(tmp_path, _HOLD)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _copies(tmp_path: Path) -> int:
    return len(list(tmp_path.glob("*/files/copy")))


def test_folder_of_a_killed_process_goes_and_of_a_living_one_stays(tmp_path: Path, hold: Held) -> None:
    """Whoever starts next deletes what nobody holds, and nothing of its neighbours on the machine or of its own."""
    killed, _ = hold(), hold()
    with ScratchFolder() as own:
        (own.path / "copy").write_bytes(b"weights")
        killed.kill()
        killed.wait(60)
        assert _copies(tmp_path) == 3
        assert remove_stale() == 1
        assert _copies(tmp_path) == 2
        assert remove_stale() == 0
        assert own.path.is_dir()
    assert _copies(tmp_path) == 1


def test_process_that_ends_leaves_nothing(tmp_path: Path, hold: Held) -> None:
    """Its end is enough, without a `cleanup`."""
    process = hold()
    assert _copies(tmp_path) == 1
    process.communicate("", timeout=60)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_worker_that_starts_deletes_what_others_left(tmp_path: Path, hold: Held) -> None:
    """The first thing that a rank does."""
    killed = hold()
    killed.kill()
    killed.wait(60)
    process = _python(tmp_path, _START)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert _copies(tmp_path) == 0


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """A folder that is about to be locked, and one of a similar name without a lock."""
    for name in ("weft-new-abc", "weft-scratch-notes", "weft-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1")
    assert remove_stale() == 0
    assert len(list(tmp_path.glob("*/file"))) == 3
