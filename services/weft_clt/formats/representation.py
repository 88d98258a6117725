"""
What every layout is read into and written from: a transcoder whose weights are fetched a piece at a time.

    h_l    = W_enc_l x_l + b_enc_l
    a_l    = h_l * 1[h_l > threshold_l]                 threshold 0 where there is none (ReLU)
             h_l * 1[h_l > 0, of the largest k]         TopK: of a layer, or of all layers by h_l * rank_norm_l
    yhat_t = sum of W_dec_{l->t}^T a_l over l, t - window < l <= t, + b_dec_t + W_skip_t x_t, where there is a skip

in the model's own units: whatever a layout keeps beside its weights (scales of inputs and outputs, thresholds as
logarithms or in units of decoder norms) is folded in by its reader.
Shapes: L layers, F features of a layer, D d_model, f features of a block.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from weft_common.errors import FailedPreconditionError

__all__ = [
    "INPUT_HOOKS",
    "MAX_LAYERS",
    "MLP_NORMALIZED",
    "Array",
    "Encoder",
    "TranscoderFacts",
    "TranscoderSource",
    "blocks",
    "hook_of_layer",
    "hook_point",
    "peer_hook",
]

Array = NDArray[Any]

MLP_NORMALIZED = "mlp_normalized"
"""Input before the weight and bias of the norm in front of the MLP; what peers call ln2.hook_normalized."""

MAX_LAYERS = 1024
"""Of a model; what claims more is broken."""

_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class TranscoderFacts:
    """
    What is known before a weight is read.

    Args:
        num_layers: L.
        num_features: F.
        d_model: D.
        input_hook: What it reads: `mlp_in`, `resid_mid` or `mlp_normalized`.
        output_hook: What it predicts: `mlp_out`.
        has_thresholds: JumpReLU; else ReLU.
        window: Layers that a feature writes to, its own included: L for a cross-layer transcoder, 1 for per-layer ones.
        has_skip: Each layer has a linear map from its input to its output.
        top_k: Features kept of each layer, for TopK; 0 where thresholds alone decide. Thresholds are there beside it,
            for layouts that have no TopK.
        over_layers: TopK keeps `top_k` times L of all layers together.
    """

    num_layers: int
    num_features: int
    d_model: int
    input_hook: str
    output_hook: str
    has_thresholds: bool
    window: int
    has_skip: bool = False
    top_k: int = 0
    over_layers: bool = False

    def targets(self, layer: int) -> range:
        """Return the layers that features of a layer write to."""
        return range(layer, min(layer + self.window, self.num_layers))

    @property
    def num_pairs(self) -> int:
        """Decoder blocks over all layers."""
        window = min(self.window, self.num_layers)
        return self.num_layers * window - window * (window - 1) // 2


@dataclass(frozen=True)
class Encoder:
    """
    What reads one layer's input: weights [F, D], biases [F] and, for JumpReLU, thresholds [F]; float32 or float64.

    `w_skip_DD`, [outputs, inputs], is there where `TranscoderFacts.has_skip` says so, and `rank_norm_F`, what
    activations are ranked by beside their size, where it says `over_layers`.
    """

    w_enc_FD: Array
    b_enc_F: Array
    threshold_F: Array | None
    w_skip_DD: Array | None = None
    rank_norm_F: Array | None = None


class TranscoderSource(Protocol):
    """Weights in the model's own units, read when asked for. DataLossError where what is stored is no finite number."""

    @property
    def facts(self) -> TranscoderFacts:
        """What is known of it."""
        ...

    def encoder(self, layer: int) -> Encoder:
        """Read one layer's encoder."""
        ...

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        """Read what some features of a layer write to `target`, one of `facts.targets(layer)`: [f, D]."""
        ...

    def output_bias(self, target: int) -> Array:
        """Read the bias of what is predicted at a layer: [D]."""
        ...


def blocks(num_rows: int, row_values: int) -> Iterator[slice]:
    """
    Cut rows of so many values into blocks of at most 32 MiB in float64, or of one row.

    >>> [(rows.start, rows.stop) for rows in blocks(5, 2_000_000)]
    [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, _BLOCK_BYTES // (8 * max(1, row_values)))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


_HOOKS = {"mlp.hook_in": "mlp_in", "hook_resid_mid": "resid_mid", "ln2.hook_normalized": MLP_NORMALIZED}
_OUTPUT_HOOKS = {"hook_mlp_out": "mlp_out"}
INPUT_HOOKS = tuple(_HOOKS.values())
"""What a transcoder may read."""

_HOOK_POINT = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.([a-z0-9_.]{1,80})")


def hook_point(name: str) -> tuple[int, str] | None:
    """
    Split TransformerLens's name of a hook into its layer and the rest; None where it is no such name.

    >>> hook_point("blocks.3.hook_mlp_out"), hook_point("hook_mlp_out")
    ((3, 'hook_mlp_out'), None)
    """
    match = _HOOK_POINT.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def hook_of_layer(name: str, *, output: bool = False) -> str:
    """
    Translate TransformerLens's name of a hook, without its layer.

    Raises:
        FailedPreconditionError: weft does not capture it.

    >>> hook_of_layer("mlp.hook_in"), hook_of_layer("hook_mlp_out", output=True)
    ('mlp_in', 'mlp_out')
    """
    known = _OUTPUT_HOOKS if output else _HOOKS
    if name not in known:
        raise FailedPreconditionError(
            f"the transcoder {'predicts' if output else 'reads'} {name[:80]!r}, which weft does not capture: "
            f"only {', '.join(known)} can be imported.",
            field="prefix",
        )
    return known[name]


def peer_hook(name: str, *, output: bool = False) -> str:
    """Translate back. FailedPreconditionError where there is no such name."""
    for theirs, ours in (_OUTPUT_HOOKS if output else _HOOKS).items():
        if ours == name:
            return theirs
    raise FailedPreconditionError(f"other tools have no name for the hook {name!r}, so this cannot be exported.")
