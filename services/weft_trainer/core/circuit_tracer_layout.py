"""Describes files in circuit-tracer's layout by their headers, without reading a weight."""

from dataclasses import dataclass

from weft_clt.formats.circuit_tracer import CircuitTracerFiles
from weft_clt.formats.representation import MLP_NORMALIZED, TranscoderFacts
from weft_common.errors import FailedPreconditionError
from weft_store import ObjectStore
from weft_trainer.core.bucket_files import BucketFiles

__all__ = ["LayoutFacts", "activation_of", "inspect_layout"]


@dataclass(frozen=True)
class LayoutFacts:
    """
    What the headers say.

    Args:
        num_layers: L.
        num_features: F.
        d_model: d.
        input_hook: Ours.
        output_hook: Ours.
        activation: `top_k` or `joint_top_k` where features are counted, else `threshold` where every layer has one,
            else `relu`.
        top_k: Features kept of a layer, or of a layer in the mean; 0 where they are not counted.
        window: Layers that a feature writes to, its own included.
        size_bytes: Of all files.
        files: Their names, in order.
    """

    num_layers: int
    num_features: int
    d_model: int
    input_hook: str
    output_hook: str
    activation: str
    top_k: int
    window: int
    size_bytes: int
    files: tuple[str, ...]


def activation_of(facts: TranscoderFacts) -> str:
    """Say how features are selected."""
    if facts.top_k:
        return "joint_top_k" if facts.over_layers else "top_k"
    return "threshold" if facts.has_thresholds else "relu"


def inspect_layout(store: ObjectStore, prefix: str) -> LayoutFacts:
    """
    Check every file under a prefix.

    Raises:
        NotFoundError: There is no config.yaml there.
        FailedPreconditionError: It is another kind of transcoder, or reads a hook that weft does not have.
        DataLossError: A file is missing, cut short, or not what the layout says.
    """
    files = BucketFiles(store, prefix)
    found = CircuitTracerFiles(files)
    facts = found.facts
    if facts.input_hook == MLP_NORMALIZED:
        raise FailedPreconditionError(
            "config.yaml says that it reads ln2.hook_normalized, which weft does not capture: give a format, so that "
            "the norms' weights are folded in.",
            field="prefix",
        )
    return LayoutFacts(
        num_layers=facts.num_layers,
        num_features=facts.num_features,
        d_model=facts.d_model,
        input_hook=facts.input_hook,
        output_hook=facts.output_hook,
        activation=activation_of(facts),
        top_k=facts.top_k,
        window=facts.window,
        size_bytes=sum(files.sizes()[name] for name in found.names),
        files=tuple(found.names),
    )
