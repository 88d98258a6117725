"""Every layout by its name: which one files are in, how to read them, how to write them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from weft_clt.formats import circuit_tracer, circuit_tracer_sets, clt_forge, gemma_scope, llamascopium, sae_lens
from weft_clt.formats.files import LayoutFiles
from weft_clt.formats.norm_folding import NormFolded
from weft_clt.formats.representation import (
    MLP_NORMALIZED,
    Array,
    Encoder,
    TranscoderFacts,
    TranscoderSource,
)
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

__all__ = ["AUTO", "READABLE", "WRITABLE", "check_writable", "detect", "open_transcoder", "write_transcoder"]

AUTO = "auto"

_READERS: Mapping[str, Callable[[LayoutFiles], TranscoderSource]] = {
    "circuit-tracer": circuit_tracer_sets.open_circuit_tracer,
    "clt-forge": clt_forge.CltForgeFiles,
    "llamascopium": llamascopium.LlamascopiumFiles,
    "saelens": sae_lens.SaeLensFiles,
    "gemmascope": gemma_scope.GemmaScopeFiles,
}
_WRITERS: Mapping[str, Callable[[TranscoderSource, Path, str], Iterator[str]]] = {
    "circuit-tracer": circuit_tracer.write_circuit_tracer,
    "clt-forge": clt_forge.write_clt_forge,
    "llamascopium": llamascopium.write_llamascopium,
    "saelens": sae_lens.write_sae_lens,
}
READABLE = tuple(_READERS)
WRITABLE = tuple(_WRITERS)
_INPUTS = ("mlp_in", "resid_mid")


def detect(files: LayoutFiles) -> str:
    """
    Tell which layout files are in, by their names.

    Raises:
        NotFoundError: There are none.
        FailedPreconditionError: They are of no layout that is known, or of several.
    """
    names = set(files.sizes())
    ends = {name.rpartition("/")[2] for name in names}
    found = [
        layout
        for layout, there in (
            ("circuit-tracer", circuit_tracer.CONFIG in names),
            ("clt-forge", clt_forge.CONFIG in names),
            ("llamascopium", llamascopium.CONFIG in names and llamascopium.WEIGHTS in names),
            ("saelens", sae_lens.CONFIG in ends),
            ("gemmascope", gemma_scope.PARAMETERS in ends),
        )
        if there
    ]
    if not names:
        raise NotFoundError(f"there are no files below '{files.where}'.", field="prefix")
    if len(found) != 1:
        what = f"could be {' or '.join(found)}" if found else f"are of no layout that weft reads: {sorted(names)[:10]}"
        raise FailedPreconditionError(
            f"the files below '{files.where}' {what}; expected one of {', '.join(READABLE)}. Pickled checkpoints (.pt, "
            ".pth, .bin) are never read: save them as safetensors.",
            field="format",
        )
    return found[0]


def open_transcoder(files: LayoutFiles, layout: str = AUTO, *, input_hook: str = "") -> TranscoderSource:
    """
    Open files in a layout as a transcoder that weft can explain prompts with.

    Args:
        files: Where they lie.
        layout: One of READABLE, or `auto`.
        input_hook: What it reads, `mlp_in` or `resid_mid`, where that is not what the files say.

    Raises:
        InvalidArgumentError: There is no such layout or hook.
        NotFoundError, FailedPreconditionError, DataLossError: See the layouts.
    """
    if layout not in (AUTO, *READABLE):
        raise InvalidArgumentError(
            f"format is {layout[:40]!r}: give {AUTO} or one of {', '.join(READABLE)}.", field="format"
        )
    if input_hook not in ("", *_INPUTS):
        raise InvalidArgumentError(
            f"input_hook is {input_hook[:40]!r}: give one of {', '.join(_INPUTS)}, or nothing for what the files say.",
            field="input_hook",
        )
    source = _READERS[detect(files) if layout == AUTO else layout](files)
    if input_hook:
        return _Renamed(source, input_hook)
    return NormFolded(source, files) if source.facts.input_hook == MLP_NORMALIZED else source


def check_writable(layout: str) -> None:
    """Refuse a layout that nothing is written in. InvalidArgumentError."""
    if layout not in _WRITERS:
        raise InvalidArgumentError(f"format is {layout[:40]!r}: give one of {', '.join(WRITABLE)}.", field="format")


def write_transcoder(source: TranscoderSource, layout: str, folder: Path, model: str) -> Iterator[str]:
    """
    Write a transcoder in a layout, yielding each file's name, relative to the folder, once it is whole.

    A block of features' decoders and one layer's encoder, in float64 or before and after a norm was folded in, are in
    memory at a time.

    Raises:
        InvalidArgumentError: There is no such layout.
        FailedPreconditionError: The layout cannot hold this transcoder.
    """
    check_writable(layout)
    if source.facts.has_skip and layout != "saelens":
        other = "export it as saelens" if source.facts.window == 1 else "nor has any other of cross-layer transcoders"
        raise FailedPreconditionError(
            f"the transcoder has a linear skip, for which {layout} has no place: {other}.", field="format"
        )
    return _WRITERS[layout](source, folder, model)


class _Renamed:
    """A transcoder of which somebody knows better what it reads."""

    def __init__(self, source: TranscoderSource, input_hook: str) -> None:
        self._source = source
        self._facts = replace(source.facts, input_hook=input_hook)

    @property
    def facts(self) -> TranscoderFacts:
        return self._facts

    def encoder(self, layer: int) -> Encoder:
        return self._source.encoder(layer)

    def decoder(self, layer: int, target: int, features: slice) -> Array:
        return self._source.decoder(layer, target, features)

    def output_bias(self, target: int) -> Array:
        return self._source.output_bias(target)
