"""
Random transcoders, what they predict by dense arithmetic in float64, and peers' files written with peers' formulas.

Nothing here comes from `weft_clt.formats` but the representation's types.
Shapes: L layers, F features, D d_model, T tokens.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from weft_clt.formats.representation import Array, Encoder, TranscoderFacts, TranscoderSource


@contextmanager
def new_folder() -> Iterator[Path]:
    """Make a folder for one example; hypothesis runs many in one test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@dataclass(frozen=True)
class InMemory:
    """A transcoder whose weights are at hand; `w_dec` by (layer, target)."""

    facts: TranscoderFacts
    w_enc_LFD: Array
    b_enc_LF: Array
    threshold_LF: Array | None
    w_dec: dict[tuple[int, int], Array]
    b_dec_LD: Array
    w_skip_LDD: Array | None = None

    def encoder(self, layer: int) -> Encoder:
        threshold_F = None if self.threshold_LF is None else self.threshold_LF[layer]
        w_skip_DD = None if self.w_skip_LDD is None else self.w_skip_LDD[layer]
        return Encoder(self.w_enc_LFD[layer], self.b_enc_LF[layer], threshold_F, w_skip_DD)

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        return self.w_dec[layer, target][features]

    def output_bias(self, target: int) -> Array:
        return self.b_dec_LD[target]


