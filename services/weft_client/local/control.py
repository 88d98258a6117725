"""Starts, finds and stops an embedded run from another process."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from weft_client.endpoints import SERVICES, Endpoint, Endpoints
from weft_client.local.bucket import ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE, Bucket
from weft_client.local.layout import Layout
from weft_client.local.supervisor import supervisor_pid
from weft_common.client import channel
from weft_common.errors import AlreadyExistsError, DeadlineExceededError, FailedPreconditionError, InternalError

_START_S = 120.0
_STOP_S = 40.0


@dataclass(frozen=True)
class ServiceHealth:
    """
    Whether a service answers.

    Args:
        name: Of the service.
        endpoint: Where it should be.
        serving: It says that it serves.
    """

    name: str
    endpoint: Endpoint
    serving: bool


def _grpc_serves(endpoint: Endpoint) -> bool:
    with channel(endpoint.target, **endpoint.channel_arguments) as connection:
        try:
            answer = health_pb2_grpc.HealthStub(connection).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _page_serves(endpoint: Endpoint) -> bool:
    try:
        with urllib.request.urlopen(f"http://{endpoint.target}/healthz", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def check_health(endpoints: Endpoints) -> list[ServiceHealth]:
    """Ask every service whether it serves, a second each at most."""
    return [
        ServiceHealth(name, endpoint, _page_serves(endpoint) if name == "console" else _grpc_serves(endpoint))
        for name, endpoint in ((name, endpoints[name]) for name in SERVICES)
    ]


def _last_lines(layout: Layout, service: str, count: int = 5) -> str:
    try:
        lines = layout.log_path(service).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-count:])


def start(
    layout: Layout,
    *,
    bucket: Bucket | None = None,
    console_port: int = 0,
    stop_with_me: bool = False,
    on_wait: Callable[[list[str]], None] = lambda waiting: None,
) -> Endpoints:
    """
    Start the services in the background and wait until all of them serve.

    Args:
        layout: The folder of the run.
        bucket: What the services keep their things in; None takes the folder's own.
        console_port: Port of the page; 0 takes any free one.
        stop_with_me: Everything stops when this process is gone, however it went.
        on_wait: Told the names of the services that are still awaited.

    Raises:
        AlreadyExistsError: They run already.
        InternalError: The supervisor or a service gave up; the message has the end of its log.
        DeadlineExceededError: They did not serve in time.
        WeftError: The bucket cannot be used.
    """
    running = supervisor_pid(layout)
    if running is not None:
        raise AlreadyExistsError(
            f"weft already runs in {layout.root} (process {running}): "
            "see it with `weft status`, stop it with `weft down`."
        )
    command = [sys.executable, "-m", "weft_client.local.supervisor", str(layout.root)]
    environment = dict(os.environ)
    if bucket is not None:
        bucket.check()
        command += ["--bucket", bucket.url]
        environment |= {ACCESS_KEY_VARIABLE: bucket.access_key or "", SECRET_KEY_VARIABLE: bucket.secret_key or ""}
    command += ["--console-port", str(console_port)]
    command += ["--stop-with", str(os.getpid())] if stop_with_me else []
    log_path = layout.log_path("supervisor")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        # A session of its own: Ctrl-C in the terminal reaches the command, and the command decides what stops.
        supervisor = subprocess.Popen(  # noqa: S603
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        return _wait_until_serving(layout, supervisor, on_wait)
    except BaseException:
        stop(layout, pid=supervisor.pid)
        raise


def _wait_until_serving(
    layout: Layout, supervisor: "subprocess.Popen[bytes]", on_wait: Callable[[list[str]], None]
) -> Endpoints:
    deadline = time.monotonic() + _START_S
    waiting = list(SERVICES)
    while time.monotonic() < deadline:
        if supervisor.poll() is not None:
            raise InternalError(f"weft did not start:\n{_last_lines(layout, 'supervisor')}")
        if supervisor_pid(layout) == supervisor.pid and layout.endpoints_path.exists():
            endpoints = layout.read_endpoints()
            waiting = [health.name for health in check_health(endpoints) if not health.serving]
            if not waiting:
                return endpoints
            _raise_if_given_up(layout, waiting)
        on_wait(waiting)
        time.sleep(0.2)
    raise DeadlineExceededError(
        f"{', '.join(waiting)} did not serve within {_START_S:.0f} s: see {layout.root / 'logs'}."
    )


def _raise_if_given_up(layout: Layout, waiting: list[str]) -> None:
    log = _last_lines(layout, "supervisor", count=50)
    for name in waiting:
        if any("service_given_up" in line and f'"{name}"' in line for line in log.splitlines()):
            raise InternalError(f"{name} cannot start:\n{_last_lines(layout, name)}")


def stop(layout: Layout, *, pid: int | None = None) -> bool:
    """
    Stop the services and wait until nothing of them is left.

    Returns:
        Whether anything ran.

    Raises:
        DeadlineExceededError: The supervisor did not go.
    """
    pid = supervisor_pid(layout) if pid is None else pid
    if pid is None:
        return False
    try:
        supervisor = psutil.Process(pid)
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(timeout=_STOP_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        raise DeadlineExceededError(
            f"weft's supervisor (process {pid}) did not stop within {_STOP_S:.0f} s: "
            f"see {layout.log_path('supervisor')}."
        ) from None
    return True


@contextmanager
def running(
    layout: Layout, *, bucket: Bucket | None = None, on_wait: Callable[[list[str]], None] = lambda waiting: None
) -> Iterator[tuple[Endpoints, bool]]:
    """
    Use the services that run here, or run them for as long as this lasts.

    Args:
        layout: The folder of the run.
        bucket: What the services shall keep their things in; None takes the folder's own, or what those that run have.
        on_wait: Told the names of the services that are still awaited.

    Yields:
        The endpoints, and whether they were there before.

    Raises:
        FailedPreconditionError: Those that run have another bucket.
    """
    if supervisor_pid(layout) is not None:
        if bucket is not None and (there := layout.read_bucket_url()) != bucket.url:
            raise FailedPreconditionError(
                f"The weft that runs in {layout.root} has the bucket {there}, not {bucket.url}: stop it with "
                "`weft down`, leave --bucket out, or name another --folder."
            )
        yield layout.read_endpoints(), True
        return
    endpoints = start(layout, bucket=bucket, stop_with_me=True, on_wait=on_wait)
    try:
        yield endpoints, False
    finally:
        with suppress(KeyboardInterrupt):
            stop(layout)


def memory_bytes(layout: Layout) -> int:
    """Return the memory of all processes of the run, ranks included, as `process_bytes` counts it."""
    pid = supervisor_pid(layout)
    if pid is None:
        return 0
    total = 0
    with suppress(psutil.NoSuchProcess):
        supervisor = psutil.Process(pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process_bytes(process)
    return total


def process_bytes(process: psutil.Process) -> int:
    """
    Return the resident memory of a process, of pages that others have too only its share.

    Six processes have the same libraries and two the same weights mapped: counted in each, they would come to 1.5 GiB
    that nothing takes. Where the system does not tell shares, shared pages count in each.
    """
    with suppress(psutil.AccessDenied, AttributeError):
        return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)
