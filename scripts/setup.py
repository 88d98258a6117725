"""
Make the environment from the hashed locks. Needs Python 3.11 or newer and nothing else.

    python3 scripts/setup.py all    # what the services and the demo need
    python3 scripts/setup.py dev    # the same, and what the tests need
    python3 scripts/setup.py vllm   # what the vLLM backend and its tests need, in an environment of its own

A second run sees from the lock's digest that there is nothing to do.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = {"all": ROOT / ".venv", "dev": ROOT / ".venv", "vllm": ROOT / ".venv-vllm"}
TOOLS = ROOT / ".weft" / "tools"


def run(*command: str | Path) -> None:
    """Run a command and stop with its exit status where it fails."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT, check=False)
    if result.returncode != 0:
        sys.exit(
            f"setup: `{' '.join(map(str, command))}` failed; its message stands above. Mend it and run this again."
        )


def digest(*paths: Path) -> str:
    """Digest what decides an environment's content: the locks, the package's metadata and the interpreter."""
    sha256 = hashlib.sha256(sys.version.encode())
    for path in paths:
        sha256.update(path.read_bytes())
    return sha256.hexdigest()


def find_uv() -> Path:
    """Return uv of the locked version, installed into a folder of the checkout's own."""
    uv, stamp, lock = TOOLS / "bin" / "uv", TOOLS / "stamp", ROOT / "requirements" / "uv.txt"
    if uv.is_file() and stamp.is_file() and stamp.read_text() == digest(lock):
        return uv
    shutil.rmtree(TOOLS, ignore_errors=True)
    try:
        venv.create(TOOLS, with_pip=True)
    except (subprocess.CalledProcessError, OSError):
        sys.exit("setup: this Python cannot make environments with pip. On Debian: apt-get install python3-venv.")
    run(TOOLS / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "-r", lock)
    stamp.write_text(digest(lock))
    return uv


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  this line is what says so
        version = sys.version.split()[0]
        sys.exit(f"setup: Python 3.11 or newer is needed; this is {version}. Try `make PYTHON=python3.11 ...`.")
    if len(sys.argv) != 2 or sys.argv[1] not in ENVIRONMENTS:
        sys.exit("setup: say which environment: `all`, `dev` or `vllm`.")
    profile = sys.argv[1]
    environment = ENVIRONMENTS[profile]
    lock = ROOT / "requirements" / f"{profile}.txt"
    stamp, wanted = environment / f"weft-{profile}", digest(lock, ROOT / "pyproject.toml")
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    uv = find_uv()
    print(f"setup: installing {lock.relative_to(ROOT)} into {environment.name}", flush=True)
    # A folder that is no environment, or one of another interpreter, would otherwise be written into.
    if not (environment / "bin" / "python").exists():
        run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, environment)
    os.environ["VIRTUAL_ENV"] = str(environment)
    # `install` and not `sync`: the demo's lock is a part of the tests' lock, so neither takes away from the other.
    # Compiled here, once, and not by the first processes that import torch, several at a time.
    run(uv, "pip", "install", "--quiet", "--compile-bytecode", "--require-hashes", "--no-deps", "-r", lock)
    run(uv, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
