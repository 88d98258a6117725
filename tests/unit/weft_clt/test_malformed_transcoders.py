"""Broken, foreign and hostile files: each is refused with its own error, and none is unpickled or unfolded."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transcoder_layouts import (
    clt_forge_original,
    llamascopium_original,
    new_folder,
    per_layer_original,
    predict,
    random_transcoder,
)

from weft_clt.formats.circuit_tracer import write_circuit_tracer
from weft_clt.formats.files import FolderFiles, read_text
from weft_clt.formats.opening import detect, open_transcoder, write_transcoder
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError, WeftError

Spoil = Callable[[Path], None]


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def configure(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, **changes}))

    return spoil


def replace(name: str, tensor: str, change: Callable[[Any], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        state = load_file(folder / name)
        state[tensor] = np.array(change(state[tensor]), order="C")
        save_file(state, folder / name)

    return spoil


def drop(name: str, tensor: str) -> Spoil:
    def spoil(folder: Path) -> None:
        state = load_file(folder / name)
        del state[tensor]
        save_file(state, folder / name)

    return spoil


def with_nan(array: Any) -> Any:
    array = array.copy()
    array.flat[-1] = np.nan
    return array


def overwrite(name: str, data: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return spoil


def archive(**arrays: Any) -> Spoil:
    """Write the second layer's params.npz anew."""

    def spoil(folder: Path) -> None:
        path = folder / "layer_1/width_16k/average_l0_70/params.npz"
        with np.load(path, allow_pickle=False) as there:
            state = {**there, **arrays}
        np.savez(path, **{name: array for name, array in state.items() if array is not None})

    return spoil


