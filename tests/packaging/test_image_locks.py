"""The locks that images are built from, and how install.py splits them."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "requirements"
SERVICES = ("activations", "attribution", "cache", "client", "console", "trainer")
PARTS = ("builder", "standins", "torch")

pytestmark = pytest.mark.packaging


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The images' own install script, reading the locks of this checkout."""
    spec = importlib.util.spec_from_file_location("image_install", ROOT / "deploy/images/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "image_install", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOCKS", LOCKS)
    return module


def pins(name: str) -> set[str]:
    """Return the pins of a lock, as package==version."""
    return set(re.findall(r"^([a-z0-9.-]+==[^\s;\\]+)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", [*SERVICES, *PARTS])
def test_lock_is_hashed_and_names_no_index(name: str) -> None:
    """Every line is a pin with hashes; where packages come from is the builder's own affair."""
    text = (LOCKS / f"{name}.txt").read_text()
    assert "://" not in text
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9.-]+==\S+", entry)
        assert "--hash=sha256:" in entry


@pytest.mark.parametrize("name", [*SERVICES, "torch"])
def test_lock_has_the_versions_that_the_tests_have(name: str) -> None:
    """What is in an image is what was tested."""
    assert pins(name) <= pins("dev")


@pytest.mark.parametrize("service", SERVICES)
def test_lock_holds_no_builder(service: str) -> None:
    """What builds weft is not in the lock of what runs it."""
    assert not {pin.split("==")[0] for pin in pins(service)} & {"hatchling", "editables", "pip", "uv"}


@pytest.mark.parametrize("service", ["activations", "attribution", "trainer"])
def test_lock_of_a_service_with_torch_holds_all_of_torchs_own(service: str) -> None:
    """The shared layer's packages have the same versions in the service's own lock."""
    assert pins("torch") <= pins(service)


def test_install_reads_every_entry_with_its_hashes(install: ModuleType) -> None:
    """A package that the lock names twice, by Python's version, keeps both entries."""
    entries = install.read_lock("torch")
    assert len(entries["numpy"]) == 2
    assert sum(map(len, entries.values())) == len(pins("torch"))
    assert all("--hash=sha256:" in entry for group in entries.values() for entry in group)


def test_install_leaves_cudas_packages_out_of_images_for_processors(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU variant installs torch and its Python needs, and stand-ins in the place of CUDA's libraries."""
    installed: list[set[str]] = []
    commands: list[str] = []
    monkeypatch.setattr(install, "install", lambda entries, *target: installed.append(set(entries)))
    monkeypatch.setattr(install, "run", lambda *command: commands.append(" ".join(map(str, command))))
    install.install_torch("cpu")
    install.install_torch("cuda")
    cpu, standins, cuda = installed
    assert {"torch", "numpy", "sympy", "filelock"} <= cpu
    assert not [package for package in cpu if package.startswith(("nvidia", "cuda", "triton"))]
    assert standins == {"pyelftools", "ziglang"}
    assert {"nvidia-cublas", "nvidia-nccl-cu13", "triton", "cuda-bindings"} <= cuda - cpu
    assert len([command for command in commands if "cuda_standins.py" in command]) == 1


def test_install_gives_ranks_on_gpus_a_compiler(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton compiles its launcher in C: the CUDA variant has Zig's compiler under a name that Triton looks for."""
    installed: list[set[str]] = []
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(install, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(install, "install", lambda entries, *target: installed.append(set(entries)))
    monkeypatch.setattr(install, "make_environment", lambda: None)
    install.install_service("trainer", "cuda")
    assert installed[1:] == [{"ziglang"}]
    compiler = tmp_path / "bin" / "clang"
    assert os.access(compiler, os.X_OK)
    assert compiler.read_text().endswith('-m ziglang cc "$@"\n')


@pytest.mark.parametrize("service", SERVICES)
def test_install_gives_a_service_exactly_what_its_lock_holds(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    """The shared layer and the service's own together are the lock, with nothing twice."""
    installed: list[set[str]] = []
    monkeypatch.setattr(install, "install", lambda entries, *target: installed.append(set(entries)))
    monkeypatch.setattr(install, "make_environment", lambda: None)
    install.install_service(service)
    (own,) = installed
    shared = set(install.read_lock("torch")) if "torch" in install.read_lock(service) else set()
    assert not own & shared
    assert own | shared == set(install.read_lock(service))
