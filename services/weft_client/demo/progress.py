"""What the demo shows while it works: one line a step, with a bar, the rate and the time left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Steps:
    """
    The demo's steps on a terminal, or plain lines where there is none.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]:<44}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the bars for as long as this lasts."""
        with self._progress:
            yield

    @contextmanager
    def step(self, title: str) -> Iterator["Step"]:
        """Add a step, and mark it as done when the block ends well."""
        step = Step(self._progress, self._progress.add_task(title, total=None, note=""))
        yield step
        step.finish()
        if not self._console.is_terminal:
            self._console.print(f"{title}: {step.last_note}", soft_wrap=True)


class Step:
    """One bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self.last_note = ""

    def update(self, completed: float, total: float, note: str = "") -> None:
        """Move the bar; `total` 0 means not known yet."""
        self.last_note = note or self.last_note
        self._progress.update(self._task, completed=completed, total=total or None, note=self.last_note)

    def note(self, note: str) -> None:
        """Change the words beside the bar."""
        self.last_note = note
        self._progress.update(self._task, note=note)

    def finish(self) -> None:
        """Fill the bar."""
        task = self._progress.tasks[self._task]
        total = task.total or 1
        self._progress.update(self._task, completed=total, total=total)
