"""
The code blocks of README.md and docs/, as a test sees them.

A block of bash, console or python is run by `tests/e2e/test_docs_commands.py`. One that cannot be run in a test has, in
the line before it, a comment that says why:

    <!-- not run: needs a cluster -->
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN_LANGUAGES = frozenset({"bash", "console", "python"})

_FENCE = re.compile(r"(?P<indent> *)```(?P<language>[^\s`]*)[^`]*")
_NOT_RUN = re.compile(r"<!--\s*not run\b:?(?P<reason>.*?)-->", re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#]+\.md)")


@dataclass(frozen=True)
class Block:
    """
    A fenced block.

    Args:
        page: Where it stands.
        line: Number of its first line.
        language: What stands behind the opening fence.
        text: Its lines, without the indent of the fence.
        reason: Why it is not run; None where it is, empty where a comment gives no reason.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> str:
        """What a reader would type: of a console block the lines with a prompt, and those that go on from them."""
        if self.language != "console":
            return self.text
        typed = re.findall(r"^(?:\$|>) ?(.*)$", self.text, re.MULTILINE)
        return "\n".join(typed) + "\n"


def pages() -> list[Path]:
    """Every page in the order in which a newcomer meets it: README, the index, what the index links, the rest."""
    index = ROOT / "docs" / "index.md"
    linked = [(index.parent / match["target"]).resolve() for match in _LINK.finditer(index.read_text())]
    ordered = [ROOT / "README.md", index, *linked, *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in dict.fromkeys(ordered) if page.is_file() and "decisions" not in page.parts]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.fullmatch(lines[number])
        number += 1
        if fence is None:
            continue
        start, indent = number, fence["indent"]
        while number < len(lines) and lines[number].strip() != "```":
            number += 1
        text = "".join(line.removeprefix(indent) + "\n" for line in lines[start:number])
        yield Block(page, start + 1, fence["language"], text, _reason(lines[: start - 1]))
        number += 1


def _reason(before: list[str]) -> str | None:
    """Return the reason of the comment that ends in the last line that is not blank, if there is one."""
    while before and not before[-1].strip():
        before = before[:-1]
    if not before or not before[-1].rstrip().endswith("-->"):
        return None
    comment = "\n".join(before)
    match = _NOT_RUN.fullmatch(comment[comment.rindex("<!--") :].strip())
    return " ".join(match["reason"].split()) if match else None


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page outside fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line