def bomb(folder: Path) -> None:
    """Write an array whose header claims more than its member holds."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30, 1 << 10)})
    with zipfile.ZipFile(folder / "layer_1/width_16k/average_l0_70/params.npz", "w") as written:
        written.writestr("W_enc.npy", array.getvalue() + b"\0" * 64)


def zeros(folder: Path) -> None:
    """Write an archive that is as it should be, and a thousand times as large once it is read."""
    np.savez_compressed(folder / GEMMA_ARCHIVE, W_enc=np.zeros((3, 1 << 20), "f4"))


def long_directory(folder: Path) -> None:
    """Write an archive whose list of members is larger than what is read of it."""
    with zipfile.ZipFile(folder / "layer_1/width_16k/average_l0_70/params.npz", "w") as written:
        for number in range(160):
            member = zipfile.ZipInfo(f"{number}.npy")
            member.comment = b" " * 65_000
            written.writestr(member, b"")


FORGE, SCOPE, LENS, GEMMA = "clt-forge", "llamascopium", "saelens", "gemmascope"
WEIGHTS = {FORGE: "clt_weights.safetensors", SCOPE: "sae_weights.safetensors"}
LENS_WEIGHTS, LENS_CONFIG = "blocks.1/sae_weights.safetensors", "blocks.1/cfg.json"
GEMMA_ARCHIVE = "layer_1/width_16k/average_l0_70/params.npz"


def make(layout: str, folder: Path) -> None:
    if layout == FORGE:
        clt_forge_original(folder, 1, 2, 4, 3, crossing=True, ranks=1)
    elif layout == SCOPE:
        llamascopium_original(folder, 1, 2, 4, 3, by_norm=True, scaled=True)
    else:
        per_layer_original(folder, 1, 2, 4, 3, layout=layout)


@pytest.mark.parametrize(
    ("layout", "spoil", "error", "says"),
    [
        (FORGE, remove(WEIGHTS[FORGE]), DataLossError, "missing"),
        (FORGE, configure("clt_cfg.json", n_layers=3), DataLossError, r"expected .*W_dec \[6, 4, 3\]"),
        (FORGE, configure("clt_cfg.json", n_layers=1 << 40), DataLossError, "n_layers is 1099511627776"),
        (FORGE, configure("clt_cfg.json", d_in=True), DataLossError, "d_in is True"),
        (FORGE, configure("clt_cfg.json", cross_layer_decoders="yes"), DataLossError, "true or false"),
        (FORGE, configure("clt_cfg.json", weft_input_hook="hook_z"), DataLossError, "weft_input_hook is 'hook_z'"),
        (FORGE, configure("clt_cfg.json", weft_input_hook=["mlp_in"]), DataLossError, "expected one of mlp_in"),
        (FORGE, configure("clt_cfg.json", feature_sharding=True), DataLossError, r"ranks \[\]"),
        (FORGE, overwrite("clt_cfg.json", b"{"), DataLossError, "no JSON"),
        (FORGE, overwrite("clt_cfg.json", b"[]"), DataLossError, "no JSON object"),
        (FORGE, overwrite("clt_cfg.json", b"[" * 60_000), DataLossError, "no JSON"),
        (FORGE, overwrite("clt_cfg.json", b" " * 70_000), DataLossError, "more than"),
        (FORGE, replace(WEIGHTS[FORGE], "W_enc", with_nan), DataLossError, "W_enc .* NaN or infinite"),
        (FORGE, replace(WEIGHTS[FORGE], "W_dec", with_nan), DataLossError, "W_dec .* NaN or infinite"),
        (FORGE, replace(WEIGHTS[FORGE], "log_threshold", lambda a: a + 1000), DataLossError, "exp.*NaN or infinite"),
        (FORGE, replace(WEIGHTS[FORGE], "b_dec", lambda a: a.astype("i8")), DataLossError, "no floating-point tensor"),
        (
            FORGE,
            replace(WEIGHTS[FORGE], "estimated_norm_scaling_factor_out", np.zeros_like),
            DataLossError,
            "numbers above 0",
        ),
        (SCOPE, configure("config.json", sae_type="crosscoder"), FailedPreconditionError, "sae_type 'crosscoder'"),
        (SCOPE, configure("config.json", act_fn="topk"), FailedPreconditionError, "topk_to_jumprelu_conversion"),
        (
            SCOPE,
            configure("config.json", norm_activation="token-wise"),
            FailedPreconditionError,
            "for every token",
        ),
        (SCOPE, configure("config.json", expansion_factor=-1), DataLossError, "expansion_factor"),
        (SCOPE, configure("config.json", expansion_factor=1e-3), DataLossError, "0 features"),
        (SCOPE, configure("config.json", hook_points_in=[]), DataLossError, "hook_points_in"),
        (
            SCOPE,
            configure("config.json", hook_points_in=["blocks.1.hook_resid_mid", "blocks.0.hook_resid_mid"]),
            FailedPreconditionError,
            "of one NAME",
        ),
        (
            SCOPE,
            configure("config.json", hook_points_in=["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]),
            FailedPreconditionError,
            "does not capture",
        ),
        (SCOPE, drop(WEIGHTS[SCOPE], "W_D.1"), DataLossError, r"expected .*W_D.1 \[2, 4, 3\]"),
        (
            SCOPE,
            replace(WEIGHTS[SCOPE], "dataset_average_activation_norm.blocks.1.hook_mlp_out", np.zeros_like),
            DataLossError,
            "fold_activation_scale",
        ),
        (LENS, remove(LENS_WEIGHTS), DataLossError, "missing"),
        (LENS, remove(LENS_CONFIG.replace("1", "0")), DataLossError, r"layers \[1\]"),
        (LENS, configure(LENS_CONFIG, architecture="gated"), FailedPreconditionError, "architecture 'gated'"),
        (LENS, configure(LENS_CONFIG, d_out=5), FailedPreconditionError, "equal widths"),
        (LENS, configure(LENS_CONFIG, normalize_activations="layer_norm"), FailedPreconditionError, "layer_norm"),
        (LENS, configure(LENS_CONFIG, architecture="transcoder"), FailedPreconditionError, "differ"),
        (LENS, configure(LENS_CONFIG, metadata={}), DataLossError, "hook_name is 'None'"),
        (
            LENS,
            configure(
                LENS_CONFIG, metadata={"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"}
            ),
            FailedPreconditionError,
            "both of layer 0",
        ),
        (
            LENS,
            configure(
                LENS_CONFIG, metadata={"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
            ),
            FailedPreconditionError,
            "reads layer 0 and predicts layer 1",
        ),
        (LENS, replace(LENS_WEIGHTS, "W_enc", np.transpose), DataLossError, r"expected .*W_enc \[3, 4\]"),
        (GEMMA, archive(W_enc=np.zeros((3, 4), object)), DataLossError, "pickled objects are never read"),
        (GEMMA, archive(W_enc=np.zeros((3, 5), "f4")), DataLossError, r"expected .*W_enc \[3, 4\]"),
        (GEMMA, archive(threshold=None), DataLossError, r"expected .*threshold \[4\]"),
        (GEMMA, archive(b_enc=np.full(4, np.inf, "f4")), DataLossError, "b_enc .* NaN or infinite"),
        (GEMMA, archive(b_enc=np.zeros(4, "i8")), DataLossError, "holds int64"),
        (GEMMA, overwrite(GEMMA_ARCHIVE, b"PK\x03\x04"), DataLossError, "no .npz archive"),
        (GEMMA, overwrite(GEMMA_ARCHIVE, pickle.dumps({"W_enc": 1})), DataLossError, "no .npz archive"),
        (GEMMA, bomb, DataLossError, r"bytes for shape \[1073741824, 1024\]"),
        (GEMMA, zeros, DataLossError, "would unfold to 12583040"),
        (GEMMA, long_directory, DataLossError, "directory is far too long"),
        (GEMMA, remove(GEMMA_ARCHIVE.replace("layer_1", "layer_0")), DataLossError, r"layers \[1\]"),
    ],
)
def test_malformed_files_are_refused(
    tmp_path: Path, layout: str, spoil: Spoil, error: type[WeftError], says: str
) -> None:
    """Each defect has its code, and the message says what was found and what was expected."""
    make(layout, tmp_path)
    assert predict(open_transcoder(FolderFiles(tmp_path), layout, input_hook="mlp_in"), np.zeros((2, 1, 3))).any()
    spoil(tmp_path)
    with pytest.raises(error, match=says):
        predict(open_transcoder(FolderFiles(tmp_path), layout, input_hook="mlp_in"), np.zeros((2, 1, 3)))


def test_linear_skips_stand_in_all_layers_or_none(tmp_path: Path) -> None:
    """Where one layer's file lacks it, nothing is guessed."""
    per_layer_original(tmp_path, 1, 2, 4, 3, layout=LENS, skip=True)
    configure("blocks.1/cfg.json", architecture="jumprelu_transcoder")(tmp_path)
    with pytest.raises(FailedPreconditionError, match="has_skip=False"):
        open_transcoder(FolderFiles(tmp_path))


