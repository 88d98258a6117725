"""
Write `docs/reference/chart.md` from the chart's schema and defaults. The page is made anew for every build of the
documentation and is not committed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "weft"
REFERENCE = ROOT / "docs" / "reference" / "chart.md"

Schema = dict[str, Any]


def resolved(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Replace a reference by what it names; what stands beside it wins."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return {**definitions[name], **schema} if name else schema


def walk(schema: Schema, definitions: dict[str, Schema], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Schema]]:
    """Give every value of the schema with its dotted path, parents first."""
    for name, described in schema.get("properties", {}).items():
        part = resolved(described, definitions)
        yield ".".join((*path, name)), part
        items = resolved(part.get("items", {}), definitions)
        yield from walk(items, definitions, (*path, f"{name}[]"))
        yield from walk(part, definitions, (*path, name))


def type_of(schema: Schema, definitions: dict[str, Schema]) -> str:
    """
    Say what a value may be.

    >>> type_of({"enum": ["a", "b"]}, {}), type_of({"type": ["integer", "null"]}, {})
    ('`a`, `b`', 'integer or null')
    """
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {type_of(resolved(schema.get('items', {}), definitions), definitions)}s"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def default_of(path: str, values: dict[str, Any]) -> str:
    """Look the default of a value up; nothing for parents and for parts of lists."""
    found: Any = values
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return ""
        found = found[name]
    return "" if isinstance(found, dict) and found else f"`{json.dumps(found)}`"


def page(schema: Schema, values: dict[str, Any], version: str) -> str:
    """Return the page."""
    definitions = schema["$defs"]
    lines = ["# Values of the chart", "", f"Made from `charts/weft/values.schema.json`, chart {version}. ", ""]
    lines[2] += "Other names are refused at the install."
    for path, described in walk(schema, definitions):
        depth = path.count(".")
        about = described.get("description", f"`{path.rpartition('.')[2]}` of the service's settings.")
        if depth == 0:
            lines += ["", f"## {path}", "", about, ""]
            lines += ["| value | type | default | |", "| --- | --- | --- | --- |"] if "properties" in described else []
            if "properties" not in described:
                lines.append(f"Type: {type_of(described, definitions)}. Default: {default_of(path, values) or 'none'}.")
            continue
        cells = (f"`{path}`", type_of(described, definitions), default_of(path, values), about)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    REFERENCE.write_text(page(schema, values, chart["version"]))


if __name__ == "__main__":
    main()