def random_transcoder(
    seed: int,
    num_layers: int,
    num_features: int,
    d_model: int,
    *,
    window: int | None = None,
    thresholds: bool = True,
    input_hook: str = "mlp_in",
    skip: bool = False,
) -> InMemory:
    """Draw one whose numbers are float32."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    facts = TranscoderFacts(
        num_layers=num_layers,
        num_features=num_features,
        d_model=d_model,
        input_hook=input_hook,
        output_hook="mlp_out",
        has_thresholds=thresholds,
        window=num_layers if window is None else min(window, num_layers),
        has_skip=skip,
    )
    return InMemory(
        facts,
        draw(num_layers, num_features, d_model),
        draw(num_layers, num_features),
        np.abs(draw(num_layers, num_features)) if thresholds else None,
        {
            (layer, target): draw(num_features, d_model)
            for layer in range(num_layers)
            for target in facts.targets(layer)
        },
        draw(num_layers, d_model),
        draw(num_layers, d_model, d_model) if skip else None,
    )


def predict(source: TranscoderSource, inputs_LTD: Array) -> Array:
    """Compute what a transcoder predicts, densely, in float64: [L, T, D]."""
    facts = source.facts
    predicted_LTD = np.zeros(inputs_LTD.shape)
    for layer in range(facts.num_layers):
        encoder = source.encoder(layer)
        preact_TF = inputs_LTD[layer].astype(np.float64) @ encoder.w_enc_FD.astype(np.float64).T + encoder.b_enc_F
        threshold_F = 0.0 if encoder.threshold_F is None else encoder.threshold_F
        acts_TF = preact_TF * (preact_TF > threshold_F)
        for target in facts.targets(layer):
            decoder_FD = source.decoder(layer, target, slice(0, facts.num_features)).astype(np.float64)
            predicted_LTD[target] += acts_TF @ decoder_FD
        predicted_LTD[layer] += source.output_bias(layer)
        assert (encoder.w_skip_DD is not None) == facts.has_skip
        if encoder.w_skip_DD is not None:
            predicted_LTD[layer] += inputs_LTD[layer] @ encoder.w_skip_DD.astype(np.float64).T
    return predicted_LTD


def inputs_of(facts: TranscoderFacts, seed: int, num_tokens: int = 5) -> Array:
    """Draw inputs [L, T, D]."""
    return np.random.default_rng(seed).standard_normal((facts.num_layers, num_tokens, facts.d_model))


def clt_forge_original(
    folder: Path, seed: int, num_layers: int, num_features: int, d_model: int, *, crossing: bool, ranks: int
) -> Array:
    """Write what CLT-Forge would and return its prediction for `inputs_of(seed)`, by its own formulas."""
    random = np.random.default_rng(seed)
    sources, targets = np.triu_indices(num_layers) if crossing else (np.arange(num_layers),) * 2
    pairs = len(sources)

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    state: dict[str, Array] = {
        "W_enc": draw(num_layers, d_model, num_features),
        "b_enc": draw(num_layers, num_features),
        "log_threshold": draw(num_layers, num_features),
        "W_dec": draw(pairs, num_features, d_model),
        "b_dec": draw(pairs, d_model),
        "estimated_norm_scaling_factor_in": np.exp(draw(num_layers)),
        "estimated_norm_scaling_factor_out": np.exp(draw(num_layers)),
        "feature_count": np.ones((num_layers, num_features), np.int64),
    }
    split = {"W_enc": 2, "b_enc": 1, "log_threshold": 1, "W_dec": 1, "feature_count": 1}
    for rank in range(ranks):
        part = {
            name: np.ascontiguousarray(np.split(array, ranks, axis=split[name])[rank]) if name in split else array
            for name, array in state.items()
        }
        save_file(part, folder / ("clt_weights.safetensors" if ranks == 1 else f"rank{rank}_clt_weights.safetensors"))
    config = {
        "d_in": d_model,
        "d_latent": num_features,
        "n_layers": num_layers,
        "cross_layer_decoders": crossing,
        "feature_sharding": ranks > 1,
    }
    (folder / "clt_cfg.json").write_text(json.dumps(config))
    inputs_TLD = np.random.default_rng(seed).standard_normal((num_layers, 5, d_model)).transpose(1, 0, 2)
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    hidden_TLF = np.einsum(
        "tld,ldf->tlf", inputs_TLD * wide["estimated_norm_scaling_factor_in"][:, None], wide["W_enc"]
    )
    hidden_TLF += wide["b_enc"]
    acts_TLF = np.where(hidden_TLF > np.exp(wide["log_threshold"]), hidden_TLF, 0)
    predicted_TLD = np.zeros(inputs_TLD.shape)
    for pair, (source, target) in enumerate(zip(sources, targets, strict=True)):
        predicted_TLD[:, target] += acts_TLF[:, source] @ wide["W_dec"][pair] + wide["b_dec"][pair]
    predicted: Array = predicted_TLD / wide["estimated_norm_scaling_factor_out"][:, None]
    return predicted.transpose(1, 0, 2)


def llamascopium_original(
    folder: Path, seed: int, num_layers: int, num_features: int, d_model: int, *, by_norm: bool, scaled: bool
) -> Array:
    """Write what llamascopium would and return its prediction for `inputs_of(seed)`, by its own formulas."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    points_in = [f"blocks.{layer}.hook_resid_mid" for layer in range(num_layers)]
    points_out = [f"blocks.{layer}.hook_mlp_out" for layer in range(num_layers)]
    state: dict[str, Array] = {
        "W_E": draw(num_layers, d_model, num_features),
        "b_E": draw(num_layers, num_features),
        "activation_function.log_jumprelu_threshold": draw(num_layers, num_features),
    }
    for target in range(num_layers):
        state |= {f"W_D.{target}": draw(target + 1, num_features, d_model), f"b_D.{target}": draw(d_model)}
    for point in points_in + points_out:
        state[f"dataset_average_activation_norm.{point}"] = np.exp(draw())
    save_file(
        {name: np.asarray(array, np.float32) for name, array in state.items()}, folder / "sae_weights.safetensors"
    )
    config: dict[str, Any] = {
        "sae_type": "clt",
        "d_model": d_model,
        # A number of features that is exact in binary, whatever d_model.
        "expansion_factor": np.nextafter(num_features / d_model, math.inf),
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise" if scaled else "inference",
        "sparsity_include_decoder_norm": by_norm,
        "hook_points_in": points_in,
        "hook_points_out": points_out,
    }
    (folder / "config.json").write_text(json.dumps(config))
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    inputs_LTD = np.random.default_rng(seed).standard_normal((num_layers, 5, d_model))
    scale = {
        point: math.sqrt(d_model) / float(wide[f"dataset_average_activation_norm.{point}"]) if scaled else 1.0
        for point in points_in + points_out
    }
    predicted_LTD = np.zeros(inputs_LTD.shape)
    for layer in range(num_layers):
        hidden_TF = (inputs_LTD[layer] * scale[points_in[layer]]) @ wide["W_E"][layer] + wide["b_E"][layer]
        norm_F = np.ones(num_features)
        if by_norm:
            norm_F = np.sqrt(sum((wide[f"W_D.{target}"][layer] ** 2).sum(-1) for target in range(layer, num_layers)))
        gated_TF = hidden_TF * norm_F
        gated_TF *= gated_TF > np.exp(wide["activation_function.log_jumprelu_threshold"][layer])
        for target in range(layer, num_layers):
            predicted_LTD[target] += (gated_TF / norm_F) @ wide[f"W_D.{target}"][layer]
    for target in range(num_layers):
        predicted_LTD[target] = (predicted_LTD[target] + wide[f"b_D.{target}"]) / scale[points_out[target]]
    return predicted_LTD


