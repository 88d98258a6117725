"""
The install steps of the images, each run in a stage that the last one copies from. Only what the locks name by hash.

    python install.py tools                      # uv into /opt/tools
    python install.py torch --variant cpu|cuda   # torch and what it needs into /opt/torch, a layer that images share
    python install.py service NAME               # the rest of a service's packages into /opt/weft, an environment;
                                                 # with --variant cuda, a C compiler for Triton beside them
    python install.py application                # weft itself into /opt/app

The environment finds /opt/torch and /opt/app by a .pth file, so that a change of weft's own code is a small layer.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

BUILD = Path("/build")
LOCKS = BUILD / "requirements"
TOOLS, TORCH, ENVIRONMENT, APPLICATION = Path("/opt/tools"), Path("/opt/torch"), Path("/opt/weft"), Path("/opt/app")
# What torch needs on a GPU only.
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
# For compiling extensions of torch's own.
HEADERS = ("torch/include", "torch/share")
# Bytecode that no clock decides on, so that a build can be repeated byte for byte.
UV = {"UV_LINK_MODE": "copy", "PYC_INVALIDATION_MODE": "UNCHECKED_HASH"}


def run(*command: str | Path) -> None:
    """Run a command; its own output says what failed."""
    subprocess.run([str(part) for part in command], check=True)


def read_lock(name: str) -> dict[str, list[str]]:
    """Return a lock's entries, with their hashes, by package; one with markers may have several."""
    entries: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", (LOCKS / f"{name}.txt").read_text().strip()):
        entries.setdefault(re.split(r"[=\s]", entry, maxsplit=1)[0], []).append(entry)
    return entries


def index_options() -> list[str]:
    """Give uv the index that pip is configured to use, which it does not read itself."""
    asked = subprocess.run([TOOLS / "bin/pip", "config", "get", "global.index-url"], capture_output=True, text=True)
    return ["--default-index", asked.stdout.strip()] if asked.returncode == 0 else []


def install(entries: dict[str, list[str]], *target: str | Path) -> None:
    """Install locked packages and compile them to bytecode."""
    lock = BUILD / "selected.txt"
    lock.write_text("\n".join(entry for package in sorted(entries) for entry in entries[package]) + "\n")
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--compile-bytecode"]
    run(TOOLS / "bin/uv", "pip", "install", *options, *index_options(), *target, "--requirement", lock)


def make_environment() -> None:
    """Make the environment that the service runs in."""
    run(sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT)
    paths = {"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "weft-image.pth").write_text(f"{TORCH}\n{APPLICATION}\n")


def install_tools() -> None:
    run(sys.executable, "-m", "venv", TOOLS)
    pip = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    run(TOOLS / "bin/pip", *pip, "--requirement", LOCKS / "uv.txt", "--requirement", LOCKS / "builder.txt")


def install_torch(variant: str) -> None:
    lock = read_lock("torch")
    if variant == "cpu":
        lock = {package: entries for package, entries in lock.items() if not CUDA.match(package)}
    install(lock, "--python", sys.executable, "--target", TORCH)
    for folder in HEADERS:
        run("rm", "-r", TORCH / folder)
    if variant == "cpu":
        install(read_lock("standins"), "--python", TOOLS / "bin/python")
        run(TOOLS / "bin/python", BUILD / "cuda_standins.py", TORCH / "torch")


# By this name, on the PATH of the image, Triton finds a compiler for the launcher of its kernels.
COMPILER = Path("bin/clang")


def install_service(name: str, variant: str = "cpu") -> None:
    lock = read_lock(name)
    if "torch" in lock:
        lock = {package: entries for package, entries in lock.items() if package not in read_lock("torch")}
    make_environment()
    install(lock, "--python", ENVIRONMENT / "bin/python")
    if variant == "cuda":
        install({"ziglang": read_lock("standins")["ziglang"]}, "--python", ENVIRONMENT / "bin/python")
        compiler = ENVIRONMENT / COMPILER
        compiler.write_text(f'#!/bin/sh\nexec {ENVIRONMENT}/bin/python -m ziglang cc "$@"\n')
        compiler.chmod(0o755)


def install_application() -> None:
    if not (BUILD / "services/weft_console/static/index.html").is_file():
        sys.exit("install: the console's page is not built; run `make page` first, or build with `make images`.")
    make_environment()
    run(TOOLS / "bin/python", "-m", "hatchling", "build", "--target", "wheel", "--directory", BUILD / "dist")
    options = ["--quiet", "--no-deps", "--no-index", "--compile-bytecode"]
    target = ("--python", ENVIRONMENT / "bin/python", "--target", APPLICATION)
    run(TOOLS / "bin/uv", "pip", "install", *options, "--find-links", BUILD / "dist", *target, "weft")
    # uv notes when the wheel was made, which no two builds have in common.
    (note,) = APPLICATION.glob("weft-*.dist-info/uv_cache.json")
    record = note.with_name("RECORD")
    record.write_text("".join(line for line in record.read_text().splitlines(True) if note.name not in line))
    note.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description="One install step of an image.")
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("tools")
    steps.add_parser("torch").add_argument("--variant", choices=("cpu", "cuda"), required=True)
    service = steps.add_parser("service")
    service.add_argument("name")
    service.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    steps.add_parser("application")
    arguments = parser.parse_args()
    os.chdir(BUILD)
    os.environ |= UV
    match arguments.step:
        case "tools":
            install_tools()
        case "torch":
            install_torch(arguments.variant)
        case "service":
            install_service(arguments.name, arguments.variant)
        case _:
            install_application()


if __name__ == "__main__":
    main()
