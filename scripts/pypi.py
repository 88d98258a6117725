"""Install a tool that comes as a wheel, Node or Go, into a folder of the user's cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    """Give the folder of the user's cache that is weft's."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft"


def install(folder: Path, *requirements: str) -> None:
    """
    Install pinned wheels into a folder, which appears whole or not at all.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(part)]
    subprocess.run([*_pip(), "install", *options, *requirements], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _pip() -> list[str]:
    """Find a pip: this environment's, or that of the tools beside it, since environments made by uv have none."""
    for python in (Path(sys.executable), ROOT / ".weft" / "tools" / "bin" / "python"):
        if (
            python.exists()
            and subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
        ):
            return [str(python), "-m", "pip"]
    sys.exit("there is no pip to install this with; run `make setup` first.")