def per_layer_original(
    folder: Path,
    seed: int,
    num_layers: int,
    num_features: int,
    d_model: int,
    *,
    layout: str,
    jumprelu: bool = True,
    skip: bool = False,
) -> Array:
    """
    Write per-layer transcoders and return their prediction for `inputs_of(seed)`.

    Args:
        folder: Where to.
        seed: Of weights and inputs.
        num_layers: L.
        num_features: F.
        d_model: D.
        layout: `saelens`, `gemmascope` or `circuit-tracer`, whose sets are meant.
        jumprelu: With thresholds, some below 0; SAELens and GemmaScope take relu first.
        skip: With a linear skip.
    """
    random = np.random.default_rng(seed)
    inputs_LTD = np.random.default_rng(seed).standard_normal((num_layers, 5, d_model))
    predicted_LTD = np.zeros(inputs_LTD.shape)
    for layer in range(num_layers):
        state = {
            "W_enc": random.standard_normal((d_model, num_features)).astype(np.float32),
            "b_enc": random.standard_normal(num_features).astype(np.float32),
            "W_dec": random.standard_normal((num_features, d_model)).astype(np.float32),
            "b_dec": random.standard_normal(d_model).astype(np.float32),
        }
        if jumprelu:
            # Some below 0, where relu decides.
            state["threshold"] = random.standard_normal(num_features).astype(np.float32)
        if skip:
            state["W_skip"] = random.standard_normal((d_model, d_model)).astype(np.float32)
        if layout == "circuit-tracer":
            stored = {**state, "W_enc": np.ascontiguousarray(state["W_enc"].T)}
            if jumprelu:
                stored["activation_function.threshold"] = stored.pop("threshold")
            save_file(stored, folder / f"layer_{layer}.safetensors")
            (folder / "config.yaml").write_text(
                "model_name: tiny\nmodel_kind: transcoder_set\nscan: x\n"
                "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
            )
        elif layout == "saelens":
            place = folder / f"blocks.{layer}"
            place.mkdir()
            save_file(state, place / "sae_weights.safetensors")
            config = {
                "architecture": ("jumprelu_" if jumprelu else "") + ("skip_" if skip else "") + "transcoder",
                "d_in": d_model,
                "d_out": d_model,
                "d_sae": num_features,
                "normalize_activations": "none",
                "apply_b_dec_to_input": False,
                "metadata": {
                    "hook_name": f"blocks.{layer}.mlp.hook_in",
                    "hook_name_out": f"blocks.{layer}.hook_mlp_out",
                },
            }
            (place / "cfg.json").write_text(json.dumps(config))
        else:
            place = folder / f"layer_{layer}" / "width_16k" / "average_l0_70"
            place.mkdir(parents=True)
            (np.savez_compressed if layer % 2 else np.savez)(place / "params.npz", **state)
        hidden_TF = inputs_LTD[layer] @ state["W_enc"].astype(np.float64) + state["b_enc"]
        acts_TF = hidden_TF if layout == "circuit-tracer" and jumprelu else np.maximum(hidden_TF, 0)
        acts_TF = acts_TF * (hidden_TF > state.get("threshold", np.zeros(1)))
        predicted_LTD[layer] = acts_TF @ state["W_dec"].astype(np.float64) + state["b_dec"]
        if skip:
            predicted_LTD[layer] += inputs_LTD[layer] @ state["W_skip"].astype(np.float64).T
    return predicted_LTD
