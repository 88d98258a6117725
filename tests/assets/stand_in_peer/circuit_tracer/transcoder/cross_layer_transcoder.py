"""
A package with the names that `benchmarks/formats/in_peer.py` takes from circuit-tracer, for tests of the comparison.

Written here after circuit-tracer's layout: one encoder file and one decoder file a layer. Knows nothing of weft.
Shapes: L layers, T tokens, F features, D d_model.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class CrossLayerTranscoder(nn.Module):
    """JumpReLU with decoders to all later layers."""

    def __init__(
        self, n_layers: int, d_transcoder: int, d_model: int, *, activation_function: str, lazy_decoder: bool,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        assert (activation_function, lazy_decoder) == ("jump_relu", False)
        self.W_enc = nn.Parameter(torch.zeros(n_layers, d_transcoder, d_model, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(n_layers, d_transcoder, dtype=dtype))
        self.threshold = nn.Parameter(torch.zeros(n_layers, d_transcoder, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(n_layers, d_model, dtype=dtype))
        self.W_dec = nn.ParameterList(
            torch.zeros(d_transcoder, n_layers - layer, d_model, dtype=dtype) for layer in range(n_layers)
        )

    def forward(self, inputs_LTD: Tensor) -> Tensor:
        """Predict the outputs [L, T, D]."""
        out_LTD = self.b_dec[:, None].expand(inputs_LTD.shape).clone()
        for layer, inputs_TD in enumerate(inputs_LTD):
            preact_TF = inputs_TD @ self.W_enc[layer].T + self.b_enc[layer]
            acts_TF = preact_TF * (preact_TF > self.threshold[layer])
            out_LTD[layer:] += torch.einsum("tf,fod->otd", acts_TF, self.W_dec[layer])
        return out_LTD

    def to_safetensors(self, folder: str) -> None:
        """Write two files a layer."""
        for layer, w_dec in enumerate(self.W_dec):
            encoder = {"W_enc": self.W_enc, "b_enc": self.b_enc, "b_dec": self.b_dec, "threshold": self.threshold}
            tensors = {f"{name}_{layer}": each[layer].detach().clone() for name, each in encoder.items()}
            save_file(tensors, Path(folder) / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": w_dec.detach()}, Path(folder) / f"W_dec_{layer}.safetensors")


def load_clt(folder: str, *, device: torch.device, dtype: torch.dtype, lazy_decoder: bool) -> CrossLayerTranscoder:
    """Read what `to_safetensors` writes."""
    files = [load_file(path) for path in sorted(Path(folder).glob("W_*.safetensors"))]
    tensors = {name: tensor for file in files for name, tensor in file.items()}
    num_layers = sum(name.startswith("W_enc") for name in tensors)
    num_features, d_model = tensors["W_enc_0"].shape
    loaded = CrossLayerTranscoder(
        num_layers, num_features, d_model, activation_function="jump_relu", lazy_decoder=lazy_decoder, dtype=dtype
    )
    with torch.no_grad():
        for layer in range(num_layers):
            for name in ("W_enc", "b_enc", "b_dec", "threshold"):
                getattr(loaded, name)[layer].copy_(tensors[f"{name}_{layer}"])
            loaded.W_dec[layer].copy_(tensors[f"W_dec_{layer}"])
    return loaded.to(device)
