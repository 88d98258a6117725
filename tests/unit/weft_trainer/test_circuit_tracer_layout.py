"""Files that others made: what is taken over, what is refused, and that nothing but headers decides."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from weft_common.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, NotFoundError, WeftError
from weft_store import ObjectStore, open_store
from weft_trainer.core.circuit_tracer_layout import inspect_layout
from weft_trainer.core.transcoders import Transcoders

CONFIG = """# made by hand
model_name: "tiny"
model_kind: cross_layer_transcoder
feature_input_hook: mlp.hook_in  # after the norm
feature_output_hook: 'hook_mlp_out'
"""
REVISION = "0" * 64


def _write(num_layers: int = 2, num_features: int = 5, d_model: int = 3, *, thresholds: bool = True) -> ObjectStore:
    store = open_store("memory://")
    store.put("t/config.yaml", CONFIG.encode())
    for layer in range(num_layers):
        encoder = {
            f"W_enc_{layer}": np.zeros((num_features, d_model), np.float32),
            f"b_enc_{layer}": np.zeros(num_features, np.float32),
            f"b_dec_{layer}": np.zeros(d_model, np.float32),
        }
        if thresholds:
            encoder[f"threshold_{layer}"] = np.zeros(num_features, np.float32)
        store.put(f"t/W_enc_{layer}.safetensors", save(encoder))
        decoder = {f"W_dec_{layer}": np.zeros((num_features, num_layers - layer, d_model), np.float16)}
        store.put(f"t/W_dec_{layer}.safetensors", save(decoder))
    return store


@pytest.mark.parametrize(("thresholds", "activation"), [(True, "threshold"), (False, "relu")])
def test_layout_is_read_from_headers(thresholds: bool, activation: str) -> None:
    """Files that the safetensors library wrote are described by their headers alone."""
    facts = inspect_layout(_write(thresholds=thresholds), "t")
    assert (facts.num_layers, facts.num_features, facts.d_model) == (2, 5, 3)
    assert (facts.input_hook, facts.output_hook, facts.activation) == ("mlp_in", "mlp_out", activation)
    assert len(facts.files) == 5


def _without(name: str) -> Callable[[ObjectStore], None]:
    return lambda store: store.delete(f"t/{name}")


def _with(name: str, data: bytes) -> Callable[[ObjectStore], None]:
    def write(store: ObjectStore) -> None:
        store.put(f"t/{name}", data)

    return write


def _header(header: object, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


_F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (_without("config.yaml"), NotFoundError, "config.yaml"),
        (_with("config.yaml", b"model_kind: transcoder_set\n"), FailedPreconditionError, "model_kind"),
        (
            _with("config.yaml", CONFIG.replace("mlp.hook_in", "ln2.hook_normalized").encode()),
            FailedPreconditionError,
            "does not capture",
        ),
        (_with("config.yaml", b"\xff\xfe"), DataLossError, "no text"),
        (_with("config.yaml", b"#" * 70000), DataLossError, "more than"),
        (_without("W_enc_0.safetensors"), DataLossError, "without a gap"),
        (_without("W_dec_1.safetensors"), DataLossError, "missing"),
        (_with("W_enc_3.safetensors", b""), DataLossError, "without a gap"),
        (_with("W_dec_0.safetensors", b"\x80\x04pickle"), DataLossError, "no safetensors"),
        (_with("W_dec_0.safetensors", (1 << 60).to_bytes(8, "little")), DataLossError, "no safetensors"),
        (_with("W_dec_0.safetensors", _header([])), DataLossError, "broken"),
        (_with("W_dec_0.safetensors", _header({"a": {**_F32, "dtype": "I8"}}, b"1234")), DataLossError, "dtype"),
        (_with("W_dec_0.safetensors", _header({"a": {**_F32, "shape": [-1]}}, b"1234")), DataLossError, "no size"),
        (_with("W_dec_0.safetensors", _header({"a": _F32, "b": _F32}, b"1234")), DataLossError, "overlap"),
        (_with("W_dec_0.safetensors", _header({"a": _F32}, b"123")), DataLossError, "describes"),
        (_with("W_dec_0.safetensors", _header({"a": _F32}, b"1234")), DataLossError, "expected W_dec_0"),
        (
            _with("W_enc_1.safetensors", save({"W_enc_1": np.zeros((4, 3), np.float32)})),
            DataLossError,
            "expected W_enc_1",
        ),
    ],
)
def test_layout_refuses_what_is_not_it(spoil: Callable[[ObjectStore], None], error: type[WeftError], says: str) -> None:
    """Each defect has its code, and the message names the file and what was expected."""
    store = _write()
    spoil(store)
    with pytest.raises(error, match=says):
        inspect_layout(store, "t/")


def test_layout_refuses_thresholds_on_some_layers() -> None:
    """Either every layer has thresholds or none has."""
    store, other = _write(), _write(thresholds=False)
    store.put("t/W_enc_1.safetensors", other.get("t/W_enc_1.safetensors"))
    with pytest.raises(DataLossError, match="all or none"):
        inspect_layout(store, "t")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(1, 255), st.booleans())
def test_layout_never_fails_in_another_way(position: int, flip: int, cut: bool) -> None:
    """A flipped bit in a header, or a file cut short, is DATA_LOSS or harmless, never another exception."""
    store = _write()
    data = bytearray(store.get("t/W_enc_0.safetensors"))
    position %= len(data)
    if cut:
        del data[position:]
    else:
        data[position] ^= flip
    store.put("t/W_enc_0.safetensors", bytes(data))
    try:
        facts = inspect_layout(store, "t")
    except DataLossError:
        return
    assert not cut
    assert (facts.num_layers, facts.num_features, facts.d_model) == (2, 5, 3)


async def test_import_makes_a_transcoder_of_files_where_they_lie() -> None:
    """The manifest names the folder; the same import again returns it, another one is refused."""
    store = _write()
    transcoders = Transcoders(store)
    manifest = await transcoders.take_over("mine", "t", "models/tiny", REVISION)
    assert manifest["prefix"] == "t/"
    assert await transcoders.take_over("mine", "t/", "models/tiny", REVISION) == manifest
    assert (await transcoders.get("mine"))["num_features"] == 5
    assert [entry["name"] for entry in await transcoders.all()] == ["transcoders/mine"]
    with pytest.raises(AlreadyExistsError):
        await transcoders.take_over("mine", "t", "models/tiny", "1" * 64)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("A", "t", "models/m", REVISION), "transcoder_id"),
        (("a", "", "models/m", REVISION), "prefix"),
        (("a", "t", "m", REVISION), "model"),
        (("a", "t", "models/m", "abc"), "model_revision"),
        (("a", "../x", "models/m", REVISION), "prefix"),
    ],
)
async def test_import_refuses_malformed_requests(arguments: tuple[str, str, str, str], field: str) -> None:
    """The error names the field."""
    with pytest.raises(WeftError) as caught:
        await Transcoders(_write()).take_over(*arguments)
    assert caught.value.field == field
