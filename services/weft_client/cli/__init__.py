"""
The `weft` command: nouns with verbs, and the commands of the embedded run.

A module of commands is imported here and registered below; `failures` says how commands fail.
"""

from pathlib import Path
from typing import Annotated

import typer

from weft_client.cli import (
    analyses,
    contexts,
    corpora,
    dataset_care,
    dataset_files,
    datasets,
    feature_exports,
    feature_steering,
    features,
    graph_attention,
    graph_batches,
    graph_reading,
    graph_steering,
    graphs,
    harvests,
    health,
    interpretation,
    label_jobs,
    labels,
    models,
    runs,
    tracking,
    transcoders,
)
from weft_client.cli.failures import FailingWell
from weft_client.cli.planning import plan
from weft_client.cli.recipes import recipes
from weft_client.cli.session import session
from weft_client.demo.command import demo
from weft_client.local import commands

app = typer.Typer(
    name="weft",
    cls=FailingWell,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train cross-layer transcoders and explain predictions as attribution graphs.",
)


@app.callback()
def main(
    endpoints: Annotated[
        Path | None,
        typer.Option(
            help="endpoints.json of the weft to talk to; WEFT_ENDPOINTS does the same. Default: the current context, "
            "or .weft/endpoints.json here or above.",
        ),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context to use, `weft contexts list`; WEFT_CONTEXT does the same.")
    ] = None,
) -> None:
    """Take the options that stand before the command."""
    session().endpoints = endpoints
    session().context = context


app.command()(commands.up)
app.command()(commands.down)
app.command()(commands.status)
app.command()(demo)
app.command()(plan)
app.command()(recipes)
app.command("health")(health.show_health)
app.add_typer(contexts.app, name="contexts")
app.add_typer(models.app, name="models")
app.add_typer(analyses.app, name="analyses")
app.add_typer(corpora.app, name="corpora")
app.add_typer(harvests.app, name="harvests")
for _name, _command in (
    ("verify", dataset_care.verify_dataset),
    ("keep", dataset_care.keep_dataset),
    ("hold", dataset_care.hold_dataset),
    ("release", dataset_care.release_dataset),
    ("holds", dataset_care.list_holds),
    ("collect", dataset_care.collect_garbage),
    ("export", dataset_files.export),
    ("import", dataset_files.import_files),
):
    datasets.app.command(_name)(_command)
app.add_typer(datasets.app, name="datasets")
runs.app.command("log")(tracking.log_run)
app.add_typer(runs.app, name="runs")
app.add_typer(transcoders.app, name="transcoders")
features.app.command("export")(feature_exports.export_features)
features.app.command("exports")(feature_exports.list_exports)
features.app.command("delete-export")(feature_exports.delete_export)
app.add_typer(features.app, name="features")
graphs.app.command("score")(graph_reading.score_part)
graphs.app.command("paths")(graph_reading.find_paths)
graphs.app.command("summary")(graph_reading.summarize)
graphs.app.command("compare")(graph_reading.compare)
graphs.app.command("edge")(graph_attention.split_edge)
graphs.app.command("attention")(graph_attention.explain_attention)
graphs.app.command("batch")(graph_batches.create_batch)
graphs.app.command("steer")(graph_steering.steer)
graphs.app.command("faithfulness")(graph_steering.measure_faithfulness)
features.app.command("steer")(feature_steering.steer)
app.add_typer(graphs.app, name="graphs")
labels.app.command("explain")(interpretation.explain)
labels.app.command("score")(interpretation.score)
labels.app.command("jobs")(label_jobs.jobs)
labels.app.command("results")(label_jobs.results)
labels.app.command("resume")(label_jobs.resume)
app.add_typer(labels.app, name="labels")

__all__ = ["app"]
