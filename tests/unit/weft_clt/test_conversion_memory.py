"""Conversions between layouts hold one layer's encoder and a few blocks, however large the transcoder is."""

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from transcoder_layouts import clt_forge_original, llamascopium_original, per_layer_original, random_transcoder

from weft_clt.formats import numpy_archives, representation
from weft_clt.formats.circuit_tracer import write_circuit_tracer
from weft_clt.formats.files import FolderFiles
from weft_clt.formats.opening import open_transcoder, write_transcoder

NUM_LAYERS, NUM_FEATURES, D_MODEL = 6, 2048, 64
ENCODER_BYTES = 4 * NUM_FEATURES * D_MODEL
BLOCK_BYTES = 32 << 10
# Two copies in float64, or one and that of float32 which it was made of; headers, names and Python's own.
BOUND_BYTES = int(4.2 * ENCODER_BYTES) + 6 * BLOCK_BYTES + (64 << 10)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representation, "_BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(numpy_archives, "_BUFFER_BYTES", BLOCK_BYTES)


def _peak_bytes(names: Iterator[str], folder: Path) -> tuple[int, int]:
    """Most bytes in memory while files are written, each gone once it is whole; and what they had in all."""
    written = 0
    gc.collect()
    tracemalloc.start()
    try:
        for name in names:
            written += (folder / name).stat().st_size
            (folder / name).unlink()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak, written


def _check(source: Path, layout: str, folder: Path) -> None:
    folder.mkdir()
    opened = open_transcoder(FolderFiles(source))
    peak, written = _peak_bytes(write_transcoder(opened, layout, folder, "tiny"), folder)
    assert written > 1.5 * BOUND_BYTES
    assert peak < BOUND_BYTES, f"{peak / ENCODER_BYTES:.1f} encoders"


@pytest.mark.parametrize("layout", ["circuit-tracer", "clt-forge", "llamascopium", "saelens"])
def test_export_holds_a_layer_and_some_blocks(tmp_path: Path, layout: str) -> None:
    """From weft's own files to each layout."""
    window = 1 if layout == "saelens" else None
    original = random_transcoder(1, NUM_LAYERS, NUM_FEATURES, D_MODEL, window=window)
    (tmp_path / "own").mkdir()
    list(write_circuit_tracer(original, tmp_path / "own", "tiny", padded=False))
    del original
    _check(tmp_path / "own", layout, tmp_path / "out")


@pytest.mark.parametrize("layout", ["clt-forge", "clt-forge by 2", "llamascopium", "saelens", "gemmascope"])
def test_import_holds_a_layer_and_some_blocks(tmp_path: Path, layout: str) -> None:
    """From each layout to weft's own files, with norms folded in where it reads before them."""
    source = tmp_path / "theirs"
    source.mkdir()
    shape = NUM_LAYERS, NUM_FEATURES, D_MODEL
    if layout.startswith("clt-forge"):
        clt_forge_original(source, 1, *shape, crossing=True, ranks=2 if layout.endswith("2") else 1)
    elif layout == "llamascopium":
        llamascopium_original(source, 1, *shape, by_norm=True, scaled=True)
    else:
        per_layer_original(source, 1, *shape, layout=layout, jumprelu=True)
    weights = {f"weight_{layer}": np.full(D_MODEL, 2.0, np.float32) for layer in range(NUM_LAYERS)}
    save_file(weights, source / "norm.safetensors")
    _check(source, "circuit-tracer", tmp_path / "own")
