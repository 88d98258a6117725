"""
A training run as a YAML file, checked against `weft.training.v1` before anything is sent.

    run_id: llama-1b-64k
    spec:
      dataset: llama-1b-pile          # or datasets/llama-1b-pile
      num_features: 65536
      activation: ACTIVATION_TOP_K    # or top-k
      top_k: 64

Keys are the names of CreateRunRequest's and TrainingSpec's fields. Fields of the spec that are left out get the values
of `weft_client.specs.training_spec`, or with `recipe: NAME` beside the spec those of a published recipe. A message says
the line, the key, and what was expected.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor

from weft.training.v1 import messages_pb2
from weft_client.names import full_name
from weft_client.specs import recipe_spec, training_spec
from weft_common.errors import InvalidArgumentError, NotFoundError

_MAX_BYTES = 1 << 20
_Field = FieldDescriptor
_INTEGERS = {
    _Field.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    _Field.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _Field.TYPE_FIXED64: (0, (1 << 64) - 1),
}
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")


@dataclass(frozen=True)
class RunFile:
    """
    What a file asks for.

    Args:
        run_id: Id of the run; empty where the file names none.
        spec: How to train, complete.
    """

    run_id: str
    spec: messages_pb2.TrainingSpec


def read_run_file(path: Path) -> RunFile:
    """
    Read and check a file.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: It is no YAML, or a key or a value in it is wrong.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}; write one with run_id and spec in it") from None
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if len(data) > _MAX_BYTES:
        raise InvalidArgumentError(f"{path} has more than {_MAX_BYTES} bytes; a run takes a few lines")
    return _Reader(path).run(text)


class _Reader:
    """Reads one file; knows its name for messages."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def run(self, text: str) -> RunFile:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f":{mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or error
            raise InvalidArgumentError(f"{self._path}{place}: this is no YAML: {problem}") from error
        if root is None:
            raise InvalidArgumentError(f"{self._path} is empty; write run_id and spec into it")
        nodes = dict(self._items(root, "", ("run_id", "spec", "recipe")))
        if "spec" not in nodes:
            raise InvalidArgumentError(f"{self._path} has no spec; write `spec:` and the fields of TrainingSpec below")
        run_id = self._text(nodes["run_id"], "run_id") if "run_id" in nodes else ""
        return RunFile(run_id, self._spec(nodes["spec"], nodes.get("recipe")))

    def _spec(self, root: yaml.Node, recipe: yaml.Node | None) -> messages_pb2.TrainingSpec:
        fields = messages_pb2.TrainingSpec.DESCRIPTOR.fields_by_name
        given = {key: self._value(node, fields[key]) for key, node in self._items(root, "spec", tuple(fields))}
        if "dataset" not in given:
            raise InvalidArgumentError(
                f"{self._path}:{root.start_mark.line + 1}: spec has no dataset; name a sealed one", field="spec.dataset"
            )
        given["dataset"] = full_name("datasets", given["dataset"])
        if recipe is None:
            return training_spec(**given)
        try:
            return recipe_spec(self._text(recipe, "recipe"), **given)
        except InvalidArgumentError as error:
            raise self._error(recipe, "recipe", str(error)) from error

    def _items(self, node: yaml.Node, where: str, known: tuple[str, ...]) -> Iterator[tuple[str, yaml.Node]]:
        """Yield the keys of a mapping, each known and there once."""
        if not isinstance(node, yaml.MappingNode):
            raise self._error(
                node, where or "the file", f"{_shown(node)} was found, expected keys: {', '.join(known[:4])}"
            )
        prefix, seen = f"{where}." if where else "", set()
        for key_node, value in node.value:
            key = str(key_node.value)
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise self._error(key_node, f"{prefix}{key}", f"there is no such key; {hint}")
            if key in seen:
                raise self._error(key_node, f"{prefix}{key}", "the key is there twice; keep one of them")
            seen.add(key)
            yield key, value

    def _value(self, node: yaml.Node, field: Any) -> Any:
        return self._typed(node, f"spec.{field.name}", field)

    def _typed(self, node: yaml.Node, where: str, field: Any) -> Any:
        if field.message_type is not None:
            return self._messages(node, where, field.message_type)
        if field.type in _INTEGERS:
            return self._integer(node, where, *_INTEGERS[field.type])
        if field.type == _Field.TYPE_DOUBLE:
            return self._number(node, where)
        if field.type == _Field.TYPE_BOOL:
            if _tag(node) != "bool":
                raise self._expected(node, where, "true or false")
            return str(node.value).lower() in ("true", "yes", "on")
        if field.type == _Field.TYPE_ENUM:
            return self._enum(node, where, field.enum_type)
        return self._text(node, where)

    def _messages(self, node: yaml.Node, where: str, kind: Any) -> list[dict[str, Any]]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._expected(node, where, f"a list of {kind.name}")
        fields = kind.fields_by_name
        return [
            {
                key: self._typed(value, f"{where}[{index}].{key}", fields[key])
                for key, value in self._items(entry, f"{where}[{index}]", tuple(fields))
            }
            for index, entry in enumerate(node.value)
        ]

    def _text(self, node: yaml.Node, where: str) -> str:
        if _tag(node) != "str":
            raise self._expected(node, where, "text (in quotes, if it looks like a number)")
        return str(node.value)

    def _integer(self, node: yaml.Node, where: str, low: int, high: int) -> int:
        # Decimal only: YAML 1.1 also has octal numbers by a leading zero, and 1:30 for ninety.
        if _tag(node) != "int" or not _DECIMAL.fullmatch(node.value):
            raise self._expected(node, where, "a whole number")
        value = int(node.value)
        if not low <= value <= high:
            raise self._expected(node, where, f"a whole number from {low} to {high}")
        return value

    def _number(self, node: yaml.Node, where: str) -> float:
        # YAML 1.1 takes 2e-3 for text; everybody else takes it for a number.
        if _tag(node) in ("int", "float") or (_tag(node) == "str" and node.style is None):
            try:
                return float(str(node.value).replace("_", ""))
            except ValueError:
                pass
        raise self._expected(node, where, "a number")

    def _enum(self, node: yaml.Node, where: str, enum: Any) -> int:
        first = enum.values_by_number[0].name
        prefix = first.removesuffix("UNSPECIFIED")
        wanted = str(node.value).upper().replace("-", "_") if _tag(node) == "str" else ""
        known = {value.name: value.number for value in enum.values if value.number}
        for name, number in known.items():
            if wanted in (name, name.removeprefix(prefix)):
                return int(number)
        raise self._expected(node, where, f"one of {', '.join(known)}")

    def _expected(self, node: yaml.Node, where: str, wanted: str) -> InvalidArgumentError:
        return self._error(node, where, f"{_shown(node)} was found, expected {wanted}")

    def _error(self, node: yaml.Node, where: str, why: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._path}:{node.start_mark.line + 1}: {where}: {why}", field=where)


def _tag(node: yaml.Node) -> str:
    return str(node.tag).rpartition(":")[2]


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"{_tag(node)} {str(node.value)[:60]!r}" if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a table"
