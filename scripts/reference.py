"""
Write the reference pages that come from the code: `docs/reference/rpc.md` from `proto/`, `docs/reference/settings.md`
from the settings classes, `docs/reference/metrics.md` from what the services export. The pages are made anew for every
build of the documentation and are not committed.
"""

import importlib
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from metrics_reference import metrics_page
from proto import ROOT, write_image
from pydantic_core import PydanticUndefined

REFERENCE = ROOT / "docs" / "reference"
SETTINGS = {
    "activations": "weft_activations.settings:ActivationsSettings",
    "cache": "weft_cache.settings:CacheSettings",
    "trainer": "weft_trainer.settings:TrainerSettings",
    "attribution": "weft_attribution.settings:AttributionSettings",
    "console": "weft_console.settings:ConsoleSettings",
}
_TYPES = {
    value.number: value.name.removeprefix("TYPE_").lower()
    for value in descriptor_pb2.FieldDescriptorProto.Type.DESCRIPTOR.values
}
_FieldPb = descriptor_pb2.FieldDescriptorProto


class _Comments:
    """The leading comments of one proto file, by the path of what they stand before."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._by_path = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    def __call__(self, *path: int) -> str:
        return " ".join(self._by_path.get(path, "").split())


def _type_of(field: descriptor_pb2.FieldDescriptorProto) -> str:
    name = field.type_name.lstrip(".") if field.type_name else _TYPES[field.type]
    return f"repeated {name}" if field.label == _FieldPb.LABEL_REPEATED else name


def _service_lines(file: descriptor_pb2.FileDescriptorProto, comment: _Comments) -> list[str]:
    lines: list[str] = []
    for number, service in enumerate(file.service):
        lines += [f"### {service.name}", "", comment(6, number), ""]
        lines += ["| RPC | takes | gives | |", "| --- | --- | --- | --- |"]
        for index, method in enumerate(service.method):
            takes = ("stream " if method.client_streaming else "") + method.input_type.rpartition(".")[2]
            gives = ("stream " if method.server_streaming else "") + method.output_type.rpartition(".")[2]
            lines.append(f"| {method.name} | {takes} | {gives} | {comment(6, number, 2, index)} |")
        lines.append("")
    return lines


def _message_lines(file: descriptor_pb2.FileDescriptorProto, comment: _Comments) -> list[str]:
    lines: list[str] = []
    for number, message in enumerate(file.message_type):
        lines += [f"### {message.name}", "", comment(4, number), ""]
        if message.field:
            lines += ["| field | number | type | |", "| --- | --- | --- | --- |"]
            lines += [
                f"| {field.name} | {field.number} | {_type_of(field)} | {comment(4, number, 2, index)} |"
                for index, field in enumerate(message.field)
            ]
            lines.append("")
    for number, enum in enumerate(file.enum_type):
        lines += [f"### {enum.name}", "", comment(5, number), "", "| value | number | |", "| --- | --- | --- |"]
        lines += [
            f"| {value.name} | {value.number} | {comment(5, number, 2, index)} |"
            for index, value in enumerate(enum.value)
        ]
        lines.append("")
    return lines


def rpc_page() -> str:
    """Return the page of all RPCs, messages and enums, with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        image = descriptor_pb2.FileDescriptorSet.FromString(write_image(Path(folder)).read_bytes())
    lines = ["# RPCs", "", "Made from `proto/`. Every service also answers `grpc.health.v1` and reflection.", ""]
    package = ""
    for file in image.file:
        if not file.package.startswith("weft."):
            continue
        if file.package != package:
            package = file.package
            lines += [f"## {package}", ""]
        comment = _Comments(file)
        lines += _service_lines(file, comment) + _message_lines(file, comment)
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the page of all settings with their types, defaults and docstrings."""
    lines = [
        "# Settings",
        "",
        "Made from the settings classes. A setting is an environment variable of its service.",
        "",
    ]
    for service, where in SETTINGS.items():
        module, _, name = where.partition(":")
        settings = getattr(importlib.import_module(module), name)
        prefix = settings.model_config["env_prefix"]
        lines += [f"## {service}", "", "| variable | type | default | |", "| --- | --- | --- | --- |"]
        for field_name, field in settings.model_fields.items():
            kind = getattr(field.annotation, "__name__", None) or str(field.annotation)
            default = "" if field.default is PydanticUndefined else f"`{field.default}`"
            about = " ".join((field.description or "").split())
            lines.append(f"| `{prefix}{field_name.upper()}` | {str(kind).replace('|', 'or')} | {default} | {about} |")
        lines.append("")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    (REFERENCE / "rpc.md").write_text(rpc_page())
    (REFERENCE / "settings.md").write_text(settings_page())
    (REFERENCE / "metrics.md").write_text(metrics_page())
