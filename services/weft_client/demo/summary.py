"""What the demo measured: a document for programs and tables for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass
class GraphSummary:
    """
    One explained prompt.

    Args:
        prompt: As asked.
        target: The model's most likely next token.
        nodes: Nodes of the whole graph.
        edges: Edges of the whole graph that are not zero.
        replacement_score: 0 to 1.
        completeness_score: 0 to 1.
        seconds: From request to stored graph.
        conservation_error: Largest relative difference between a node's value and the sum of what flows into it.
        intervention_node: The feature that was ablated: the one with the strongest direct edge to the target.
        intervention_predicted: What its direct edge says of the target's demeaned logit.
        intervention_measured: The same in the model, with patterns, norm scales and MLP outputs held.
        intervention_predicted_total: What all paths through features say.
        intervention_measured_free: The same in the model, left free.
        json: File of the pruned graph.
        reused: It was there from an earlier run.
    """

    prompt: str
    target: str
    nodes: int
    edges: int
    replacement_score: float
    completeness_score: float
    seconds: float
    conservation_error: float
    intervention_node: str
    intervention_predicted: float
    intervention_measured: float
    intervention_predicted_total: float
    intervention_measured_free: float
    json: str
    reused: bool


@dataclass
class DemoSummary:
    """
    All of the demo's figures, under the names that `summary.json` has them by.

    Figures of a step whose result was reused are those that were measured when it was made; `reused` names these steps.
    """

    model: str = ""
    num_layers: int = 0
    dataset: str = ""
    run: str = ""
    transcoder: str = ""
    tokens_harvested: int = 0
    tokens_held_out: int = 0
    tokens_skipped: int = 0
    bytes_per_token: float = 0.0
    bits_per_value: float = 0.0
    cache_fvu_max: float = 0.0
    harvest_tokens_per_s: float = 0.0
    train_tokens: int = 0
    train_tokens_per_s: float = 0.0
    world_size: int = 0
    explained_variance: float = 0.0
    explained_variance_exported: float = 0.0
    l0_per_layer: list[float] = field(default_factory=list)
    dead_share: float = 0.0
    graphs: list[GraphSummary] = field(default_factory=list)
    console_url: str = ""
    seconds: float = 0.0
    step_seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    reused: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the document atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2))
        temporary.replace(path)

    def show(self, console: Console) -> None:
        """Print the figures."""
        console.print(_facts(self._rows()))
        for graph in self.graphs:
            console.print(f"\n[bold]{escape(graph.prompt)}[/bold] [green]{escape(graph.target)}[/green]")
            console.print(_facts(_graph_rows(graph)))

    def _rows(self) -> Sequence[tuple[str, str]]:
        mean_l0 = sum(self.l0_per_layer) / max(1, len(self.l0_per_layer))
        again = f" ({', '.join(self.reused)} from an earlier run)" if self.reused else ""
        return [
            ("model", f"{self.model}, {self.num_layers} layers"),
            (
                "dataset",
                f"{self.tokens_harvested:,} tokens, {self.tokens_held_out:,} of them held out; "
                f"{self.bits_per_value:.2f} bits a value, {self.bytes_per_token / 1024:.1f} KiB a token, "
                f"FVU at most {self.cache_fvu_max:.1e}",
            ),
            ("harvest", f"{self.harvest_tokens_per_s:,.0f} tokens/s"),
            (
                "training",
                f"{self.train_tokens:,} tokens on {self.world_size} ranks, {self.train_tokens_per_s:,.0f} tokens/s",
            ),
            (
                "transcoder",
                f"explained variance {self.explained_variance:.3f} on held-out tokens "
                f"(exported {self.explained_variance_exported:.3f}), L0 {mean_l0:.1f} a layer, "
                f"{self.dead_share:.1%} dead",
            ),
            ("in all", f"{self.seconds:.0f} s, {self.peak_rss_bytes / 2**30:.2f} GiB{again}"),
        ]


def _graph_rows(graph: GraphSummary) -> Sequence[tuple[str, str]]:
    return [
        (
            "graph",
            f"{graph.nodes:,} nodes, {graph.edges:,} edges in {graph.seconds:.1f} s; "
            f"replacement {graph.replacement_score:.2f}, completeness {graph.completeness_score:.2f}, "
            f"conservation error {graph.conservation_error:.0e}",
        ),
        (
            f"without {graph.intervention_node}",
            f"its edge says {graph.intervention_predicted:+.4f} of the logit, "
            f"the model with all else held {graph.intervention_measured:+.4f}",
        ),
        (
            "",
            f"all paths say {graph.intervention_predicted_total:+.3f}, "
            f"the model left free {graph.intervention_measured_free:+.3f}",
        ),
    ]


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(f"[bold]{name}[/bold]", value)
    return table
