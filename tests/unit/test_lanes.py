"""`make` gives each lane of tests its folders."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MARK = re.compile(r"\bmark\.(s3|real|distributed|browser|e2e|packaging)\b")


def test_marked_tests_lie_in_the_folders_of_their_lane() -> None:
    """One elsewhere would never run."""
    slow = re.search(r"^SLOW_TESTS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert slow
    found = {
        (path.relative_to(ROOT), mark)
        for folder in ("tests", "services")
        for path in (ROOT / folder).rglob("*.py")
        for mark in _MARK.findall(path.read_text())
    }
    assert found
    for path, mark in found:
        folders = ["tests/packaging"] if mark == "packaging" else slow[1].split()
        assert any(path.is_relative_to(folder) for folder in folders), (path, mark)
