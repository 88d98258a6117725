"""Benchmarks are run by hand: that they still find what they import is checked here."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BENCHMARKS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py"))


def module(name: str, *folders: Path) -> Path | None:
    """The file of a module of ours."""
    for folder in (ROOT / "services", ROOT / "tests", *folders):
        place = folder.joinpath(*name.split("."))
        if place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
        if (place / "__init__.py").is_file():
            return place / "__init__.py"
    return None


@cache
def names(path: Path) -> set[str]:
    """What can be taken from a file: what it binds, and the modules of a package."""
    found = {each.stem for each in path.parent.iterdir()} if path.name == "__init__.py" else set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update((each.asname or each.name).partition(".")[0] for each in node.names)
    return found


@pytest.mark.parametrize("path", BENCHMARKS, ids=str)
def test_benchmark_imports_only_what_is_there(path: Path) -> None:
    """Every module of ours that it names exists, and has what is taken from it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None or node.module.startswith("weft."):
            continue
        file = module(node.module, (ROOT / path).parent)
        assert file is not None or not node.module.startswith("weft_"), f"there is no {node.module}"
        if file is not None:
            missing = {each.name for each in node.names} - names(file)
            assert not missing, f"{node.module} has no {missing}"
