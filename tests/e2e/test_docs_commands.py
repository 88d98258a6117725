"""
Every command in the documentation, run as a reader would run it.

The pages come in the order of the index, in one folder with a small demo's bucket: a page may use what an earlier one
made, and says so. A page's blocks run one after the other in one shell; those of Python are programs of their own. A
page that starts services itself finds none running, every other one finds them up.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_blocks import ROOT, RUN_LANGUAGES, Block, blocks, pages
from embedded_weft import Embedded, clean_environment
from small_demo import SmallDemo

from weft_client.local.supervisor import supervisor_pid

pytestmark = [pytest.mark.e2e, pytest.mark.real, pytest.mark.timeout(900)]

PAGE_S = 300
RUN = {
    page: run
    for page in pages()
    if (run := [block for block in blocks(page) if block.language in RUN_LANGUAGES and block.reason is None])
}


@pytest.fixture(scope="module")
def reader(small_demo: SmallDemo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A copy of the demo's folder with the environment in it, as in a checkout."""
    run = small_demo.copied_to(tmp_path_factory.mktemp("reader"))
    (run.folder / ".venv").symlink_to(sys.prefix)
    yield run
    run.weft("down")


def _script(page_blocks: list[Block], progress: Path, programs: Path) -> str:
    lines = ["set -eo pipefail"]
    for block in page_blocks:
        lines.append(f"echo {block.place} > {progress}")
        if block.language == "python":
            program = programs / f"{block.page.stem}_{block.line}.py"
            program.write_text(block.text)
            lines.append(f"python {program}")
        else:
            lines.append(block.commands())
    return "\n".join(lines)


def _starts_services(page_blocks: list[Block]) -> bool:
    return any("weft up" in block.text for block in page_blocks if block.language != "python")


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs_as_written(page: Path, reader: Embedded, tmp_path: Path) -> None:
    """Every block of the page ends with exit status 0."""
    running = supervisor_pid(reader.layout) is not None
    wanted = not _starts_services(RUN[page])
    if running != wanted:
        result = reader.weft("up" if wanted else "down")
        assert result.returncode == 0, result.stderr
    progress = tmp_path / "progress"
    paths = [str(Path(sys.prefix) / "bin"), os.environ["PATH"]]
    result = subprocess.run(
        ["bash", "-c", _script(RUN[page], progress, tmp_path)],
        cwd=reader.folder,
        # A browser that is content with every address, and configuration that is nobody's.
        env=clean_environment()
        | {"PATH": os.pathsep.join(paths), "BROWSER": "true", "XDG_CONFIG_HOME": str(reader.folder / "config")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PAGE_S,
        check=False,
    )
    assert result.returncode == 0, f"{progress.read_text().strip()}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
