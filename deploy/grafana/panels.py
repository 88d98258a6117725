"""
The few forms that weft's panels have, and the frame that its dashboards share.

Every panel says what it shows and what to make of it; every query keeps to the chosen namespaces and instances.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

__all__ = ["CHOSEN", "IN_NAMESPACE", "Board", "Graph", "Limits", "Query", "Row", "Stat", "build"]

IN_NAMESPACE = 'namespace=~"$namespace"'
"""Matcher for recorded series, which have no instance."""
CHOSEN = 'namespace=~"$namespace", instance=~"$instance"'
"""Matcher for series of instances."""

_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT = {"stat": 4, "graph": 8}


@dataclass(frozen=True)
class Query:
    """
    One query of a panel.

    Args:
        expr: PromQL with Grafana's variables.
        legend: Name of a series, from its labels.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class Limits:
    """
    From where a value is to be looked at, and from where it is bad.

    Args:
        warn: Yellow from here on.
        bad: Red from here on; None for never.
    """

    warn: float
    bad: float | None = None


@dataclass(frozen=True)
class Stat:
    """
    The present value, large.

    Args:
        unit: Grafana's name of the unit.
        width: Of 24 columns.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    limits: Limits | None = None
    width: int = 4

    def build(self) -> stat.Panel:
        """Build the panel."""
        panel = (
            stat.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(_SOURCE)
            .unit(self.unit)
            .span(self.width)
            .height(_HEIGHT["stat"])
            .thresholds(_thresholds(self.limits))
            .graph_mode(common.BigValueGraphMode.AREA)
            .color_mode(common.BigValueColorMode.VALUE)
            .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        )
        return panel.targets(list(_targets(self.queries)))


@dataclass(frozen=True)
class Graph:
    """
    Values over time.

    Args:
        unit: Grafana's name of the unit.
        is_stacked: Values that add up to something.
        top: Largest value that can be, where there is one.
        width: Of 24 columns.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    limits: Limits | None = None
    is_stacked: bool = False
    top: float | None = None
    width: int = 8

    def build(self) -> timeseries.Panel:
        """Build the panel."""
        panel = (
            timeseries.Panel()
            .title(self.title)
            .description(self.description)
            .datasource(_SOURCE)
            .unit(self.unit)
            .span(self.width)
            .height(_HEIGHT["graph"])
            .thresholds(_thresholds(self.limits))
            .legend(
                common_builders.VizLegendOptions()
                .display_mode(common.LegendDisplayMode.LIST)
                .placement(common.LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
            .fill_opacity(20 if self.is_stacked else 5)
            .axis_soft_min(0)
        )
        if self.is_stacked:
            panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
        if self.limits is not None:
            panel.thresholds_style(
                common_builders.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
            )
        if self.top is not None:
            panel.max(self.top)
        return panel.targets(list(_targets(self.queries)))


@dataclass(frozen=True)
class Row:
    """Panels that belong together, under a title."""

    title: str
    panels: tuple[Stat | Graph, ...]


@dataclass(frozen=True)
class Board:
    """
    A dashboard.

    Args:
        uid: Stays as it is: links and bookmarks have it.
        variables: Beside data source, namespace and instance: name to the query of its values.
    """

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: dict[str, str] = field(default_factory=dict)


def build(board: Board) -> models.Dashboard:
    """Build the whole dashboard."""
    out = (
        builders.Dashboard(f"weft / {board.title}")
        .uid(board.uid)
        .description(board.description)
        .tags(["weft"])
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            builders.DashboardLink("weft")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["weft"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    values = {
        "namespace": "label_values(weft_build_info, namespace)",
        "instance": f"label_values(weft_build_info{{{IN_NAMESPACE}}}, instance)",
        **board.variables,
    }
    for name, query in values.items():
        out.with_variable(_variable(name, query))
    # Panels are linked to by number.
    numbers = itertools.count(1)
    for row in board.rows:
        out.with_row(builders.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            out.with_panel(panel.build().id(next(numbers)))
    return out.build()


def _variable(name: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        # An empty label matches too, so that series without a namespace are shown.
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _targets(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .ref_id(chr(ord("A") + number))
        .datasource(_SOURCE)
        .expr(query.expr)
        .legend_format(query.legend)
        .range()
        for number, query in enumerate(queries)
    ]


def _thresholds(limits: Limits | None) -> builders.ThresholdsConfig:
    steps = [models.Threshold(value=None, color="green")]
    if limits is not None:
        steps.append(models.Threshold(value=limits.warn, color="yellow"))
        if limits.bad is not None:
            steps.append(models.Threshold(value=limits.bad, color="red"))
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
