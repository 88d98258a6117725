"""
Which features are active on a prompt, what they write, and what they leave unexplained.

Source: Ameisen et al. 2025, methods; circuit-tracer for the order of nodes. Deviations: none.
Features and errors at the first position do not exist, nor at any before `LinearWeights.first_position`: the MLP
outputs there are constants of the graph.

Legend: P positions, D d_model, L layers, N active (layer, position, feature) triples, U distinct features that write
to one layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.firing import Firing
from weft_attribution.core.mapped import MappedTensor
from weft_attribution.core.skips import Skip
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import ResourceExhaustedError

__all__ = ["ActiveFeatures", "find_features"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ActiveFeatures:
    """
    The features of one prompt, sorted by (layer, position, index), and the rest of the MLP outputs.

    Args:
        layer_N: Layer that each reads.
        position_N: Where each is active.
        index_N: Index within its layer.
        value_N: Pre-activation.
        activation_N: Activation.
        reader_ND: Encoder rows folded through the norm and divided by its frozen scale.
        offset_N: What the encoder row sees whatever the stream is: its bias, and the norm's.
        writers_UD: For each target layer the decoders of the distinct features at or below it.
        writer_N: Row of each triple in `writers_UD`, the same for every target layer.
        error_LPD: MLP output less reconstruction and skip; zero where there are no features.
        constant_LPD: What is nobody's: decoder biases, and the whole MLP output, less the skip, where there are no
            features.
        mapped: What `writers_UD` are views of, by layer, where they lie in scratch files.
    """

    layer_N: Array
    position_N: Array
    index_N: Array
    value_N: Tensor
    activation_N: Tensor
    reader_ND: Tensor
    offset_N: Tensor
    writers_UD: tuple[Tensor, ...]
    writer_N: Tensor
    error_LPD: Tensor
    constant_LPD: Tensor
    mapped: tuple[MappedTensor, ...] = field(default=(), repr=False)

    def release(self, layer: int) -> None:
        """Let the memory of decoders that write to `layer` go, where they lie in a file."""
        if self.mapped:
            self.mapped[layer].release()

    def __len__(self) -> int:
        return len(self.layer_N)

    def reconstruction(self, layer: int, activation_N: Tensor) -> Tensor:
        """What features with these activations write at `layer`, without biases: [P, D]."""
        below = torch.from_numpy(self.layer_N <= layer)
        position = torch.from_numpy(self.position_N)[below]
        acts_PU = torch.zeros(self.error_LPD.shape[1], self.writers_UD[layer].shape[0], dtype=activation_N.dtype)
        acts_PU[position, self.writer_N[below]] = activation_N[below]
        return acts_PU @ self.writers_UD[layer]


def find_features(
    weights: LinearWeights,
    transcoder: TranscoderReader,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    skips: Sequence[Skip | None] = (),
    *,
    num_positions: int,
    max_features: int,
    max_writer_bytes: int,
) -> ActiveFeatures:
    """
    Encode a prompt's streams and gather the decoders of what is active.

    Args:
        weights: Frozen weights of the model.
        transcoder: The transcoder.
        tensors: Captured streams.
        skips: The transcoder's linear skips by layer, if it has any.
        num_positions: P.
        max_features: Most active triples accepted.
        max_writer_bytes: Decoders that take more than this together are kept in scratch files.

    Raises:
        ResourceExhaustedError: More triples are active than `max_features`.
    """
    num_layers, d_model, dtype = weights.num_layers, weights.d_model, weights.dtype
    reads_norm = transcoder.manifest.input_hook == "mlp_in"
    layers, positions, indices = [], [], []
    values, activations, readers, offsets = [], [], [], []
    biases, outputs = [], []
    firing, found = Firing(transcoder, tensors, num_layers, dtype), 0
    for layer in range(num_layers):
        encoder = transcoder.encoder(layer)
        pre_PF = firing.preactivations(layer, encoder)
        active_PF = firing.fires(encoder, pre_PF)
        active_PF[: weights.first_position] = False
        position, index = active_PF.nonzero(as_tuple=True)
        found += len(position)
        if found > max_features:
            raise ResourceExhaustedError(
                f"more than {max_features} features are active on this prompt by layer {layer}; "
                "use a shorter prompt or a sparser transcoder, or raise WEFT_ATTRIBUTION_MAX_FEATURES"
            )
        norm = weights.layers[layer].mlp_norm
        rows_ND = torch.tensor(encoder.w_enc_FD[index.numpy()], dtype=dtype)
        bias_N = torch.tensor(encoder.b_enc_F[index.numpy()], dtype=dtype)
        layers.append(np.full(len(position), layer, dtype=np.int64))
        positions.append(position.numpy())
        indices.append(index.numpy())
        values.append(pre_PF[position, index])
        activations.append(pre_PF[position, index])
        scale_P = torch.tensor(tensors[f"layers.{layer}.ln2.scale"], dtype=dtype)
        readers.append(norm.fold(rows_ND) / scale_P[position][:, None] if reads_norm else rows_ND)
        offsets.append(bias_N + (norm.offset(rows_ND) if reads_norm else 0))
        biases.append(torch.tensor(encoder.b_dec_D, dtype=dtype))
        outputs.append(torch.tensor(tensors[f"layers.{layer}.mlp_out"], dtype=dtype))
        skip = skips[layer] if skips else None
        if skip is not None and encoder.w_skip_DD is not None:
            # What the skip writes is no source of its own: it belongs to the sources of what it reads.
            biases[-1] += skip.offset_D
            outputs[-1] -= firing.stream(layer) @ torch.tensor(encoder.w_skip_DD, dtype=dtype).T - skip.offset_D
    writers_UD, writer_N, mapped = _gather_writers(transcoder, layers, indices, d_model, dtype, max_writer_bytes)
    error_LPD = torch.stack(outputs)
    constant_LPD = torch.stack(biases)[:, None, :].repeat(1, num_positions, 1)
    first = slice(weights.first_position)
    constant_LPD[:, first] = error_LPD[:, first]
    features = ActiveFeatures(
        layer_N=np.concatenate(layers),
        position_N=np.concatenate(positions),
        index_N=np.concatenate(indices),
        value_N=torch.cat(values),
        activation_N=torch.cat(activations),
        reader_ND=torch.cat(readers),
        offset_N=torch.cat(offsets),
        writers_UD=writers_UD,
        writer_N=writer_N,
        error_LPD=error_LPD,
        constant_LPD=constant_LPD,
        mapped=mapped,
    )
    for layer in range(num_layers):
        error_LPD[layer] -= features.reconstruction(layer, features.activation_N) + constant_LPD[layer]
        features.release(layer)
    error_LPD[:, first] = 0
    return features


def _gather_writers(
    transcoder: TranscoderReader,
    layers: list[Array],
    indices: list[Array],
    d_model: int,
    dtype: torch.dtype,
    max_bytes: int,
) -> tuple[tuple[Tensor, ...], Tensor, tuple[MappedTensor, ...]]:
    """Read each distinct feature's decoders once, sorted by the layer they write to."""
    num_layers = len(layers)
    unique = [np.unique(index, return_inverse=True) for index in indices]
    first = np.concatenate([[0], np.cumsum([len(features) for features, _ in unique])])
    shapes = [(int(count), d_model) for count in first[1:]]
    mapped: tuple[MappedTensor, ...] = ()
    if int(first[1:].sum()) * d_model * dtype.itemsize > max_bytes:
        mapped = tuple(MappedTensor(shape, dtype) for shape in shapes)
    writers = [each.tensor for each in mapped] or [torch.zeros(shape, dtype=dtype) for shape in shapes]
    for layer, (features, _) in enumerate(unique):
        for start, rows in transcoder.decoders(layer, features):
            block = torch.from_numpy(np.ascontiguousarray(rows)).to(dtype)
            low = int(first[layer]) + start
            for target in range(layer, min(layer + block.shape[1], num_layers)):
                writers[target][low : low + len(block)] = block[:, target - layer]
        for each in mapped:
            each.release()
    writer = np.concatenate([first[layer] + inverse for layer, (_, inverse) in enumerate(unique)])
    return tuple(writers), torch.from_numpy(writer.astype(np.int64)), mapped
