"""
A transcoder in the bucket: circuit-tracer's layout, read a layer or a feature at a time.

Features may write to fewer layers than there are from their own on, down to their own alone.

Legend: F features of a layer, D d_model, S target layers from a feature's own on.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["EncoderLayer", "TranscoderManifest", "TranscoderReader"]

_DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
_MAX_HEADER_BYTES = 1 << 20
_JOINT = "joint_top_k"
_COUNTING = ("top_k", _JOINT)
_THRESHOLDS = ("threshold", "relu", "")
_GAP_BYTES = 1 << 16
_RUN_BYTES = 1 << 25

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TranscoderManifest:
    """
    What a transcoder says of itself; `top_k` features of a layer fire, or of a layer in the mean where they compete
    `over_layers`; 0 where thresholds decide.
    """

    transcoder: str
    model: str
    model_revision: str
    input_hook: str
    output_hook: str
    top_k: int = 0
    over_layers: bool = False


@dataclass(frozen=True)
class EncoderLayer:
    """
    One layer's encoder; `threshold_F` is there for JumpReLU, `w_skip_DD` [outputs, inputs] for a linear skip,
    `rank_norm_F` where features compete over layers.
    """

    w_enc_FD: Array
    b_enc_F: Array
    b_dec_D: Array
    threshold_F: Array | None
    w_skip_DD: Array | None
    rank_norm_F: Array | None = None

    def only(self, features: Array) -> "EncoderLayer":
        """The same of some features, by their indices."""
        return replace(
            self,
            w_enc_FD=self.w_enc_FD[features],
            b_enc_F=self.b_enc_F[features],
            threshold_F=None if self.threshold_F is None else self.threshold_F[features],
            rank_norm_F=None if self.rank_norm_F is None else self.rank_norm_F[features],
        )


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class TranscoderReader:
    """
    Reads what `transcoders/{id}/manifest.json` names: encoders whole, decoders only for the features asked for.

    Attributes:
        mark: What tells it from another one that had its name: the hex SHA-256 of its manifest.

    Raises:
        NotFoundError: There is no such transcoder.
        FailedPreconditionError: Its hooks, or how it chooses features, are not ones that a graph can be made for.
        DataLossError: Its manifest does not say how many features it keeps.
    """

    def __init__(self, store: ObjectStore, transcoder: str) -> None:
        self._store = store
        self._entries: dict[str, dict[str, _Entry]] = {}
        try:
            manifest = store.get(f"transcoders/{transcoder}/manifest.json")
        except NotFoundError:
            raise NotFoundError(
                f"no transcoder transcoders/{transcoder}: export or import one first, or list those that there are"
            ) from None
        document = json.loads(manifest)
        self.mark = hashlib.sha256(manifest).hexdigest()
        # Files that were taken over lie where they lay.
        self._prefix = str(document.get("prefix") or f"transcoders/{transcoder}/")
        self.manifest = TranscoderManifest(
            transcoder=transcoder,
            model=str(document["model"]).removeprefix("models/"),
            model_revision=str(document.get("model_revision", "")),
            input_hook=str(document.get("input_hook", "mlp_in")),
            output_hook=str(document.get("output_hook", "mlp_out")),
            top_k=_top_k(transcoder, document),
            over_layers=document.get("activation") == _JOINT,
        )
        if self.manifest.input_hook not in ("mlp_in", "resid_mid") or self.manifest.output_hook != "mlp_out":
            raise FailedPreconditionError(
                f"transcoders/{transcoder} reads {self.manifest.input_hook} and predicts {self.manifest.output_hook}: "
                "a graph needs one that reads mlp_in or resid_mid and predicts mlp_out"
            )

    def has_layer(self, layer: int) -> bool:
        """Whether the transcoder reaches up to `layer`."""
        try:
            self._header(f"W_enc_{layer}.safetensors")
        except NotFoundError:
            return False
        return True

    def encoder_shape(self, layer: int) -> tuple[int, int]:
        """Features and d_model of one layer."""
        num_features, d_model = self._entry(f"W_enc_{layer}.safetensors", f"W_enc_{layer}").shape
        return num_features, d_model

    def encoder(self, layer: int) -> EncoderLayer:
        """Read one layer's encoder whole."""
        file = f"W_enc_{layer}.safetensors"
        has_threshold = f"threshold_{layer}" in self._header(file)
        return EncoderLayer(
            w_enc_FD=self._read(file, f"W_enc_{layer}"),
            b_enc_F=self._read(file, f"b_enc_{layer}"),
            b_dec_D=self._read(file, f"b_dec_{layer}"),
            threshold_F=self._read(file, f"threshold_{layer}") if has_threshold else None,
            w_skip_DD=self.skip(layer),
            rank_norm_F=self._read(file, f"rank_norm_{layer}") if self.manifest.over_layers else None,
        )

    def encoder_rows(self, layer: int, low: int, high: int) -> tuple[Array, Array, Array]:
        """Read weights, biases and thresholds (0 where there are none) of the features `low` to `high` of one layer."""
        file = f"W_enc_{layer}.safetensors"
        bias_F = self._read(file, f"b_enc_{layer}", low, high)
        threshold_F = np.zeros_like(bias_F)
        if f"threshold_{layer}" in self._header(file):
            # One for all features is broadcast.
            is_single = self._entry(file, f"threshold_{layer}").shape[0] == 1
            threshold_F += self._read(file, f"threshold_{layer}", *((0, 1) if is_single else (low, high)))
        return self._read(file, f"W_enc_{layer}", low, high), bias_F, threshold_F

    def encoder_scalars(self, layer: int, index: int) -> tuple[float, float | None]:
        """Read one feature's bias and, where it has one, its threshold."""
        _, bias_F, threshold_F = self.encoder_rows(layer, index, index + 1)
        has_threshold = f"threshold_{layer}" in self._header(f"W_enc_{layer}.safetensors")
        return float(bias_F[0]), float(threshold_F[0]) if has_threshold else None

    def skip(self, layer: int) -> Array | None:
        """Read one layer's linear skip, if there is one."""
        file, name = f"W_enc_{layer}.safetensors", f"W_skip_{layer}"
        return self._read(file, name) if name in self._header(file) else None

    def decoders(self, layer: int, features: npt.NDArray[np.int64]) -> Iterator[tuple[int, Array]]:
        """
        Read decoders of some features of one layer.

        Args:
            layer: The layer that the features read.
            features: Indices, ascending, without repeats.

        Yields:
            Where a run of these features starts in `features`, and their decoders [n, S, D]; 32 MiB a run at most,
            or one feature.
        """
        file, name = f"W_dec_{layer}.safetensors", f"W_dec_{layer}"
        entry = self._entry(file, name)
        row_bytes = entry.size // entry.shape[0]
        first = 0
        while first < len(features):
            last = first
            while (
                last + 1 < len(features)
                and (features[last + 1] - features[last] - 1) * row_bytes <= _GAP_BYTES
                and (features[last + 1] - features[first] + 1) * row_bytes <= _RUN_BYTES
            ):
                last += 1
            low, high = int(features[first]), int(features[last]) + 1
            rows = self._read(file, name, low, high)
            yield first, rows[features[first : last + 1] - low]
            first = last + 1

    def _header(self, file: str) -> dict[str, _Entry]:
        if file not in self._entries:
            key = self._prefix + file
            length = int.from_bytes(self._store.get(key, offset=0, length=8), "little")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise DataLossError(f"{key} is no safetensors file: its header claims {length} bytes")
            try:
                header = json.loads(self._store.get(key, offset=8, length=length))
                entries = {
                    name: _Entry(
                        value["dtype"],
                        tuple(value["shape"]),
                        8 + length + value["data_offsets"][0],
                        value["data_offsets"][1] - value["data_offsets"][0],
                    )
                    for name, value in header.items()
                    if name != "__metadata__"
                }
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataLossError(f"{key} is no safetensors file: its header cannot be read") from error
            self._entries[file] = entries
        return self._entries[file]

    def _entry(self, file: str, name: str) -> _Entry:
        entry = self._header(file).get(name)
        if entry is None or entry.dtype not in _DTYPES:
            raise DataLossError(
                f"{self._prefix}{file} holds no floating-point tensor {name}; export the transcoder again"
            )
        if entry.size != int(np.prod(entry.shape)) * np.dtype(_DTYPES[entry.dtype]).itemsize:
            raise DataLossError(
                f"{self._prefix}{file}: the size of {name} does not fit its shape; export the transcoder again"
            )
        return entry

    def _read(self, file: str, name: str, low: int = 0, high: int | None = None) -> Array:
        entry = self._entry(file, name)
        rows = entry.shape[0] if high is None else high
        row_bytes = entry.size // entry.shape[0]
        raw = self._store.get(
            self._prefix + file, offset=entry.start + low * row_bytes, length=(rows - low) * row_bytes
        )
        if len(raw) != (rows - low) * row_bytes:
            raise DataLossError(f"{self._prefix}{file} is cut short; export the transcoder again")
        array: Array = np.frombuffer(raw, dtype=_DTYPES[entry.dtype]).reshape(rows - low, *entry.shape[1:])
        if entry.dtype == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def _top_k(transcoder: str, document: dict[str, Any]) -> int:
    """How many features of a layer a manifest says are kept, 0 where thresholds decide."""
    activation = document.get("activation", "")
    if activation in _THRESHOLDS:
        return 0
    if activation not in _COUNTING:
        raise FailedPreconditionError(
            f"transcoders/{transcoder} chooses its features by {str(activation)[:40]!r}, which this release does not "
            f"know: a graph needs one of {', '.join((*_THRESHOLDS[:2], *_COUNTING))}"
        )
    top_k = document.get("top_k")
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise DataLossError(
            f"the manifest of transcoders/{transcoder} says activation {activation} and top_k {str(top_k)[:40]!r}: "
            "expected a whole number above 0; export or import it again"
        )
    return top_k
