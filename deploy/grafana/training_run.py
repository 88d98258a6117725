"""The dashboard of training: how a run learns, how fast, and whether it would survive the loss of its ranks."""

from deploy.grafana.panels import CHOSEN, IN_NAMESPACE, Board, Graph, Limits, Query, Row, Stat

__all__ = ["TRAINING_RUN"]

_RUN = f'run=~"$run", {CHOSEN}'
_IN_RUN = f'run=~"$run", {IN_NAMESPACE}'


def _of_run(title: str, description: str, unit: str, metric: str, *, top: float | None = None) -> Graph:
    """Return a figure of the last reported step, run by run."""
    return Graph(title, description, unit, (Query(f"max by (run) ({metric}{{{_RUN}}})", "{{run}}"),), top=top)


_ALL = Row(
    "All runs",
    (
        Stat(
            "Runs by state",
            "Runs in the bucket. Only running ones are in the graphs below.",
            "short",
            (Query(f"max by (state) (weft_train_jobs{{{CHOSEN}}})", "{{state}}"),),
            width=10,
        ),
        Stat(
            "Longest wait",
            "How long the run that waits longest for its ranks has waited.",
            "s",
            (Query(f"max(weft_train_oldest_pending_seconds{{{CHOSEN}}})", "pending"),),
            Limits(600, 1800),
        ),
        Stat(
            "Restarts",
            "Attempts that another had to follow, in the chosen time.",
            "short",
            (Query(f"sum(increase(weft_train_restarts_total{{{CHOSEN}}}[$__range]))", "restarts"),),
            Limits(1, 6),
        ),
        Stat(
            "Tokens",
            "Tokens trained on in the chosen time, all runs.",
            "short",
            (Query(f"sum(increase(weft_train_tokens_total{{{CHOSEN}}}[$__range]))", "tokens"),),
            width=6,
        ),
    ),
)

_LEARNING = Row(
    "Learning",
    (
        _of_run("Loss", "Loss of a step, in normalised units. It should fall.", "short", "weft_train_loss"),
        Graph(
            "Parts of the loss",
            "Squared error, sparsity, pre-activation penalty and AuxK, whose sum is the loss. What is off is 0.",
            "short",
            tuple(
                Query(f"max by (run) (weft_train_{part}_loss{{{_RUN}}})", f"{{{{run}}}}: {part}")
                for part in ("reconstruction", "sparsity", "preact", "aux")
            ),
        ),
        _of_run(
            "Explained variance",
            "Of a step's own tokens, mean over layers; the figure to trust is the evaluation's.",
            "percentunit",
            "weft_train_explained_variance",
            top=1,
        ),
        _of_run("L0", "Active features a token and layer.", "short", "weft_train_l0"),
        _of_run(
            "Dead features",
            "Share of features that have not fired for a long time. Above a third, the run wastes memory: lower the "
            "learning rate or the number of features.",
            "percentunit",
            "weft_train_dead_share",
            top=1,
        ),
        _of_run(
            "Gradient norm",
            "Before clipping. Peaks that stay ask for a lower learning rate.",
            "short",
            "weft_train_gradient_norm",
        ),
        Graph(
            "Progress",
            "Share of the wanted steps that are done. It goes back when ranks restart from a checkpoint.",
            "percentunit",
            (
                Query(
                    f"max by (run) (weft_train_step{{{_RUN}}}) / max by (run) (weft_train_wanted_steps{{{_RUN}}})",
                    "{{run}}",
                ),
            ),
            top=1,
        ),
    ),
)

_SPEED = Row(
    "Speed",
    (
        _of_run("Tokens a second", "Of the last reported step.", "short", "weft_train_tokens_per_second"),
        Graph(
            "Time of a step",
            "Median and 99th percentile, all runs together.",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({quantile}, sum by (le) "
                    f"(rate(weft_train_step_seconds_bucket{{{CHOSEN}}}[$__rate_interval])))",
                    name,
                )
                for quantile, name in ((0.5, "median"), (0.99, "99 %"))
            ),
        ),
        _of_run(
            "Waiting for data",
            "Share of a step's time. Above a tenth, reading is what limits the run: look at the bucket.",
            "percentunit",
            "weft_train_data_wait_share",
        ),
        Graph(
            "Bytes sent for a token",
            "By a rank, in the last reported step: all of them, and those that active features take. The rest is the "
            "step's data and, on a data axis, its gradients. Nothing is sent where one rank trains.",
            "bytes",
            (
                Query(f"max by (run) (weft_train_sent_bytes_per_token{{{_RUN}}})", "{{run}}"),
                Query(f"max by (run) (weft_train_entry_bytes_per_token{{{_RUN}}})", "{{run}}, features"),
            ),
        ),
        _of_run(
            "Memory of the ranks",
            "Largest resident memory of all ranks of the run together.",
            "bytes",
            "weft_train_peak_memory_bytes",
        ),
    ),
)

_SAFETY = Row(
    "Safety",
    (
        Graph(
            "Age of the newest checkpoint",
            "In intervals between checkpoints; an interval counts as a minute at least. More than three is an alert.",
            "short",
            (Query(f"weft:train_checkpoint_age:intervals{{{_IN_RUN}}}", "{{run}}"),),
            Limits(2, 3),
        ),
        Graph(
            "Restarts by reason",
            "In the last hour. bad_exit: a rank failed; disappeared: the ranks were gone; stopped: they were asked to.",
            "short",
            (Query(f"sum by (reason) (increase(weft_train_restarts_total{{{CHOSEN}}}[1h]))", "{{reason}}"),),
            is_stacked=True,
        ),
        Graph(
            "Damaged checkpoints",
            "In the last hour: checkpoints that ranks could not read whole, and left for an older one. The run's "
            "history has the reasons; look after the bucket.",
            "short",
            (Query(f"sum(increase(weft_train_damaged_checkpoints_total{{{CHOSEN}}}[1h]))", "damaged"),),
        ),
    ),
)

TRAINING_RUN = Board(
    "weft-training-run",
    "Training run",
    "How runs learn, how fast they are, and whether they would survive the loss of their ranks.",
    (_ALL, _LEARNING, _SPEED, _SAFETY),
    {"run": f"label_values(weft_train_step{{{IN_NAMESPACE}}}, run)"},
)
