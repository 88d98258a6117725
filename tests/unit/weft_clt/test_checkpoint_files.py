"""Checkpoint files and exports, read back by the safetensors library."""

from pathlib import Path

import numpy as np
import pytest
import torch
from clt_cases import JUMP_RELU, NUM_LAYERS, config_of, normalization, tokens, trainer_of
from safetensors.torch import load_file

from weft_clt.checkpoint import FileFacts, Manifest, read_tensors, write_tensors
from weft_clt.export import TrainedTranscoder
from weft_clt.formats.circuit_tracer import config_yaml, write_circuit_tracer
from weft_clt.kernels import ReferenceKernels
from weft_clt.normalization import Normalization
from weft_common.errors import DataLossError, FailedPreconditionError, ShapeError


def test_checkpoint_is_a_safetensors_file(tmp_path: Path) -> None:
    """The library reads what was written, and reading it back fills the same values."""
    trainer = trainer_of(config_of(), ReferenceKernels())
    facts = write_tensors(tmp_path / "rank", trainer.state())
    assert facts.size_bytes == (tmp_path / "rank").stat().st_size
    loaded = load_file(tmp_path / "rank")
    assert loaded.keys() == {name for name, _ in trainer.state()}
    for name, tensor in trainer.state():
        assert torch.equal(loaded[name], tensor)
    blank = trainer_of(config_of(seed=99), ReferenceKernels())
    read_tensors(tmp_path / "rank", blank.state(), facts)
    for (name, tensor), (_, wanted) in zip(blank.state(), trainer.state(), strict=True):
        assert torch.equal(tensor, wanted), name


def test_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    """No damaged number is ever loaded."""
    trainer = trainer_of(config_of(), ReferenceKernels())
    facts = write_tensors(tmp_path / "rank", trainer.state())
    data = bytearray((tmp_path / "rank").read_bytes())
    for place in (3, 40, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 4
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(DataLossError, match="SHA-256"):
            read_tensors(tmp_path / "damaged", trainer.state(), facts)


def test_checkpoint_of_other_tensors_is_refused(tmp_path: Path) -> None:
    """A file that is whole but of another shape or without a tensor is refused by name."""
    facts = write_tensors(tmp_path / "rank", [("w_enc", torch.zeros(2, 3))])
    with pytest.raises(DataLossError, match="w_enc"):
        read_tensors(tmp_path / "rank", [("w_enc", torch.zeros(3, 2))], facts)
    with pytest.raises(DataLossError, match="b_enc"):
        read_tensors(tmp_path / "rank", [("b_enc", torch.zeros(3, 2))], facts)


def test_manifest_survives_its_document_and_refuses_another_run() -> None:
    """A resume that would silently forget the configuration or the mesh is refused."""
    manifest = Manifest(3, 1, 2, 1, "abc", {"rank0-of-2.safetensors": FileFacts("00", 4)}, [{}, {}])
    assert Manifest.from_document(manifest.to_document()) == manifest
    manifest.check_run("abc", 2, 1)
    with pytest.raises(FailedPreconditionError, match="configuration"):
        manifest.check_run("abd", 2, 1)
    with pytest.raises(FailedPreconditionError, match="2 x 1 ranks"):
        manifest.check_run("abc", 1, 2)
    with pytest.raises(DataLossError, match="config_digest"):
        Manifest.from_document({name: 1 for name in manifest.to_document() if name != "config_digest"})


def test_export_refuses_a_linear_skip() -> None:
    """No layout has a place for it, and a transcoder without it would be another one."""
    trainer = trainer_of(config_of(**JUMP_RELU, linear_skip=True), ReferenceKernels())
    with pytest.raises(ShapeError, match="linear_skip"):
        TrainedTranscoder(trainer.params, normalization())


@pytest.mark.parametrize("span", [0, 1, 2])
def test_export_computes_what_the_model_does_in_the_models_own_units(span: int, tmp_path: Path) -> None:
    """A dense reading of the exported files on raw inputs gives the trained prediction, scaled back."""
    trainer = trainer_of(config_of(**JUMP_RELU, decoder_span=span), ReferenceKernels())
    random = np.random.default_rng(8)
    scales = random.uniform(0.5, 3.0, (2, NUM_LAYERS))
    units = Normalization(scales[0], scales[1], np.zeros((NUM_LAYERS, 8)), np.zeros((NUM_LAYERS, 8)))
    config, *names = write_circuit_tracer(TrainedTranscoder(trainer.params, units), tmp_path, "small")
    assert [config, *names[:2]] == ["config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors"]
    raw, zeros = tokens(2)[0], torch.zeros_like(tokens(2)[0])
    forward = trainer.engine.forward(raw * torch.from_numpy(scales[0])[:, None, None], zeros)
    files = {name: load_file(tmp_path / name) for name in names}
    predicted = torch.zeros_like(raw)
    for source in range(NUM_LAYERS):
        encoder = {name: t.double() for name, t in files[f"W_enc_{source}.safetensors"].items()}
        preact = raw[source] @ encoder[f"W_enc_{source}"].T + encoder[f"b_enc_{source}"]
        acts = preact * (preact > encoder[f"threshold_{source}"])
        predicted[source] += encoder[f"b_dec_{source}"]
        for target in range(source, NUM_LAYERS):
            block = files[f"W_dec_{source}.safetensors"][f"W_dec_{source}"][:, target - source].double()
            predicted[target] += acts @ block
    wanted = forward.error_LTC / torch.from_numpy(scales[1])[:, None, None]
    torch.testing.assert_close(predicted, wanted, rtol=1e-5, atol=1e-5)


def test_config_yaml_names_circuit_tracers_hooks() -> None:
    """Hooks are translated; one that the layout cannot say is refused."""
    text = config_yaml("small", "mlp_in", "mlp_out").decode()
    assert "feature_input_hook: mlp.hook_in\n" in text
    assert "model_kind: cross_layer_transcoder\n" in text
    with pytest.raises(FailedPreconditionError, match="attn_out"):
        config_yaml("small", "attn_out", "mlp_out")
