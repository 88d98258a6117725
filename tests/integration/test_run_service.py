"""A service as a process: how it starts, stops, and refuses to start."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytestmark = pytest.mark.e2e

SERVICE = textwrap.dedent(
    """
    import asyncio, sys
    from contextlib import asynccontextmanager

    import grpc
    from pydantic_settings import SettingsConfigDict
    from weft_common.errors import FailedPreconditionError, UnavailableError
    from weft_common.server import Registration, run_service
    from weft_common.settings import ServiceSettings, load_settings

    class ExampleSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="WEFT_EXAMPLE_", frozen=True)
        mode: str = ""

    settings = load_settings(ExampleSettings)

    async def sleep(request, context):
        print("begun", flush=True)
        await asyncio.sleep(float(request))
        print("ended", flush=True)
        return b"done"

    @asynccontextmanager
    async def build():
        if settings.mode == "wrong":
            raise FailedPreconditionError("no model at /nowhere; set WEFT_EXAMPLE_MODELS_DIR")
        if settings.mode == "away":
            raise UnavailableError("the bucket does not answer")
        if settings.mode == "slow":
            print("building", flush=True)
            await asyncio.sleep(60)
        handler = grpc.method_handlers_generic_handler(
            "weft.Example", {"Sleep": grpc.unary_unary_rpc_method_handler(sleep)}
        )
        yield [Registration("weft.Example", lambda server: server.add_generic_rpc_handlers((handler,)))]
        print("closed", flush=True)

    run_service("example", settings, build)
    """
)


class Process:
    def __init__(self, folder: Path, port: int, **variables: str) -> None:
        self.target = f"127.0.0.1:{port}"
        script = folder / "service.py"
        script.write_text(SERVICE)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
        environment |= {"WEFT_EXAMPLE_TOKEN": "t", "WEFT_EXAMPLE_PORT": str(port), **variables}
        self.popen = subprocess.Popen(
            [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def health(self) -> int | None:
        with grpc.insecure_channel(self.target) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return None
            return int(answer.status)

    def wait_for(self, status: int) -> None:
        until = time.monotonic() + 30
        while self.health() != status:
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)

    def end(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=30)
        return self.popen.returncode, out, err


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.communicate()


def test_sigterm_drains_and_exits_0(tmp_path: Path, port: int, processes: list[Process]) -> None:
    """A call that is open at SIGTERM gets its answer, then what was built is closed, then the process ends with 0."""
    process = Process(tmp_path, port)
    processes.append(process)
    process.wait_for(health_pb2.HealthCheckResponse.SERVING)
    with grpc.insecure_channel(process.target) as channel:
        call = channel.unary_unary("/weft.Example/Sleep").future(b"1", metadata=(("authorization", "Bearer t"),))
        assert process.line() == "begun"
        process.popen.send_signal(signal.SIGTERM)
        assert call.result(timeout=20) == b"done"
    code, out, _ = process.end()
    assert (code, out.split()) == (0, ["ended", "closed"])


def test_second_signal_ends_the_drain(tmp_path: Path, port: int, processes: list[Process]) -> None:
    """Who asks twice does not wait for open calls."""
    process = Process(tmp_path, port, WEFT_EXAMPLE_DRAIN_S="60")
    processes.append(process)
    process.wait_for(health_pb2.HealthCheckResponse.SERVING)
    with grpc.insecure_channel(process.target) as channel:
        call = channel.unary_unary("/weft.Example/Sleep").future(b"50", metadata=(("authorization", "Bearer t"),))
        assert process.line() == "begun"
        process.popen.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.popen.poll() is None
        process.popen.send_signal(signal.SIGINT)
        code, out, _ = process.end()
        assert call.exception(timeout=10) is not None
    assert (code, out.split()) == (0, ["closed"])


def test_signal_while_starting_exits_0(tmp_path: Path, port: int, processes: list[Process]) -> None:
    """A service that is still loading says NOT_SERVING, and stops at once when told."""
    process = Process(tmp_path, port, WEFT_EXAMPLE_MODE="slow")
    processes.append(process)
    assert process.line() == "building"
    process.wait_for(health_pb2.HealthCheckResponse.NOT_SERVING)
    process.popen.send_signal(signal.SIGTERM)
    code, _, err = process.end()
    assert code == 0
    assert "Traceback" not in err


def test_taken_port_exits_3(tmp_path: Path, port: int, processes: list[Process]) -> None:
    """The message says which variable to change."""
    first = Process(tmp_path, port)
    processes.append(first)
    first.wait_for(health_pb2.HealthCheckResponse.SERVING)
    second = Process(tmp_path, port)
    processes.append(second)
    code, _, err = second.end()
    assert code == 3
    assert "set WEFT_EXAMPLE_PORT to a free port" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("variables", "code", "match"),
    [
        ({"WEFT_EXAMPLE_PORT": "x"}, 2, "WEFT_EXAMPLE_PORT"),
        ({"WEFT_EXAMPLE_MODE": "wrong"}, 2, "set WEFT_EXAMPLE_MODELS_DIR"),
        ({"WEFT_EXAMPLE_MODE": "away"}, 1, "does not answer"),
    ],
)
def test_refusal_to_start_has_its_exit_code(
    tmp_path: Path, port: int, processes: list[Process], variables: dict[str, str], code: int, match: str
) -> None:
    """Wrong settings are 2, a failure is 1; each with a message and no traceback."""
    process = Process(tmp_path, port, **variables)
    processes.append(process)
    found, _, err = process.end()
    assert found == code
    assert match in err
    assert "Traceback" not in err
