"""Reads the JSON that stands beside weights, one named value at a time."""

import json
from collections.abc import Mapping
from typing import Any

from weft_clt.formats.files import LayoutFiles, read_text
from weft_common.errors import DataLossError

__all__ = ["boolean", "positive", "read_json_table"]

_MOST = 1 << 31


def read_json_table(files: LayoutFiles, name: str) -> Mapping[str, Any]:
    """Read a file that holds one JSON object. NotFoundError, DataLossError."""
    try:
        value = json.loads(read_text(files, name))
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"'{files.where}{name}' is no JSON ({error}): copy it again.") from error
    if not isinstance(value, dict):
        raise DataLossError(f"'{files.where}{name}' holds no JSON object: copy it again.")
    return value


def positive(config: Mapping[str, Any], key: str, name: str, most: int = _MOST) -> int:
    """Return a whole number from 1 on. DataLossError."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise DataLossError(f"{name} says {key} is {str(value)[:40]}: expected a whole number, 1 to {most}.")
    return value


def boolean(config: Mapping[str, Any], key: str, name: str, *, default: bool | None = None) -> bool:
    """Return a truth value. DataLossError where it is none, or is missing and has no default."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise DataLossError(f"{name} says {key} is {str(value)[:40]}: expected true or false.")
    return value
