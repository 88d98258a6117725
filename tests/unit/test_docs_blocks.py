"""What is asked of the commands on README.md and the pages of docs/, and how they are found there."""

import re
from pathlib import Path

import docs_blocks
import pytest
from docs_blocks import ROOT, RUN_LANGUAGES, blocks, pages, prose

COMMAND = re.compile(r"(    |\t)\s*(\$ )?(weft|make|python3?|\.venv/bin/\w+|pip|kubectl|helm|docker|curl|git|export) ")
SHELLS = frozenset({"sh", "shell", "zsh", "shell-session", "py"})


def test_block_that_is_not_run_says_why() -> None:
    """Every block that no test runs has a reason of some words; the list is printed."""
    left_out = [block for page in pages() for block in blocks(page) if block.reason is not None]
    for block in left_out:
        print(f"{block.place}: not run: {block.reason}")  # noqa: T201  shown with -s, and where this fails
    assert not [block.place for block in left_out if len((block.reason or "").split()) < 3]
    assert not [block.place for block in left_out if block.language not in RUN_LANGUAGES]


def test_commands_stand_in_blocks_that_are_run() -> None:
    """No command hides in an indented block or behind another name of the shell, where no test would run it."""
    hidden = [
        f"{page.relative_to(ROOT)}:{number}" for page in pages() for number, line in prose(page) if COMMAND.match(line)
    ]
    assert hidden == []
    assert not [block.place for page in pages() for block in blocks(page) if block.language in SHELLS]


def test_index_leads_to_every_page() -> None:
    """A page that the index does not link is found by nobody, and its order among the others is open."""
    index = (ROOT / "docs" / "index.md").read_text()
    docs = ROOT / "docs"
    missing = [page for page in pages() if docs in page.parents and f"]({page.relative_to(docs)})" not in index]
    assert missing == [docs / "index.md"]


def test_blocks_are_found_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fences in lists, comments with and without a reason, prompts, and text before the comment."""
    monkeypatch.setattr(docs_blocks, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n```bash\nweft up\n```\n\n- item\n\n  ```console\n  $ weft down\n  stopped\n  ```\n"
        "<!-- not run: needs\na cluster -->\n```bash\nhelm\n```\n<!-- not run -->\n```python\nx\n```\n"
        "<!-- else -->\n```\nplain\n```\n"
    )
    found = list(blocks(page))
    assert [block.language for block in found] == ["bash", "console", "bash", "python", ""]
    assert [block.reason for block in found] == [None, None, "needs a cluster", "", None]
    assert [block.commands() for block in found[:2]] == ["weft up\n", "weft down\n"]
    assert [block.place for block in found[:2]] == ["page.md:3", "page.md:9"]
