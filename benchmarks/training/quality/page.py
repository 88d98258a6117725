"""The page of the comparison: what was compared, a plot of the fronts, a table of all settings, and one of the rows."""

from __future__ import annotations

from collections.abc import Sequence

from .arms import PEER, Training
from .fronts import Mean, means
from .plot import Panel, Series, draw
from .points import Point
from .tokens import TokenData

__all__ = ["conditions_of", "pareto_plot", "quality_page"]

_INTRODUCTION = """# Quality of training

<!-- Written by benchmarks/training/bench_quality.py; change it there. -->

Is a CLT that weft trains as good as one of [CLT-Forge](https://github.com/LLM-Interp/CLT-Forge), at equal tokens, data,
L0 and seeds?

<!-- not run: takes up to 45 minutes and CLT-Forge's code -->
```bash
make bench-quality BENCH_FLAGS="--clt-forge FOLDER --clt-forge-python PYTHON"
```

- **Data**: SmolLM2-135M's MLP inputs and outputs on Python's help topics, harvested by the activations service's code,
  in float16 in the units of training. Held-out documents are in no training token. Of the 30 layers some that follow
  each other are kept, since CLT-Forge's step multiplies every zero of all their pairs; they are a CLT of their own.
- **Training**: every side takes the same tokens in the same order, in steps of the same size, from the same seeds, in
  float32. CLT-Forge trains in its own process by its own trainer: its losses, gradients, schedules, clipping and Adam,
  with the settings of its GPT-2 run; warm-ups are the same shares of the steps there are. One thing of it is replaced:
  its start of the biases asks for a firing rate of 10,000 / F, an index error below 10,000 features, so the rate is a
  half. It is there a second time at the learning rate of weft's arms, which such a short run wants.
- **Evaluation**: one evaluator in plain torch, which shares no code with either side, on held-out tokens; a point's
  seeds train, and are compared, one by one.
- **At equal L0**: weft's explained variance is read off its arm's front at the L0 that CLT-Forge's run came to, on the
  straight line over log L0 between the two points beside it; beyond the densest point that point counts itself.
- `clt-forge-gpt2` is weft's own version of CLT-Forge's recipe; `jump-relu` has its losses, the gradient through the
  threshold, and the optimiser of `weft demo`, which all the others have too. Explained variance is the mean over
  layers; silent are features that no held-out token makes active.

"""


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
    return draw([panel])


def quality_page(points: Sequence[Point], rows: Sequence[dict[str, object]], conditions: str, image: str) -> str:
    """
    Return the page, Markdown.

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
    return _INTRODUCTION + "\n".join(lines) + "\n"
