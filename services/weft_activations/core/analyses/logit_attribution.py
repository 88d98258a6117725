"""
Direct logit attribution: a logit as a sum of what each part of the model wrote into the stream.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". With the final norm's scale held at
what it is, a logit is linear in the stream, and the stream is the sum of the embedding and of what attentions and MLPs
added.

Legend: S parts, N targets, D d_model, L layers, H heads, M neurons of an MLP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from weft_activations.core.analyses.choosing import choose_one
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference, check_ids, read_prompt
from weft_activations.core.kinds import check_decoder
from weft_activations.core.ports import Doubles, Floats, ModelBackend, ModelInfo
from weft_activations.core.token_texts import TokenText, tokens_alone, tokens_of_run
from weft_common.errors import FailedPreconditionError, InvalidArgumentError

__all__ = ["Attributed", "Level", "attribute_logits"]

_MAX_TARGETS = 32
_DEFAULT_NEURONS, _MAX_NEURONS = 50, 1000


class Level(Enum):
    """How finely a logit is taken apart."""

    LAYER = "layer"
    HEAD = "head"
    NEURON = "neuron"


@dataclass(frozen=True)
class Attributed:
    """
    Logits taken apart.

    Attributes:
        contributions_SN: Adds up, over the parts, to the logits before a soft cap.
        logits_N: The model's own.
    """

    info: ModelInfo
    tokens: list[TokenText]
    position: int
    targets: list[TokenText]
    parts: list[str]
    contributions_SN: Doubles
    logits_N: Doubles


async def attribute_logits(
    inference: Inference,
    model_id: str,
    prompt: Prompt,
    *,
    token_ids: Sequence[int],
    position: int | None = None,
    level: Level = Level.LAYER,
    num_neurons: int = 0,
) -> Attributed:
    """
    Take the logits of some tokens at one position apart.

    Args:
        inference: Has the models' thread.
        model_id: The model.
        prompt: What it reads.
        token_ids: The logits, 1 to 32.
        position: None means the last.
        level: How finely.
        num_neurons: Of NEURON, how many are told one by one; 0 means 50.

    Raises:
        InvalidArgumentError: There is no such position or token, or no token or too many are named.
        FailedPreconditionError: The model is no decoder, or norms what attention or MLP return, so that heads and
            neurons do not add up.
        ResourceExhaustedError: What the parts write is more than a pass may hold.
    """
    if not 1 <= len(token_ids) <= _MAX_TARGETS:
        raise InvalidArgumentError(f"{len(token_ids)} token ids are named; name 1 to {_MAX_TARGETS}", field="token_ids")
    if not 0 <= num_neurons <= _MAX_NEURONS:
        raise InvalidArgumentError(
            f"num_neurons is {num_neurons}; give 1 to {_MAX_NEURONS}, or 0 for {_DEFAULT_NEURONS}", field="num_neurons"
        )

    def work(backend: ModelBackend) -> Attributed:
        info, prompt_ids = read_prompt(backend, model_id, prompt)
        check_decoder(info, "logit attribution")
        _check_level(level, info)
        check_ids(token_ids, info, "token_ids")
        at = choose_one(position, len(prompt_ids), "position", "position")
        # What comes after a position does not reach it.
        read_ids = prompt_ids[: at + 1]
        hooks = ["embed", *_hooks(level, info), "resid_final", "ln_final.scale"]
        inference.check_size(hooks, info, len(read_ids))
        found = backend.forward(model_id, read_ids, hooks)
        directions_ND, biases_N = backend.logit_directions(model_id, token_ids)
        directions_ND = directions_ND / float(found["ln_final.scale"][-1])
        parts = {"embed": found["embed"][-1].astype(np.float64) @ directions_ND.T}
        for layer in range(info.num_layers):
            parts |= _attention_parts(layer, found, directions_ND)
            parts[f"layers.{layer}.mlp_out"] = found[f"layers.{layer}.mlp_out"][-1].astype(np.float64) @ directions_ND.T
        if level is Level.NEURON:
            parts = _with_neurons(backend, info, parts, found, directions_ND, num_neurons or _DEFAULT_NEURONS)
        parts["bias"] = biases_N
        logits_V = backend.unembed(model_id, found["resid_final"][-1:])[0]
        return Attributed(
            info,
            tokens_of_run(backend, model_id, prompt_ids),
            at,
            tokens_alone(backend, model_id, token_ids),
            list(parts),
            np.stack(list(parts.values())),
            logits_V[list(token_ids)].astype(np.float64),
        )

    return await inference.on_model_thread(work)


def _hooks(level: Level, info: ModelInfo) -> list[str]:
    names = ["attn_out", "mlp_out"]
    if level is Level.HEAD:
        names.append("attn.result")
    elif level is Level.NEURON:
        names.append("mlp.post")
    return [f"layers.{layer}.{name}" for layer in range(info.num_layers) for name in names]


def _check_level(level: Level, info: ModelInfo) -> None:
    if level is not Level.LAYER and "layers.*.ln1_post.scale" in info.components:
        raise FailedPreconditionError(
            f"{info.architecture} norms what attention and MLPs return, so heads and neurons do not add up to a logit; "
            "take it apart by layer",
            field="level",
        )


def _attention_parts(layer: int, found: Mapping[str, Floats], directions_ND: Doubles) -> dict[str, Doubles]:
    """Return what an attention writes, by head where heads were read."""
    whole_N = found[f"layers.{layer}.attn_out"][-1].astype(np.float64) @ directions_ND.T
    result_HPD = found.get(f"layers.{layer}.attn.result")
    if result_HPD is None:
        return {f"layers.{layer}.attn_out": whole_N}
    heads_HN = result_HPD[:, -1].astype(np.float64) @ directions_ND.T
    parts = {f"layers.{layer}.heads.{head}": heads_HN[head] for head in range(len(heads_HN))}
    return parts | {f"layers.{layer}.attn.rest": whole_N - heads_HN.sum(0)}


def _with_neurons(
    backend: ModelBackend,
    info: ModelInfo,
    parts: Mapping[str, Doubles],
    found: Mapping[str, Floats],
    directions_ND: Doubles,
    count: int,
) -> dict[str, Doubles]:
    """Tell the neurons that move any target the most one by one, and what is left of each MLP."""
    by_layer_LMN = np.stack(
        [
            (
                backend.neuron_directions(info.model_id, layer, directions_ND)
                * found[f"layers.{layer}.mlp.post"][-1].astype(np.float64)
            ).T
            for layer in range(info.num_layers)
        ]
    )
    size_S = np.abs(by_layer_LMN).max(-1).ravel()
    chosen = np.sort(np.argsort(-size_S, kind="stable")[:count])
    made: dict[str, Doubles] = {}
    for name, value_N in parts.items():
        if not name.endswith(".mlp_out"):
            made[name] = value_N
            continue
        layer = int(name.split(".")[1])
        neurons = [int(at) % by_layer_LMN.shape[1] for at in chosen if at // by_layer_LMN.shape[1] == layer]
        made |= {f"layers.{layer}.neurons.{neuron}": by_layer_LMN[layer, neuron] for neuron in neurons}
        made[f"layers.{layer}.mlp.rest"] = value_N - by_layer_LMN[layer, neurons].sum(0)
    return made
