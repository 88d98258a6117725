"""Checkpoint files and exports, read back by the safetensors library."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clt_cases import JUMP_RELU, NUM_LAYERS, config_of, tokens, trainer_of
from safetensors.torch import load_file, save_file

from weft_clt.checkpoint import (
    FileFacts,
    Manifest,
    check_file,
    file_facts,
    read_part,
    sharded_dim,
    write_tensors,
    writers_of,
)
from weft_clt.export import TrainedTranscoder
from weft_clt.formats.circuit_tracer import CircuitTracerFiles, config_yaml, write_circuit_tracer
from weft_clt.formats.files import FolderFiles
from weft_clt.kernels import ReferenceKernels
from weft_clt.normalization import Normalization
from weft_common.errors import DataLossError, FailedPreconditionError


def test_checkpoint_is_a_safetensors_file(tmp_path: Path) -> None:
    """The library reads what was written, and reading it back fills the same values."""
    trainer = trainer_of(config_of(), ReferenceKernels())
    write_tensors(tmp_path / "rank", trainer.state())
    loaded = load_file(tmp_path / "rank")
    assert loaded.keys() == {name for name, _ in trainer.state()}
    for name, tensor in trainer.state():
        assert torch.equal(loaded[name], tensor)
    blank = trainer_of(config_of(seed=99), ReferenceKernels())
    read_part(tmp_path / "rank", 0, 1, blank.state(), 0, 1)
    for (name, tensor), (_, wanted) in zip(blank.state(), trainer.state(), strict=True):
        assert torch.equal(tensor, wanted), name


def test_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    """No damaged number is ever loaded."""
    trainer = trainer_of(config_of(), ReferenceKernels())
    write_tensors(tmp_path / "rank", trainer.state())
    facts = file_facts(tmp_path / "rank")
    check_file(tmp_path / "rank", facts)
    data = bytearray((tmp_path / "rank").read_bytes())
    for place in (3, 40, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 4
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(DataLossError, match="SHA-256"):
            check_file(tmp_path / "damaged", facts)


def test_checkpoint_of_other_tensors_is_refused(tmp_path: Path) -> None:
    """A file that is whole but of another shape or without a tensor is refused by name."""
    write_tensors(tmp_path / "rank", [("w_enc", torch.zeros(2, 3))])
    with pytest.raises(DataLossError, match="w_enc"):
        read_part(tmp_path / "rank", 0, 1, [("w_enc", torch.zeros(3, 2))], 0, 1)
    with pytest.raises(DataLossError, match="b_enc"):
        read_part(tmp_path / "rank", 0, 1, [("b_enc", torch.zeros(3, 2))], 0, 1)


WHOLE = {
    "w_enc": (2, 12, 8),
    "b_enc": (2, 12),
    "threshold": (2, 12),
    "w_dec": (3, 12, 12),
    "b_dec": (2, 12),
    "adam_first.w_dec": (3, 12, 12),
    "adam_second.w_enc": (2, 12, 8),
    "silent_tokens": (2, 12),
}


def _share(whole: dict[str, torch.Tensor], rank: int, size: int) -> dict[str, torch.Tensor]:
    shares = {}
    for name, tensor in whole.items():
        dim = sharded_dim(name)
        shares[name] = tensor if dim is None else tensor.chunk(size, dim)[rank].contiguous()
    return shares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("wrote", "size"), [(1, 2), (2, 1), (2, 4), (4, 2), (4, 1), (2, 3), (3, 2), (6, 4)])
def test_checkpoint_is_resharded_bit_for_bit(tmp_path: Path, wrote: int, size: int, dtype: torch.dtype) -> None:
    """Whoever wrote it, every rank reads exactly its slice of the whole: encoder by feature, decoder by column."""
    random = torch.Generator().manual_seed(3)
    whole = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in WHOLE.items()}
    whole = {
        name: tensor.mul(9).long() if name == "silent_tokens" else tensor.to(dtype) for name, tensor in whole.items()
    }
    for writer in range(wrote):
        write_tensors(tmp_path / str(writer), _share(whole, writer, wrote).items())
    for rank in range(size):
        wanted = _share(whole, rank, size)
        found = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
        for writer in writers_of(rank, size, wrote):
            read_part(tmp_path / str(writer), writer, wrote, found.items(), rank, size)
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name


def test_manifest_survives_its_document_and_refuses_another_run() -> None:
    """Another configuration is refused; other ranks and other steps to save at are not."""
    digest = config_of().digest()
    manifest = Manifest(3, 1, 2, 1, digest, {"rank0-of-2.safetensors": FileFacts("00", 4)}, {"epoch": 0})
    assert Manifest.from_document(manifest.to_document()) == manifest
    manifest.check_run(config_of())
    manifest.check_run(config_of(feature_ranks=4, data_ranks=2, checkpoint_steps=2))
    with pytest.raises(FailedPreconditionError, match="configuration"):
        manifest.check_run(config_of(learning_rate=2e-2))
    with pytest.raises(DataLossError, match="config_digest"):
        Manifest.from_document({name: 1 for name in manifest.to_document() if name != "config_digest"})
    with pytest.raises(FailedPreconditionError, match="earlier version"):
        Manifest.from_document(manifest.to_document() | {"data": [{}, {}]}).check_run(config_of())


@pytest.mark.parametrize(("span", "skip"), [(0, False), (1, True), (2, False), (0, True)])
def test_export_computes_what_the_model_does_in_the_models_own_units(span: int, skip: bool, tmp_path: Path) -> None:
    """A dense reading of the exported files on raw inputs gives the trained prediction, scaled back."""
    trainer = trainer_of(config_of(**JUMP_RELU, decoder_span=span, linear_skip=skip), ReferenceKernels())
    if skip:
        assert trainer.params.w_skip_LCD is not None
        trainer.params.w_skip_LCD.normal_(generator=torch.Generator().manual_seed(5))
    random = np.random.default_rng(8)
    scales = random.uniform(0.5, 3.0, (2, NUM_LAYERS))
    units = Normalization(scales[0], scales[1], np.zeros((NUM_LAYERS, 8)), np.zeros((NUM_LAYERS, 8)))
    exported = TrainedTranscoder(trainer.params, units)
    config, *names = write_circuit_tracer(exported, tmp_path, "small", padded=False)
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
        assert (f"W_skip_{source}" in encoder) == skip
        if skip:
            predicted[source] += raw[source] @ encoder[f"W_skip_{source}"].T
        for target in exported.facts.targets(source):
            block = files[f"W_dec_{source}.safetensors"][f"W_dec_{source}"][:, target - source].double()
            predicted[target] += acts @ block
    wanted = forward.error_LTC / torch.from_numpy(scales[1])[:, None, None]
    torch.testing.assert_close(predicted, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["ACTIVATION_TOP_K", "ACTIVATION_JOINT_TOP_K"])
def test_export_of_what_counts_selects_as_it_was_trained(activation: str, tmp_path: Path) -> None:
    """The largest, as many as the files say, give the trained prediction; other tools get thresholds."""
    config = config_of(activation=activation)
    over_layers = activation == "ACTIVATION_JOINT_TOP_K"
    trainer = trainer_of(config, ReferenceKernels())
    random = np.random.default_rng(8)
    scales = random.uniform(0.5, 3.0, (2, NUM_LAYERS))
    units = Normalization(scales[0], scales[1], np.zeros((NUM_LAYERS, 8)), np.zeros((NUM_LAYERS, 8)))
    params = replace(trainer.params, threshold_LS=torch.full_like(trainer.params.b_enc_LS, 0.5))
    exported = TrainedTranscoder(params, units, features=config.features)
    list(write_circuit_tracer(exported, tmp_path, "small", padded=False))
    again = CircuitTracerFiles(FolderFiles(tmp_path))
    assert again.facts == exported.facts
    assert (again.facts.top_k, again.facts.over_layers) == (3, over_layers)
    raw, zeros = tokens(2)[0], torch.zeros_like(tokens(2)[0])
    forward = trainer.engine.forward(raw * torch.from_numpy(scales[0])[:, None, None], zeros)
    encoders = [again.encoder(layer) for layer in range(NUM_LAYERS)]
    preact_LTF = np.stack(
        [raw[layer].numpy() @ e.w_enc_FD.T.astype(float) + e.b_enc_F for layer, e in enumerate(encoders)]
    )
    rank_LF = np.stack([np.ones(preact_LTF.shape[2]) if e.rank_norm_F is None else e.rank_norm_F for e in encoders])
    acts_LTF = np.zeros_like(preact_LTF)
    for token in range(preact_LTF.shape[1]):
        pools = [range(NUM_LAYERS)] if over_layers else [[layer] for layer in range(NUM_LAYERS)]
        for pool in pools:
            places = [(layer, feature) for layer in pool for feature in range(preact_LTF.shape[2])]
            places.sort(key=lambda place: -preact_LTF[place[0], token, place[1]] * rank_LF[place])
            for layer, feature in places[: 3 * len(pool)]:
                acts_LTF[layer, token, feature] = max(preact_LTF[layer, token, feature], 0)
    assert (acts_LTF > 0).sum() > 20
    predicted = np.stack([np.zeros(raw.shape[1:]) + again.output_bias(layer) for layer in range(NUM_LAYERS)])
    for source in range(NUM_LAYERS):
        for target in again.facts.targets(source):
            predicted[target] += acts_LTF[source] @ again.decoder(source, target, slice(0, preact_LTF.shape[2]))
    wanted = forward.error_LTC / torch.from_numpy(scales[1])[:, None, None]
    np.testing.assert_allclose(predicted, wanted.numpy(), rtol=1e-5, atol=1e-5)
    list(write_circuit_tracer(exported, tmp_path, "small"))
    for_others = CircuitTracerFiles(FolderFiles(tmp_path))
    assert (for_others.facts.top_k, for_others.facts.has_thresholds) == (0, True)
    assert set(load_file(tmp_path / "W_enc_0.safetensors")) == {"W_enc_0", "b_enc_0", "b_dec_0", "threshold_0"}


@pytest.mark.parametrize(
    ("line", "thresholds"),
    [("top_k: 0", True), ("top_k: many", True), ("top_k: 3\ntop_k_over: tokens", True), ("top_k: 3", False),
     ("top_k: 3\ntop_k_over: layers", True)],
)  # fmt: skip
def test_files_that_count_without_saying_how_are_refused(line: str, thresholds: bool, tmp_path: Path) -> None:
    """A count that is none, a choice that is unknown, no thresholds, or no norms to rank by."""
    config = config_of(**JUMP_RELU)
    exported = TrainedTranscoder(trainer_of(config, ReferenceKernels()).params, _units())
    list(write_circuit_tracer(exported, tmp_path, "small"))
    with (tmp_path / "config.yaml").open("a") as file:
        file.write(f"{line}\n")
    if not thresholds:
        for layer in range(NUM_LAYERS):
            path = tmp_path / f"W_enc_{layer}.safetensors"
            save_file({name: t for name, t in load_file(path).items() if "threshold" not in name}, path)
    with pytest.raises(DataLossError, match=r"top_k|rank_norm"):
        CircuitTracerFiles(FolderFiles(tmp_path))


def _units() -> Normalization:
    ones = np.ones(NUM_LAYERS)
    return Normalization(ones, ones, np.zeros((NUM_LAYERS, 8)), np.zeros((NUM_LAYERS, 8)))


def test_config_yaml_names_circuit_tracers_hooks() -> None:
    """Hooks are translated; one that the layout cannot say is refused."""
    text = config_yaml("small", "mlp_in", "mlp_out").decode()
    assert "feature_input_hook: mlp.hook_in\n" in text
    assert "model_kind: cross_layer_transcoder\n" in text
    with pytest.raises(FailedPreconditionError, match="attn_out"):
        config_yaml("small", "attn_out", "mlp_out")
