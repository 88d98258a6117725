"""How training runs are shown in a terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from weft.training.v1 import messages_pb2, service_pb2
from weft_client.cli.output import size, state, time
from weft_client.names import short_id

__all__ = ["Board", "run_fields", "run_state"]


def run_state(run: messages_pb2.Run) -> str:
    """Its state in a word."""
    return state(messages_pb2.RunState.Name(run.state))


def _since(run: messages_pb2.Run) -> str:
    return f" since {time(run.transitions[-1].time)}" if run.transitions else ""


def _network(run: messages_pb2.Run) -> str:
    sent, entries = run.metrics.sent_bytes_per_token, run.metrics.entry_bytes_per_token
    return f"{size(round(sent))} a token and rank, {size(round(entries))} of them for active features"


def _epoch(epoch: messages_pb2.Epoch) -> str:
    whole = f"snapshot {epoch.snapshot}" if epoch.snapshot else "the sealed dataset"
    what = f"what {whole} has beyond {epoch.since_snapshot}" if epoch.since_snapshot else whole
    times = f", {epoch.passes:,} times" if epoch.passes > 1 else ""
    return f"{what}, {epoch.num_tokens:,} tokens{times}"


def run_fields(run: messages_pb2.Run) -> list[tuple[str, str]]:
    """What is told of one run, by name."""
    spec = run.spec
    fields = [
        ("name", run.name),
        ("state", f"{run_state(run)}{_since(run)}"),
        ("reason", run.error_message or (run.transitions[-1].reason if run.transitions else "")),
        ("attempts", str(run.attempt)),
        ("dataset", spec.dataset),
        ("features", f"{spec.num_features} a layer, {messages_pb2.Activation.Name(spec.activation)[11:].lower()}"),
        ("ranks", f"{spec.feature_ranks} on the feature axis, {spec.data_ranks} on the data axis"),
        ("step", f"{run.step} of {spec.num_steps}"),
        *([("waiting for", run.pending_reason)] if run.pending_reason else []),
        ("memory", size(run.peak_memory_bytes)),
        *([("network", _network(run))] if run.metrics.sent_bytes_per_token else []),
        ("created", time(run.create_time)),
    ]
    fields += [(f"epoch {epoch.index}", _epoch(epoch)) for epoch in run.epochs]
    if run.HasField("evaluation"):
        fields.append(("explained variance", f"{run.evaluation.explained_variance:.3f} on held-out tokens"))
    return fields


class Board:
    """The last steps of a run as a table."""

    rows = 15

    def __init__(self, run: str) -> None:
        self._name = run
        self._metrics: list[messages_pb2.Metrics] = []
        self._evaluation: messages_pb2.Evaluation | None = None
        self.run: messages_pb2.Run | None = None

    def add(self, event: service_pb2.WatchRunResponse) -> None:
        """Take in what is new."""
        if event.HasField("metrics"):
            self._metrics = [*self._metrics, event.metrics][-self.rows :]
        elif event.HasField("evaluation"):
            self._evaluation = event.evaluation
        elif event.HasField("run"):
            self.run = event.run

    def render(self) -> Group:
        """The table, and a line under it."""
        table = Table(
            "step", "tokens", "loss", "explained", "L0", "dead", "gradient", "tokens/s", box=None, pad_edge=False
        )
        for each in self._metrics:
            table.add_row(
                str(each.step),
                f"{each.tokens:,}",
                f"{each.loss:.4f}",
                f"{each.explained_variance:.3f}",
                f"{each.l0:.1f}",
                f"{each.dead_share:.1%}",
                f"{each.gradient_norm:.3f}",
                f"{each.tokens_per_s:,.0f}",
            )
        below = f"{short_id(self._name)}: {run_state(self.run) if self.run else 'waiting for the trainer'}"
        if self._evaluation is not None:
            below += (
                f"; held out after step {self._evaluation.step}: "
                f"explained variance {self._evaluation.explained_variance:.3f}"
            )
        return Group(table, Text(below))
