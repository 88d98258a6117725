"""A run at Weights & Biases, by its own client; WANDB_MODE=offline writes files alone, for `wandb sync`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft_client.tracking.following import Histogram
from weft_common.errors import FailedPreconditionError

__all__ = ["WandbRun"]


class WandbRun:
    """
    Logs into a project, under the run's own id, so that the same run logged again goes on in the same place.

    Args:
        project: Made where it is missing.
        run_id: Id of the run.
        config: The run's spec.
        folder: Where the client keeps its files, `wandb/` in it; by default the present one.

    Raises:
        FailedPreconditionError: The extra is not installed.
    """

    def __init__(self, project: str, run_id: str, config: Mapping[str, Any], folder: Path | None = None) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise FailedPreconditionError(f"W&B needs the package {error.name}: install weft[wandb].") from error
        self._wandb: Any = wandb
        # This process only passes figures on: its own load, output and packages say nothing of the run.
        quiet = wandb.Settings(console="off", x_disable_stats=True, x_disable_machine_info=True)
        self._run: Any = wandb.init(
            project=project,
            id=run_id,
            name=run_id,
            config=dict(config),
            dir=folder,
            resume="allow",
            settings=quiet,
        )

    def log(self, step: int, values: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Keep what was measured at a step."""
        shown = {
            name: self._wandb.Histogram(np_histogram=(list(each.counts), list(each.edges)))
            for name, each in histograms.items()
        }
        self._run.log({**values, **shown}, step=step)

    def close(self) -> None:
        """Send, or write down, everything."""
        self._run.finish()
