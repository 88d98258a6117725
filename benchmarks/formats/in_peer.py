"""
The peer's side of `compare.py`; runs in the peer's environment, with its own code, and knows nothing of weft.

    PYTHON in_peer.py PEER predict FOLDER    load FOLDER/files, write what it predicts for FOLDER/inputs.npy
    PYTHON in_peer.py PEER make FOLDER       draw a transcoder, save it to FOLDER/files, write inputs and prediction

inputs.npy and predicted.npy are float64 [L, T, D]; weights are float32, arithmetic is float64.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

LAYERS, FEATURES, WIDTH, TOKENS = 4, 96, 24, 64


def random_like(module, generator):
    """Fill every parameter with small float32 numbers."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(drawn.abs().clamp(min=1e-3) if name.endswith("threshold") and "log" not in name else drawn)


class CircuitTracer:
    """Cross-layer transcoders by `load_clt` and `to_safetensors`."""

    def make(self, folder, generator):
        from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

        made = CrossLayerTranscoder(
            LAYERS, FEATURES, WIDTH, activation_function="jump_relu", lazy_decoder=False, dtype=torch.float32
        )
        random_like(made, generator)
        made.to_safetensors(str(folder))
        (folder / "config.yaml").write_text(
            "model_name: tiny\nmodel_kind: cross_layer_transcoder\n"
            "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
        )

    def predict(self, folder, inputs):
        from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

        return load_clt(str(folder), device=torch.device("cpu"), dtype=torch.float64, lazy_decoder=False)(inputs)


class SaeLens:
    """One `JumpReLUTranscoder` a layer by `load_from_disk` and `save_model`."""

    def make(self, folder, generator):
        from sae_lens.saes.transcoder import JumpReLUTranscoder, JumpReLUTranscoderConfig, SAEMetadata

        for layer in range(LAYERS):
            metadata = SAEMetadata(
                hook_name=f"blocks.{layer}.hook_resid_mid", hook_name_out=f"blocks.{layer}.hook_mlp_out"
            )
            config = JumpReLUTranscoderConfig(
                d_in=WIDTH, d_out=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=False, metadata=metadata
            )
            made = JumpReLUTranscoder(config)
            random_like(made, generator)
            made.save_model(folder / f"layer_{layer}")

    def predict(self, folder, inputs):
        from sae_lens import SAE

        layers = [SAE.load_from_disk(folder / f"layer_{layer}", dtype="float64").eval() for layer in range(len(inputs))]
        return torch.stack([layer(each) for layer, each in zip(layers, inputs, strict=True)])


class CltForge:
    """Its CLT by `load_from_pretrained` and `save_model`; its code is on PYTHONPATH."""

    def make(self, folder, generator):
        from clt_forge.clt import CLT
        from clt_forge.config import CLTConfig

        config = CLTConfig(
            device="cpu", dtype="float32", seed=1, model_name="tiny", d_in=WIDTH, d_latent=FEATURES, n_layers=LAYERS,
            jumprelu_bandwidth=1.0, jumprelu_init_threshold=0.03, normalize_decoder=False, dead_feature_window=10,
            cross_layer_decoders=True, context_size=8, l0_coefficient=1.0,
        )  # fmt: skip
        made = CLT(config)
        random_like(made, generator)
        for side in ("in", "out"):
            scales = getattr(made, f"estimated_norm_scaling_factor_{side}")
            scales.copy_(torch.rand(LAYERS, generator=generator) + 0.5)
        made.save_model(str(folder))

    def predict(self, folder, inputs):
        from clt_forge.clt import CLT

        loaded = CLT.load_from_pretrained(folder).double()
        scaled = inputs.transpose(0, 1) * loaded.estimated_norm_scaling_factor_in.view(1, -1, 1)
        predicted = loaded.forward_eval(scaled) / loaded.estimated_norm_scaling_factor_out.view(1, -1, 1)
        return predicted.transpose(0, 1)


class Llamascopium:
    """Its CLT by `from_pretrained` and `save_pretrained`; its code is on PYTHONPATH."""

    def make(self, folder, generator):
        from llamascopium.models.clt import CLTConfig, CrossLayerTranscoder

        points = [[f"blocks.{layer}.{hook}" for layer in range(LAYERS)] for hook in ("hook_resid_mid", "hook_mlp_out")]
        config = CLTConfig(
            d_model=WIDTH, expansion_factor=FEATURES / WIDTH, act_fn="jumprelu", norm_activation="dataset-wise",
            sparsity_include_decoder_norm=True, hook_points_in=points[0], hook_points_out=points[1],
        )  # fmt: skip
        made = CrossLayerTranscoder(config)
        random_like(made, generator)
        norms = torch.rand(2 * LAYERS, generator=generator) * 4 + 3
        made.set_dataset_average_activation_norm(dict(zip(points[0] + points[1], norms.tolist(), strict=True)))
        made.save_hyperparameters(folder)
        made.save_checkpoint(folder / "sae_weights.safetensors")

    def predict(self, folder, inputs):
        from llamascopium.models.clt import CLTConfig, CrossLayerTranscoder

        config = CLTConfig.from_pretrained(str(folder))
        loaded = CrossLayerTranscoder(config)
        from safetensors.torch import load_file

        state = load_file(folder / "sae_weights.safetensors")
        loaded.load_full_state_dict(state)
        if config.norm_activation == "dataset-wise":
            loaded.standardize_parameters_of_dataset_norm()
        loaded = loaded.double()
        loaded.cfg.dtype = torch.float64
        loaded.activation_function = loaded.activation_function.double()
        loaded.activation_function.dtype = torch.float64
        return loaded.decode(loaded.encode(inputs.transpose(0, 1))).reshape(inputs.shape[0], -1, inputs.shape[2])


PEERS = {"circuit-tracer": CircuitTracer, "saelens": SaeLens, "clt-forge": CltForge, "llamascopium": Llamascopium}


def main() -> None:
    """Do one half of a comparison."""
    name, what, place = sys.argv[1:]
    peer, folder = PEERS[name](), Path(place)
    torch.manual_seed(0)
    if what == "make":
        (folder / "files").mkdir()
        peer.make(folder / "files", torch.Generator().manual_seed(7))
        drawn = np.random.default_rng(7).standard_normal((LAYERS, TOKENS, WIDTH)) * math.sqrt(2)
        np.save(folder / "inputs.npy", drawn)
    inputs = torch.from_numpy(np.load(folder / "inputs.npy"))
    with torch.no_grad():
        predicted = peer.predict(folder / "files", inputs)
    np.save(folder / "predicted.npy", predicted.double().numpy())


if __name__ == "__main__":
    main()
