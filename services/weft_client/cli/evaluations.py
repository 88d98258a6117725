"""An evaluation as a table, layer by layer."""

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from weft.training.v1 import messages_pb2

__all__ = ["evaluation_table"]


def evaluation_table(evaluation: messages_pb2.Evaluation) -> Group:
    """Return what was measured on held-out tokens: a line for every layer, one for all, and what the figures mean."""
    replaced = evaluation.HasField("replacement")
    table = Table(box=None, pad_edge=False)
    headings = ["layer", "explained", "L0", "silent", "dense"]
    if replaced:
        headings += ["top-1", "KL", "CE recovered"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for layer, explained in enumerate(evaluation.explained_variance_by_layer):
        cells = [
            str(layer),
            f"{explained:.3f}",
            _cell(evaluation.l0_by_layer, layer, ".1f"),
            _cell(evaluation.silent_share_by_layer, layer, ".1%"),
            _cell(evaluation.dense_share_by_layer, layer, ".1%"),
        ]
        table.add_row(*cells, *(_scores(evaluation.replacement.by_layer[layer]) if replaced else ()))
    num_layers = max(1, len(evaluation.l0_by_layer))
    table.add_section()
    table.add_row(
        "all",
        f"{evaluation.explained_variance:.3f}",
        f"{sum(evaluation.l0_by_layer) / num_layers:.1f}",
        f"{evaluation.silent_share:.1%}",
        f"{evaluation.dense_share:.1%}",
        *(_scores(evaluation.replacement.all) if replaced else ()),
    )
    lines = [f"step {evaluation.step}, {evaluation.tokens:,} held-out tokens; figures of `all` are means over layers"]
    if replaced:
        found = evaluation.replacement
        lines += [
            f"replacement model: {found.tokens:,} predictions of {found.sequences:,} held-out sequences, one layer "
            "at a time and, in the last line, all at once; recovered relative to zero ablation",
            f"cross-entropy in nats: model {found.cross_entropy:.3f}, all replaced {found.all.cross_entropy:.3f}, "
            f"all ablated {found.all.ablated_cross_entropy:.3f}",
        ]
    return Group(table, *(Text(line) for line in lines))


def _cell(values: Sequence[float], layer: int, form: str) -> str:
    """A figure of a layer; a dash where the evaluation is of a version that did not measure it."""
    return format(values[layer], form) if layer < len(values) else "–"


def _scores(score: messages_pb2.ReplacementScore) -> tuple[str, str, str]:
    recovered = "–" if math.isnan(score.recovered) else f"{score.recovered:.3f}"
    return f"{score.top1_agreement:.1%}", f"{score.kl_divergence:.4f}", recovered
