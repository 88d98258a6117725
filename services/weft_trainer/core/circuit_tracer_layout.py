"""
Checks files in circuit-tracer's layout by their headers, without reading a weight.

    config.yaml                 model_kind: cross_layer_transcoder, feature_input_hook, feature_output_hook
    W_enc_{i}.safetensors       W_enc_{i} [F, d], b_enc_{i} [F], b_dec_{i} [d], optional threshold_{i} [F]
    W_dec_{i}.safetensors       W_dec_{i} [F, L-i, d]: axis 1 the targets i to L-1

Layers are contiguous from 0. Whatever a file claims, no more than a bounded header of it is read, and nothing is ever
unpickled. Shapes: L layers, F features, d d_model.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError
from weft_store import ObjectInfo, ObjectStore

__all__ = ["LayoutFacts", "inspect_layout"]

_MAX_HEADER_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 64 << 10
_MAX_LAYERS = 1024
_MAX_TENSORS = 16
_ITEM_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# circuit-tracer's name of a hook -> ours; the layer is left out in both.
_INPUT_HOOKS: Mapping[str, str] = {"mlp.hook_in": "mlp_in", "hook_resid_mid": "resid_mid"}
_OUTPUT_HOOKS: Mapping[str, str] = {"hook_mlp_out": "mlp_out"}
_FILE = re.compile(r"W_(enc|dec)_(0|[1-9][0-9]{0,3})\.safetensors")


@dataclass(frozen=True)
class LayoutFacts:
    """
    What the headers say.

    Args:
        num_layers: L.
        num_features: F.
        d_model: d.
        input_hook: Ours.
        output_hook: Ours.
        activation: `threshold` where every layer has one, else `relu`.
        size_bytes: Of all files.
        files: Their names, in order.
    """

    num_layers: int
    num_features: int
    d_model: int
    input_hook: str
    output_hook: str
    activation: str
    size_bytes: int
    files: tuple[str, ...]


def inspect_layout(store: ObjectStore, prefix: str) -> LayoutFacts:
    """
    Check every file under a prefix.

    Raises:
        NotFoundError: There is no config.yaml there.
        FailedPreconditionError: It is another kind of transcoder, or reads a hook that weft does not have.
        DataLossError: A file is missing, cut short, or not what the layout says.
    """
    folder = prefix.rstrip("/") + "/"
    config = _read_config(store, f"{folder}config.yaml")
    found = {info.key[len(folder) :]: info for info in store.list(folder)}
    layers = sorted(int(match[2]) for name in found if (match := _FILE.fullmatch(name)) and match[1] == "enc")
    if not layers or layers != list(range(len(layers))) or len(layers) > _MAX_LAYERS:
        raise DataLossError(
            f"{folder} has W_enc files of layers {layers[:20]}: expected 0, 1, 2, ... without a gap, "
            f"at most {_MAX_LAYERS}. Copy the files again."
        )
    files, with_threshold = ["config.yaml"], 0
    num_features, d_model = 0, 0
    for layer in layers:
        encoder = _shapes(store, folder, f"W_enc_{layer}.safetensors", found)
        if layer == 0:
            num_features, d_model = _first_shape(folder, encoder)
        expected = {
            f"W_enc_{layer}": (num_features, d_model),
            f"b_enc_{layer}": (num_features,),
            f"b_dec_{layer}": (d_model,),
        }
        if f"threshold_{layer}" in encoder:
            expected[f"threshold_{layer}"] = (num_features,)
            with_threshold += 1
        _compare(f"{folder}W_enc_{layer}.safetensors", encoder, expected)
        decoder = _shapes(store, folder, f"W_dec_{layer}.safetensors", found)
        expected = {f"W_dec_{layer}": (num_features, len(layers) - layer, d_model)}
        _compare(f"{folder}W_dec_{layer}.safetensors", decoder, expected)
        files += [f"W_enc_{layer}.safetensors", f"W_dec_{layer}.safetensors"]
    if with_threshold not in (0, len(layers)):
        raise DataLossError(
            f"{with_threshold} of {len(layers)} layers in {folder} have thresholds: expected all or none."
        )
    return LayoutFacts(
        num_layers=len(layers),
        num_features=num_features,
        d_model=d_model,
        input_hook=_hook(config, "feature_input_hook", _INPUT_HOOKS),
        output_hook=_hook(config, "feature_output_hook", _OUTPUT_HOOKS),
        activation="threshold" if with_threshold else "relu",
        size_bytes=sum(found[name].size_bytes for name in files),
        files=tuple(sorted(files)),
    )


def _read_config(store: ObjectStore, key: str) -> dict[str, str]:
    """Read the flat part of a YAML file: `key: value` lines at its left margin."""
    try:
        data = store.get(key, length=_MAX_CONFIG_BYTES + 1)
    except NotFoundError:
        raise NotFoundError(
            f"there is no {key!r}: give the prefix of a folder in circuit-tracer's layout, with its config.yaml.",
            field="prefix",
        ) from None
    if len(data) > _MAX_CONFIG_BYTES:
        raise DataLossError(f"{key!r} has more than {_MAX_CONFIG_BYTES} bytes: it is no config of circuit-tracer's.")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataLossError(f"{key!r} is no text ({error}): copy it again.") from error
    config = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name and not name[0].isspace() and name[0] not in "#-":
            config[name.strip().strip("'\"")] = re.sub(r"\s#.*", "", value).strip().strip("'\"")
    kind = config.get("model_kind", "")
    if kind != "cross_layer_transcoder":
        raise FailedPreconditionError(
            f"{key!r} says model_kind {kind!r}: only cross_layer_transcoder can be imported.", field="prefix"
        )
    return config


def _hook(config: Mapping[str, str], name: str, known: Mapping[str, str]) -> str:
    value = config.get(name, "")
    if value not in known:
        raise FailedPreconditionError(
            f"config.yaml says {name} {value!r}, which weft does not capture: only {', '.join(known)} can be imported.",
            field="prefix",
        )
    return known[value]


def _shapes(store: ObjectStore, folder: str, name: str, found: Mapping[str, ObjectInfo]) -> dict[str, tuple[int, ...]]:
    """Read the header of a safetensors file: names and shapes; the data section must be exactly what it describes."""
    key = folder + name
    if name not in found:
        raise DataLossError(f"{key!r} is missing: copy the files again.")
    size = found[name].size_bytes
    start = store.get(key, length=8)
    length = int.from_bytes(start, "little")
    if len(start) != 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
        raise DataLossError(
            f"{key!r} is no safetensors file: its header would have {length} of {size} bytes, "
            f"at most {_MAX_HEADER_BYTES} are read."
        )
    try:
        header = json.loads(store.get(key, offset=8, length=length))
        if not isinstance(header, dict) or not 1 <= len(header.keys() - {"__metadata__"}) <= _MAX_TENSORS:
            raise ValueError(f"not a table of 1 to {_MAX_TENSORS} tensors")
        tensors = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
        shapes = {tensor: tuple(_whole(dim) for dim in entry["shape"]) for tensor, entry in tensors.items()}
        spans = sorted((*map(_whole, entry["data_offsets"]), _num_bytes(entry)) for entry in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataLossError(f"the header of {key!r} is broken ({error}): copy it again.") from error
    end = 0
    for span in spans:
        if len(span) != 3 or span[0] != end or span[1] - span[0] != span[2]:
            raise DataLossError(
                f"the header of {key!r} describes tensors that overlap, or of other sizes: copy it again."
            )
        end = span[1]
    if 8 + length + end != size:
        raise DataLossError(f"{key!r} has {size} bytes, its header describes {8 + length + end}: copy it again.")
    return shapes


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise ValueError(f"{value!r} is no size")
    return value


def _num_bytes(entry: Mapping[str, Any]) -> int:
    if entry["dtype"] not in _ITEM_BYTES:
        raise ValueError(f"dtype {entry['dtype']!r} is not one of {', '.join(_ITEM_BYTES)}")
    return math.prod(map(_whole, entry["shape"])) * _ITEM_BYTES[entry["dtype"]]


def _first_shape(folder: str, encoder: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    shape = encoder.get("W_enc_0", ())
    if len(shape) != 2 or 0 in shape:
        raise DataLossError(
            f"{folder}W_enc_0.safetensors has W_enc_0 of shape {list(shape)}: expected [features, d_model]."
        )
    return shape[0], shape[1]


def _compare(key: str, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if dict(shapes) != dict(expected):
        raise DataLossError(f"{key!r} holds {_table(shapes)}: expected {_table(expected)}.")


def _table(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name[:40]} {list(shape)}" for name, shape in sorted(shapes.items()))
