"""
The page of a long run: its figures, its curves over tokens, and its evaluation layer by layer.

A document is what `long_run.py` writes: the spec, every step's metrics, the evaluations on the way and the last one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from plots import Panel, Series, line_chart

__all__ = ["curve_plot", "long_lines"]

_PLOTTED = 240
"""Most points of a curve."""


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Take means of neighbours until no more are left than a plot shows."""
    size = -(-len(points) // _PLOTTED)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group)) for group in groups]


def curve_plot(document: dict[str, Any]) -> str:
    """Draw loss, explained variance and L0 over the tokens of training, as an SVG."""
    steps, held_out = document["steps"], document["evaluations"]
    tokens_of = {step["step"]: step["tokens"] for step in steps}

    def curve(field: str) -> list[tuple[float, float]]:
        return _thinned([(step["tokens"], step[field]) for step in steps])

    explained = [(tokens_of[each["step"]], each["explained_variance"]) for each in held_out]
    l0 = [(tokens_of[each["step"]], statistics.fmean(each["l0_by_layer"])) for each in held_out]
    return line_chart(
        [
            Panel("Loss", "tokens", "loss", [Series("training step", curve("loss"))]),
            Panel(
                "Explained variance, mean over layers",
                "tokens",
                "explained variance",
                [Series("training step", curve("explained_variance")), Series("held out", explained, marked=True)],
            ),
            Panel(
                "L0: active features a token and layer",
                "tokens",
                "L0",
                [Series("training step", curve("l0")), Series("held out", l0, marked=True)],
            ),
        ]
    )


def long_lines(document: dict[str, Any], image: str) -> list[str]:
    """
    Return the figures of the page, lines of Markdown.

    Args:
        image: Link to the plot.
    """
    spec, evaluation, steps = document["spec"], document["evaluation"], document["steps"]
    replacement = evaluation["replacement"]
    whole = replacement["all"]
    activation = spec["activation"].removeprefix("ACTIVATION_").lower().replace("_", "-")
    l0 = statistics.fmean(evaluation["l0_by_layer"])
    figures = {
        "recipe": f"{activation}, k {spec['top_k']}, F {spec['num_features']}, AuxK {spec['aux_top_k']}, "
        f"learning rate {spec['learning_rate']:g}",
        "steps": f"{len(steps):,} of {spec['step_tokens']:,} tokens, {steps[-1]['tokens']:,} tokens in all, out of "
        f"{document['train_tokens']:,}",
        "ranks": f"{spec['feature_ranks']} on {document['cores']} cores",
        "time": f"{document['seconds'] / 60:.1f} minutes of steps, {steps[-1]['tokens'] / document['seconds']:,.0f} "
        "tokens/s",
        "explained variance, held out": f"{evaluation['explained_variance']:.3f}",
        "L0, held out": f"{l0:.1f}",
        "silent features": f"{evaluation['silent_share']:.1%}",
        "top-1 agreement, all layers replaced": f"{whole['top1_agreement']:.1%}",
        "KL, all layers replaced": f"{whole['kl_divergence']:.3f} nats",
        "cross-entropy recovered, all layers replaced": f"{float(whole['recovered']):.3f}",
    }
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in figures.items())]
    lines += ["", f"![Loss, explained variance and L0 over tokens]({image})", ""]
    lines += [
        f"Layer by layer, on {int(evaluation['tokens']):,} held-out tokens; each layer replaced alone on "
        f"{int(replacement['tokens']):,} predictions:",
        "",
        "| layer | explained variance | L0 | silent | top-1 | KL | cross-entropy recovered |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for layer, score in enumerate(replacement["by_layer"]):
        lines.append(
            f"| {layer} | {evaluation['explained_variance_by_layer'][layer]:.3f} "
            f"| {evaluation['l0_by_layer'][layer]:.1f} | {evaluation['silent_share_by_layer'][layer]:.1%} "
            f"| {score['top1_agreement']:.1%} | {score['kl_divergence']:.4f} | {float(score['recovered']):.3f} |"
        )
    return lines
