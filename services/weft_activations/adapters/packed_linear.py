"""
Linear layers whose weights lie as oneDNN wants them, so that no product has to lay them out again.

A prompt of some hundred tokens is short beside a weight: laying it out is a tenth of its product. The plain weight is
not kept beside the packed one.

Legend: O outputs, I inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PackedLinear", "pack_linears"]

# The layout is chosen for products of about so many rows, and right for any number.
_ROWS = 256


class PackedLinear(nn.Linear):
    """
    A linear layer that computes what the plain one does, up to the order of float32 sums.

    Args:
        linear: Float32 on a processor; its weight can be dropped afterwards.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The plain weight, [O, I]: a copy at each call."""
        weight_OI: Tensor = self._packed.to_dense()
        return weight_OI

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., I] times the weight plus the bias, [..., O]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


def pack_linears(model: Any) -> None:
    """
    Pack a model's linear layers in place, one after the other.

    Its unembedding, often tied, stays as it is, and so does what takes more than the residual stream's width: oneDNN
    sums an MLP's hidden layer, massive activations and all, in an order ten times as far from float64 as PyTorch's.
    Nothing happens where the model is not float32 on a processor, or this build of PyTorch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head and _fits(child, model.config.hidden_size):
                setattr(parent, name, PackedLinear(child))


def _fits(linear: nn.Linear, d_model: int) -> bool:
    weight = linear.weight
    return linear.in_features <= d_model and weight.dtype == torch.float32 and weight.device.type == "cpu"
