"""Every built image runs as a cluster runs it: read-only root, uid 10001, no capabilities."""

import os
import re
import signal
import socket
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from image_container import container

ROOT = Path(__file__).resolve().parents[3]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
READY_S = 120.0
# Nobody listens there: a service is ready before its peers are.
NOWHERE = "127.0.0.1:9"
SETTINGS = {
    "activations": {"MODELS_DIR": "/tmp", "CACHE_TARGET": NOWHERE, "BUCKET_URL": "file:///tmp/bucket"},
    "attribution": {"MODELS_DIR": "/tmp", "ACTIVATIONS_TARGET": NOWHERE, "BUCKET_URL": "file:///tmp/bucket"},
    "cache": {"BUCKET_URL": "file:///tmp/bucket"},
    "console": {"CACHE_TARGET": NOWHERE, "TRAINER_TARGET": NOWHERE, "ATTRIBUTION_TARGET": NOWHERE},
    "trainer": {"CACHE_TARGET": NOWHERE, "BUCKET_URL": "file:///tmp/bucket"},
}
WITH_TORCH = ("activations", "attribution", "trainer")
COMPUTES = """
import torch, torch.distributed
assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
weights = torch.randn(64, 64, requires_grad=True)
(weights @ weights).square().mean().backward()
assert bool(torch.isfinite(weights.grad).all()) and torch.distributed.is_gloo_available()
torch.linalg.svd(weights.detach())
try:
    # transformers asks this of every pass over packed sequences, and takes an error for a no.
    torch.cuda.is_current_stream_capturing()
except RuntimeError as error:
    assert "no device" in str(error), error
print("computed on the processor")
"""
COMPILES = """
import pathlib
import numpy
from weft_clt.kernels.loops import sum_squares_loop
assert abs(sum_squares_loop(numpy.full(1000, 2.0, numpy.float32)) - 4000.0) < 1e-3
kept = list(pathlib.Path("/tmp/numba").rglob("*.nbi"))
print(f"{len(kept)} kernels kept")
raise SystemExit(0 if kept else "numba kept nothing")
"""
CLOSED = """
import os, pathlib, shutil, sys
assert (os.getuid(), os.getgid()) == (10001, 10001), (os.getuid(), os.getgid())
for folder in ("/", "/opt/weft", "/opt/app", "/etc", "/var", os.path.dirname(sys.executable)):
    try:
        pathlib.Path(folder, "written").write_text("x")
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written to")
pathlib.Path("/tmp/written").write_text("x")
found = [tool for tool in ("gcc", "cc", "g++", "clang", "make", "uv", "zig", "hatchling") if shutil.which(tool)]
left = [path for path in ("/build", "/opt/tools", "/root/.cache", "/run/secrets") if os.path.exists(path)]
raise SystemExit(f"left behind: {found} {left}" if found or left else 0)
"""

pytestmark = pytest.mark.cluster


def image_of(service: str) -> str:
    """Name the image that was built here, or the one that the environment names."""
    registry, tag = os.environ.get("WEFT_IMAGE_REGISTRY", "localhost"), os.environ.get("WEFT_IMAGE_TAG", VERSION)
    return f"{registry}/weft-{service}:{tag}"


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str) -> tuple[int, str]:
    """Return a URL's status and text; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def run_code(service: str, code: str, folder: Path) -> str:
    """Run Python in an image to its end and return what it printed."""
    log = folder / "log"
    with container(image_of(service), folder, ["/opt/weft/bin/python", "-c", code], {}, log) as process:
        status = process.wait(READY_S)
    assert status == 0, log.read_text()
    return log.read_text()


@pytest.mark.parametrize("service", SETTINGS)
def test_image_serves_on_a_read_only_root(service: str, tmp_path: Path) -> None:
    """The service gets ready, says which version it is, and drains when it is told to stop."""
    prefix, metrics = f"WEFT_{service.upper()}_", f"http://127.0.0.1:{(port := free_port())}"
    environment = {
        f"{prefix}{name}": value
        for name, value in {"TOKEN": "secret", "METRICS_PORT": str(port), **SETTINGS[service]}.items()
    }
    log = tmp_path / "log"
    with container(image_of(service), tmp_path, None, environment, log) as process:
        give_up = time.monotonic() + READY_S
        while ask(f"{metrics}/readyz")[0] != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.2)
        assert ask(f"{metrics}/livez")[0] == 200
        text = ask(f"{metrics}/metrics")[1]
        (build_info,) = re.findall(r"^weft_build_info\{(.*)\} 1", text, re.MULTILINE)
        assert f'="{service}"' in build_info
        assert f'version="{VERSION}"' in build_info
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


@pytest.mark.parametrize("service", [*SETTINGS, "client"])
def test_image_is_closed(service: str, tmp_path: Path) -> None:
    """Nothing but /tmp can be written to, and no compiler, installer or secret was left behind."""
    run_code(service, CLOSED, tmp_path)


@pytest.mark.parametrize("service", WITH_TORCH)
def test_image_computes_without_a_gpu(service: str, tmp_path: Path) -> None:
    """Torch loads, finds no GPU, and computes."""
    assert "computed on the processor" in run_code(service, COMPUTES, tmp_path)


@pytest.mark.parametrize("service", ["trainer", "attribution"])
def test_image_compiles_kernels_into_tmp(service: str, tmp_path: Path) -> None:
    """Numba's cache is where it can be written to."""
    assert "1 kernels kept" in run_code(service, COMPILES, tmp_path)


@pytest.mark.parametrize("service", ["cache", "console", "client"])
def test_image_without_torch_has_none(service: str, tmp_path: Path) -> None:
    """Torch and transformers cannot be found, and are not needed; numba only where activations are decoded."""
    absent = ("torch", "transformers") if service == "cache" else ("torch", "transformers", "numba")
    run_code(service, f"import importlib.util as u; assert not any(map(u.find_spec, {absent!r}))", tmp_path)


def test_client_image_carries_the_command(tmp_path: Path) -> None:
    """`weft` is the entry point and on the path."""
    log = tmp_path / "log"
    with container(image_of("client"), tmp_path, ["weft", "--help"], {}, log) as process:
        assert process.wait(60) == 0, log.read_text()
    assert "datasets" in log.read_text()


def test_trainer_image_carries_ranks_and_exports(tmp_path: Path) -> None:
    """A rank that is told nothing says which settings it misses, and all that it would import is there."""
    run_code(
        "trainer", "import weft_trainer.worker.rank, weft_trainer.worker.reads, weft_trainer.worker.export", tmp_path
    )
    for module in ("weft_trainer.worker", "weft_trainer.worker.export"):
        log = tmp_path / "log"
        with container(image_of("trainer"), tmp_path, ["/opt/weft/bin/python", "-m", module], {}, log) as process:
            assert process.wait(READY_S) != 0
        assert "WEFT_WORKER_RUN" in log.read_text()
