"""
Make the synchronous client, `services/weft_client/sync`, from the asyncio one beside it, word by word.

    python scripts/client_sync.py            # write
    python scripts/client_sync.py --check    # exit 1 where the committed files differ
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "services" / "weft_client" / "aio"
TARGET = ROOT / "services" / "weft_client" / "sync"
BIN = Path(sys.executable).parent
NOTE = "# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.\n"
# In order. Everything that is asynchronous in the source is one of these.
WORDS = (
    (r'"""The asyncio client; .*"""', '"""The synchronous client."""'),
    (r"weft_client\.aio", "weft_client.sync"),
    (r"grpc\.aio\.", "grpc."),
    (r"aio_channel", "channel"),
    (r"AsyncStub", "Stub"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"Awaitable\[(\w+)\]", r"\1"),
    (r"\basync (?=def|for|with)", ""),
    (r"\bawait ", ""),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"asyncio\.sleep", "time.sleep"),
    (r"import asyncio", "import time"),
)


def translate(text: str) -> str:
    """
    One module's text, made synchronous.

    >>> translate("async def f(self) -> AsyncIterator[int]:")
    'def f(self) -> Iterator[int]:'
    """
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def generate(target: Path) -> None:
    """Write the synchronous package into a folder."""
    for path in target.glob("*.py"):
        path.unlink()
    for path in sorted(SOURCE.glob("*.py")):
        (target / path.name).write_text(NOTE + translate(path.read_text()))
    config = ["--config", str(ROOT / "pyproject.toml"), "--quiet"]
    subprocess.run(
        [BIN / "ruff", "check", *config, "--select", "F401,I,UP028", "--fix", "--unsafe-fixes", target], check=True
    )
    subprocess.run([BIN / "ruff", "format", *config, target], check=True)


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the committed files differ")
    if not parser.parse_args().check:
        TARGET.mkdir(exist_ok=True)
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = sorted({path.name for base in (fresh, TARGET) for path in base.glob("*.py")})
        stale = [
            name
            for name in names
            if not ((fresh / name).exists() and (TARGET / name).exists())
            or (fresh / name).read_text() != (TARGET / name).read_text()
        ]
    if stale:
        print(f"services/weft_client/sync differs in {', '.join(stale)}: run `python scripts/client_sync.py`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
