"""
Keeps the five services of an embedded run alive, each a process of its own.

A service that dies is started again on the same port with the same settings, so that its clients find it; one that
refuses its settings is not. When the supervisor stops, nothing that it or its services started is left.

    python -m weft_client.local.supervisor ROOT [--bucket URL] [--console-port N] [--stop-with PID]

Keys to a bucket that is named come from WEFT_BUCKET_ACCESS_KEY and WEFT_BUCKET_SECRET_KEY.
"""

import argparse
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from weft_client.endpoints import SERVICES, Endpoints
from weft_client.local.bucket import Bucket
from weft_client.local.layout import Layout, choose_endpoints, service_environment
from weft_common.errors import AlreadyExistsError, WeftError
from weft_common.logging import configure_logging, get_logger

_log = get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Exit statuses after which the same start would fail in the same way. A port that is taken at the first start is
# somebody's server; later it may be a connection that has it for a moment, while its service was away.
_BAD_SETTINGS, _PORT_TAKEN = 2, 3
_MOST_RESTARTS = 5
# glibc otherwise keeps what a thread freed for that thread: activations held a gigabyte more after a harvest.
_MEMORY = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(8 << 20)}
# Five services share the cores, so a thread that waits for another must not spin.
_THREADS = {"OMP_WAIT_POLICY": "passive"}
_RESTART_WINDOW_S = 60.0
_STOP_S = 15.0


def _prctl(option: int, value: int) -> None:
    """Ask the kernel for something that only Linux has; elsewhere do without."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def take_lock(layout: Layout) -> IO[str]:
    """
    Take the lock that one supervisor a folder holds; closing the file gives it back, and so does death.

    Raises:
        AlreadyExistsError: Another supervisor has it.
    """
    layout.root.mkdir(parents=True, exist_ok=True)
    lock = layout.lock_path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise AlreadyExistsError(
            f"weft already runs in {layout.root}: see it with `weft status`, stop it with `weft down`."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def supervisor_pid(layout: Layout) -> int | None:
    """Return the process that holds the lock, or None where nobody does."""
    try:
        with layout.lock_path.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = lock.read().strip()
                return int(text) if text else None
    except FileNotFoundError:
        pass
    return None


@dataclass
class _Service:
    name: str
    environment: dict[str, str]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)
    given_up: bool = False

    def start(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  our own module, our own arguments
                [sys.executable, "-m", f"weft_{self.name}"],
                env={**_MEMORY, **_THREADS, **inherited, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        self.starts.append(time.monotonic())
        _log.info("service_started", service=self.name, pid=self.process.pid)

    def tend(self) -> None:
        """Start the service again if it died and may be started again."""
        if self.process is None or self.given_up:
            return
        status = self.process.poll()
        if status is None:
            return
        recent = [start for start in self.starts if start > time.monotonic() - _RESTART_WINDOW_S]
        final = status == _BAD_SETTINGS or (status == _PORT_TAKEN and len(self.starts) == 1)
        if final or len(recent) > _MOST_RESTARTS:
            self.given_up = True
            _log.error("service_given_up", service=self.name, status=status, log=str(self.log_path))
            return
        _log.warning("service_died", service=self.name, status=status)
        self.start()


class Supervisor:
    """
    Runs the services until told to stop.

    Args:
        layout: The folder of the run.
        endpoints: Ports and tokens, as chosen.
        bucket: What the services keep their things in.
        keep_going: Asked several times a second; False stops everything.
    """

    def __init__(self, layout: Layout, endpoints: Endpoints, bucket: Bucket, keep_going: Callable[[], bool]) -> None:
        self._keep_going = keep_going
        self._services = [
            _Service(name, service_environment(name, layout, endpoints, bucket), layout.log_path(name))
            for name in SERVICES
        ]

    def run(self) -> None:
        """Start everything, tend it, and leave nothing behind."""
        # Ranks whose controller was killed become children of this process, so that it can find and end them.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            for service in self._services:
                service.start()
            while self._keep_going():
                for service in self._services:
                    service.tend()
                _reap_adopted({service.process.pid for service in self._services if service.process})
                time.sleep(0.2)
        finally:
            _stop_descendants()


def _reap_adopted(own: set[int]) -> None:
    """Collect the exit status of processes that were left to us by a service that died."""
    for child in psutil.Process().children():
        if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


def _stop_descendants() -> None:
    """Ask the services to drain, then end whatever is left, ranks of a killed controller included."""
    own = psutil.Process()
    for child in own.children():
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    psutil.wait_procs(own.children(), timeout=_STOP_S)
    while left := [child for child in own.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]:
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=1)


def supervise(
    layout: Layout, *, bucket: Bucket | None = None, console_port: int = 0, stop_with: int | None = None
) -> None:
    """
    Run the services in this process until SIGTERM, SIGINT, or the end of `stop_with`.

    Args:
        layout: The folder of the run.
        bucket: None takes the folder's own.
        console_port: Port of the page; 0 takes any free one.
        stop_with: A process; None waits for a signal only.

    Raises:
        AlreadyExistsError: A supervisor runs here already.
        UnavailableError: The page's port is taken.
    """
    bucket = bucket or layout.bucket
    with take_lock(layout):
        endpoints = choose_endpoints(console_port)
        stopping = False

        def stop(_number: int, _frame: FrameType | None) -> None:
            nonlocal stopping
            stopping = True

        def keep_going() -> bool:
            return not stopping and (stop_with is None or psutil.pid_exists(stop_with))

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        layout.write_endpoints(endpoints, bucket.url)
        try:
            Supervisor(layout, endpoints, bucket, keep_going).run()
        finally:
            layout.endpoints_path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the services of an embedded weft.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--bucket", default=None, help="its URL; a folder of this run's where it is left out")
    parser.add_argument("--console-port", type=int, default=0)
    parser.add_argument("--stop-with", type=int, default=None, help="stop when this process is gone")
    options = parser.parse_args()
    configure_logging("supervisor", "info", "json")
    try:
        supervise(
            Layout(options.root.resolve()),
            bucket=Bucket.named(options.bucket, os.environ) if options.bucket else None,
            console_port=options.console_port,
            stop_with=options.stop_with,
        )
    except WeftError as error:
        sys.stderr.write(f"weft: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