def test_set_without_a_layers_skip_is_refused(tmp_path: Path) -> None:
    """circuit-tracer's sets too are whole."""
    per_layer_original(tmp_path, 1, 2, 4, 3, layout="circuit-tracer", skip=True)
    drop("layer_1.safetensors", "W_skip")(tmp_path)
    with pytest.raises(DataLossError, match="layer_1"):
        open_transcoder(FolderFiles(tmp_path))
    (tmp_path / "layer_0.safetensors").unlink()
    with pytest.raises(DataLossError, match=r"layers \[1\]"):
        open_transcoder(FolderFiles(tmp_path))


@pytest.mark.parametrize(("window", "says"), [(1, "as saelens"), (2, "nor has any other")])
def test_linear_skips_are_never_dropped(tmp_path: Path, window: int, says: str) -> None:
    """A layout without a place for them is not written, and circuit-tracer does not take weft's own files for its."""
    source = random_transcoder(1, 2, 4, 3, window=window, skip=True)
    for layout in ("circuit-tracer", "clt-forge", "llamascopium"):
        with pytest.raises(FailedPreconditionError, match=says):
            list(write_transcoder(source, layout, tmp_path, "tiny"))
    list(write_circuit_tracer(source, tmp_path, "tiny", padded=False))
    assert "model_kind: cross_layer_transcoder_with_skip\n" in (tmp_path / "config.yaml").read_text()


def test_inputs_before_the_norm_want_the_norms_weights(tmp_path: Path) -> None:
    """Without them, or with a weight of 0, nothing is guessed."""
    per_layer_original(tmp_path, 1, 2, 4, 3, layout=GEMMA)
    with pytest.raises(FailedPreconditionError, match=r"norm.safetensors with weight_0"):
        open_transcoder(FolderFiles(tmp_path))
    save_file({"weight_0": np.ones(3, np.float32)}, tmp_path / "norm.safetensors")
    with pytest.raises(DataLossError, match=r"expected weight_0 \[3\], weight_1 \[3\]"):
        open_transcoder(FolderFiles(tmp_path))
    save_file({f"weight_{i}": np.array([1, 0, 1], np.float32) for i in range(2)}, tmp_path / "norm.safetensors")
    with pytest.raises(DataLossError, match="0 somewhere"):
        open_transcoder(FolderFiles(tmp_path)).encoder(0)


def test_files_of_no_layout_or_of_two_are_refused(tmp_path: Path) -> None:
    """Detection goes by names, says what it saw, and tells what to do with pickles."""
    with pytest.raises(NotFoundError, match="no files"):
        detect(FolderFiles(tmp_path))
    (tmp_path / "model.pt").write_bytes(b"\x80\x04")
    with pytest.raises(FailedPreconditionError, match=r"model\.pt.*never read"):
        detect(FolderFiles(tmp_path))
    (tmp_path / "config.yaml").touch()
    (tmp_path / "clt_cfg.json").touch()
    with pytest.raises(FailedPreconditionError, match="circuit-tracer or clt-forge"):
        detect(FolderFiles(tmp_path))


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    """A link is no file of the folder, and a name that was not listed is not opened."""
    (tmp_path / "secret").write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "clt_cfg.json").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path, target_is_directory=True)
    files = FolderFiles(inside)
    assert files.sizes() == {}
    for name in ("clt_cfg.json", "../secret", "folder/secret"):
        with pytest.raises(NotFoundError):
            files.read(name, 0, 1)
        with pytest.raises(NotFoundError):
            read_text(files, name)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255), st.booleans(), st.sampled_from([FORGE, LENS, GEMMA]))
def test_a_flipped_byte_never_fails_in_another_way(position: int, flip: int, cut: bool, layout: str) -> None:
    """Whatever byte is wrong, the files are refused with an error of ours or read as other numbers."""
    with new_folder() as folder:
        make(layout, folder)
        path = folder / {FORGE: WEIGHTS[FORGE], LENS: LENS_WEIGHTS, GEMMA: GEMMA_ARCHIVE}[layout]
        data = bytearray(path.read_bytes())
        position %= len(data)
        if cut:
            del data[position:]
        else:
            data[position] ^= flip
        path.write_bytes(data)
        try:
            with np.errstate(all="ignore"):
                predict(open_transcoder(FolderFiles(folder), layout, input_hook="mlp_in"), np.ones((2, 1, 3)))
        except WeftError:
            return
        assert not cut
