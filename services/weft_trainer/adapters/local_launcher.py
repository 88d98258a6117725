"""
Starts ranks on this machine, by torchrun.

Every process of a job carries the job in its environment, and is found by that: torchrun gives each rank a session of
its own, so neither a process group nor the tree of a torchrun that was killed holds them all.
"""

import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from weft_common.errors import UnavailableError
from weft_common.logging import get_logger
from weft_trainer.core.ports import RankExit, RankJob, RankLog, RankStatus

__all__ = ["JOB_VARIABLE", "LocalGroup", "LocalLauncher"]

_log = get_logger(__name__)

JOB_VARIABLE = "WEFT_WORKER_JOB"
_POLL_S = 0.1
_EXEC_S = 1.0
_TAIL_BYTES = 4096
_TAIL_LINES = 12
_KILL_S = 10.0
# What torchrun gives the other ranks once one has failed.
_SHUTDOWN_S = 10
# Waits for a line before it becomes the program: where the controller dies before it wrote down what it started, the
# line never comes and nothing runs.
_GATE = ("/bin/sh", "-c", 'read -r go && exec "$@"', "weft-gate")


def _tag_of(process: psutil.Process) -> str | None:
    """Return the job that a process belongs to."""
    environment = process.environ()
    # In the middle of an exec the kernel shows no environment for a moment; old processes without one are its own.
    while not environment and time.time() - process.create_time() < _EXEC_S:
        time.sleep(0.01)
        environment = process.environ()
    return environment.get(JOB_VARIABLE)


def _processes_of(tag: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if _tag_of(process) == tag and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class LocalGroup:
    """
    The processes of a job on this machine.

    Args:
        tag: What they carry in their environment.
        folder: Where their log and exit code lie.
        pid: Of the process that holds them together; None where it cannot be found.
        child: The same, where it is a child of ours.
    """

    def __init__(self, tag: str, folder: Path, pid: int | None, child: "subprocess.Popen[bytes] | None") -> None:
        self._tag = tag
        self._folder = folder
        self._pid = pid
        self._child = child

    async def wait(self) -> RankExit:
        while self._runs():  # noqa: ASYNC110  the end of a process of somebody else rings no bell
            await asyncio.sleep(_POLL_S)
        code = self._child.returncode if self._child is not None else None
        with suppress(FileNotFoundError, ValueError, KeyError):
            code = int(json.loads((self._folder / "exit.json").read_bytes())["code"])
        lines = (await asyncio.to_thread(self._end_of_log, _TAIL_BYTES)).splitlines()
        return RankExit(code, "\n".join(line for line in lines[-_TAIL_LINES:] if line.strip()))

    async def stop(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        if grace_s > 0 and self._runs() and self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            while time.monotonic() < deadline and len(await asyncio.to_thread(_processes_of, self._tag)):
                self._runs()
                await asyncio.sleep(_POLL_S)
        await end_processes(self._tag)
        if self._child is not None:
            self._child.wait()

    async def look(self) -> RankStatus:
        return RankStatus()

    async def logs(self, max_bytes: int) -> Sequence[RankLog]:
        return [RankLog("ranks", await asyncio.to_thread(self._end_of_log, max_bytes))]

    def _runs(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._pid is not None and _is_of(self._pid, self._tag)

    def _end_of_log(self, max_bytes: int) -> str:
        try:
            with (self._folder / "log.txt").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - max_bytes))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def _is_of(pid: int, tag: str) -> bool:
    """Tell whether a process runs and belongs to a job; a number that was given to another process since does not."""
    try:
        process = psutil.Process(pid)
        return _tag_of(process) == tag and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


async def end_processes(tag: str) -> None:
    """Kill every process of a job and wait until none is left. UnavailableError where they do not go."""
    deadline = time.monotonic() + _KILL_S
    while left := await asyncio.to_thread(_processes_of, tag):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"processes {[process.pid for process in left]} do not end when killed: look at them."
            )
        await asyncio.sleep(_POLL_S)


class LocalLauncher:
    """
    Starts jobs as processes of this machine.

    Args:
        work_dir: Where logs and exit codes lie; also what tells one installation's processes from another's.
    """

    ranks_outlive_controller = False

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir.resolve()
        self._groups: dict[str, LocalGroup] = {}

    async def check(self, job: RankJob) -> None:
        """Nothing keeps a process of this machine from being started."""

    async def start(self, job: RankJob, register: Callable[[Mapping[str, Any]], Awaitable[None]]) -> LocalGroup:
        folder = self._work_dir / job.key
        tag = self._tag(job.key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
        with (folder / "log.txt").open("wb") as log:
            child = subprocess.Popen(  # noqa: S603, ASYNC220  our own module; returns at once
                [*_GATE, *_command(job, folder)],
                env={**inherited, **job.environment, JOB_VARIABLE: tag},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            await register(
                {
                    "host": platform.node(),
                    "pid": child.pid,
                    "start_time": psutil.Process(child.pid).create_time(),
                    "log": str(folder / "log.txt"),
                }
            )
        except BaseException:
            child.kill()
            child.communicate()
            raise
        _open_gate(child)
        group = self._groups[tag] = LocalGroup(tag, folder, child.pid, child)
        return group

    async def find(self, key: str, record: Mapping[str, Any]) -> LocalGroup:
        tag = self._tag(key)
        if tag in self._groups:
            return self._groups[tag]
        here = record.get("host") == platform.node()
        pid = int(record["pid"]) if here else None
        if not here:
            _log.warning("ranks_on_another_host", job=key, host=record.get("host"))
        return LocalGroup(tag, self._work_dir / key, pid, None)

    async def clear(self, key: str) -> None:
        group = self._groups.pop(self._tag(key), None)
        if group is None:
            await end_processes(self._tag(key))
        else:
            await group.stop(0)

    def _tag(self, key: str) -> str:
        return f"{self._work_dir}#{key}"


def _open_gate(child: "subprocess.Popen[bytes]") -> None:
    """Let the program run; one that was killed meanwhile is noticed by whoever waits for it."""
    gate = child.stdin
    if gate is not None:
        with suppress(BrokenPipeError), gate:
            gate.write(b"go\n")


def _command(job: RankJob, folder: Path) -> list[str]:
    if job.num_ranks == 0:
        return [sys.executable, "-m", job.module]
    return [
        *(sys.executable, "-m", "weft_trainer.adapters.torchrun", str(folder / "exit.json")),
        *("--nnodes", "1", "--nproc-per-node", str(job.num_ranks), "--max-restarts", "0"),
        *("--shutdown-timeout", str(_SHUTDOWN_S)),
        # Without it torchrun leaves a folder a job in the machine's own for temporary files.
        *("--log-dir", str(folder / "torchrun")),
        *("--master-addr", "127.0.0.1", "--master-port", str(_free_port())),
        *("-m", job.module),
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
