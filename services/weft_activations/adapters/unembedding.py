"""
The last step of a model by itself: from the residual stream through the final norm to logits, and its directions.

Legend: N rows, D d_model, M neurons of an MLP, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weft_activations.adapters.places import Place, Site

__all__ = ["logit_directions", "neuron_directions", "unembed"]

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")
# An encoder's head has a layer of its own before the norm.
_WHOLE_HEADS = {"BertForMaskedLM": "cls", "RobertaForMaskedLM": "lm_head"}


def unembed(model: Any, resid_ND: Tensor) -> Tensor:
    """Return the logits [N, V] of residual streams as the model itself would, with its soft cap if it has one."""
    weight = model.get_output_embeddings().weight
    whole_head = _WHOLE_HEADS.get(type(model).__name__)
    if whole_head is not None:
        head_logits_NV: Tensor = getattr(model, whole_head)(resid_ND.to(weight.dtype).to(weight.device))
        return head_logits_NV
    logits_NV: Tensor = model.get_output_embeddings()(_final_norm(model)(resid_ND.to(weight.dtype).to(weight.device)))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap


def logit_directions(model: Any, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """
    Return directions [N, D] and biases [N], float64, with which a logit is stream / scale @ direction + bias.

    The scale is the final norm's; a norm that takes the mean off has it taken off the directions.
    """
    norm, head = _final_norm(model), model.get_output_embeddings()
    unembed_ND = head.weight[list(token_ids)].double()
    # Gemma keeps its norms' weights as what they differ from one.
    gain_D = norm.weight.double() + (1.0 if type(norm).__name__.startswith("Gemma") else 0.0)
    directions_ND = unembed_ND * gain_D
    biases_N = torch.zeros(len(token_ids), dtype=torch.float64, device=unembed_ND.device)
    if isinstance(norm, nn.LayerNorm):
        directions_ND = directions_ND - directions_ND.mean(-1, keepdim=True)
        if norm.bias is not None:
            biases_N += unembed_ND @ norm.bias.double()
    if head.bias is not None:
        biases_N += head.bias[list(token_ids)].double()
    return directions_ND, biases_N


def neuron_directions(down: Place, directions_ND: Tensor) -> Tensor:
    """Return directions [N, M] seen through the projection that takes an MLP's hidden layer, float64."""
    assert isinstance(down, Site)
    weight: Any = down.module.weight
    weight_MD: Tensor = (weight.T if isinstance(down.module, nn.Linear) else weight).double()
    return directions_ND.to(weight_MD.device) @ weight_MD.T


def _final_norm(model: Any) -> Any:
    return next(getattr(model.base_model, name) for name in _FINAL_NORMS if hasattr(model.base_model, name))
