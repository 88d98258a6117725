"""The page of the comparison: what was compared, a plot of the fronts, a table of all settings, and one of the rows."""

from __future__ import annotations

from collections.abc import Sequence

from plots import Panel, Series, line_chart

from .arms import PEER, Training
from .fronts import Mean, means
from .points import Point
from .tokens import TokenData

__all__ = ["conditions_of", "pareto_plot", "quality_lines"]


def conditions_of(data: TokenData, training: Training, threads: int) -> str:
    """Return what was measured under, in a line."""
    size = data.size
    return (
        f"{data.meta['model']}, layers {size.first_layer} to {size.first_layer + size.num_layers - 1}, "
        f"d {data.d_model}, F {training.num_features}, {training.num_steps} steps of {training.step_tokens} tokens of "
        f"{size.train_tokens}, {size.held_out_tokens} held-out tokens, float32, CPU, {threads} thread(s)"
    )


def pareto_plot(points: Sequence[Point]) -> str:
    """Draw the fronts of all arms as an SVG; CLT-Forge's are dashed."""
    fronts: dict[str, list[Mean]] = {}
    for mean in means(points):
        name = f"{PEER}, {mean.arm}" if mean.side == PEER else mean.arm
        fronts.setdefault(name, []).append(mean)
    series = [
        Series(
            name,
            sorted((mean.l0, mean.explained_variance) for mean in members),
            dashed=members[0].side == PEER,
            marked=True,
        )
        for name, members in fronts.items()
    ]
    panel = Panel(
        "Explained variance on held-out tokens, mean over layers and seeds",
        "L0: active features a token and layer",
        "explained variance",
        series,
        log_x=True,
    )
    return line_chart([panel])


def quality_lines(points: Sequence[Point], rows: Sequence[dict[str, object]], conditions: str, image: str) -> list[str]:
    """
    Return the figures of the page, lines of Markdown.

    Args:
        rows: What the benchmark writes, in which the arms are compared at equal L0.
        image: Link to the plot.
    """
    lines = [f"Measured: {conditions}.", "", f"![Explained variance over L0]({image})", ""]
    lines += [
        "| side | arm | setting | L0 | explained variance | lowest and highest seed | all layers' sum | silent |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for mean in means(points):
        low, high = mean.spread
        lines.append(
            f"| {mean.side} | {mean.arm} | {mean.setting} {mean.value:g} | {mean.l0:.1f} "
            f"| {mean.explained_variance:.3f} | {low:.3f}, {high:.3f} | {mean.total_explained_variance:.3f} "
            f"| {mean.silent_share:.1%} |"
        )
    if rows:
        lines += ["", "At equal L0; a ratio above 1 means that weft explains more.", ""]
        lines += ["| compared | weft | CLT-Forge | ratio |", "| --- | --- | --- | --- |"]
        for row in rows:
            ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
            name = str(row["name"]).removeprefix("explained variance at ")
            lines.append(f"| {name} | {row['ours']:.3f} | {row['peer']:.3f} | {ratio} |")
    return lines
