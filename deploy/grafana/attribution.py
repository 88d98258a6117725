"""The dashboard of graphs: how many, how long they take and where their time goes."""

from deploy.grafana.panels import CHOSEN, Board, Graph, Limits, Query, Row, Stat

__all__ = ["ATTRIBUTION"]

_GRAPHS = f'kind="graph", {CHOSEN}'
_CALLS = f'grpc_service=~"weft[.](attribution|features)[.].*", {CHOSEN}'
_PASSES = f'grpc_service=~"weft[.]activations[.].*", grpc_method=~"Capture|Run", {CHOSEN}'

_NOW = Row(
    "Graphs",
    (
        Stat(
            "Graphs made",
            "Graphs that were finished in the chosen time.",
            "short",
            (Query(f'sum(increase(weft_operations_ended_total{{result="OK", {_GRAPHS}}}[$__range]))', "graphs"),),
        ),
        Stat(
            "Graphs that failed",
            "Graphs that ended with an error in the chosen time; cancelled ones left out.",
            "short",
            (
                Query(
                    f'sum(increase(weft_operations_ended_total{{result!~"OK|CANCELLED", {_GRAPHS}}}[$__range]))',
                    "graphs",
                ),
            ),
            Limits(1),
        ),
        Stat(
            "Graphs worked on",
            "Graphs that replicas compute now.",
            "short",
            (Query(f'sum(weft_operations{{state="here", {_GRAPHS}}})', "graphs"),),
        ),
        Stat(
            "Graphs waiting",
            "Graphs that no replica has taken up. More than a moment means that no replica is there.",
            "short",
            (Query(f'max(weft_operations{{state="waiting", {_GRAPHS}}})', "graphs"),),
            Limits(1, 10),
        ),
        Stat(
            "Oldest graph",
            "Age of the oldest graph that is not finished.",
            "s",
            (Query(f"max(weft_operation_age_seconds{{{_GRAPHS}}})", "age"),),
            Limits(600, 3600),
        ),
    ),
)

_STAGES = Row(
    "Where the time goes",
    (
        Graph(
            "Time of a stage, median",
            "capture asks the base model, features runs the encoder, sweep goes down the layers, influence prunes, "
            "store writes the graph.",
            "s",
            (
                Query(
                    "histogram_quantile(0.5, sum by (stage, le) "
                    f"(rate(weft_attribution_seconds_bucket{{{CHOSEN}}}[$__rate_interval])))",
                    "{{stage}}",
                ),
            ),
        ),
        Graph(
            "Time of a stage, 99th percentile",
            "The slow graphs: long prompts and many features.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (stage, le) "
                    f"(rate(weft_attribution_seconds_bucket{{{CHOSEN}}}[$__rate_interval])))",
                    "{{stage}}",
                ),
            ),
        ),
        Graph(
            "Seconds spent in each stage",
            "Seconds of work in a second, all replicas together.",
            "short",
            (Query(f"sum by (stage) (rate(weft_attribution_seconds_sum{{{CHOSEN}}}[$__rate_interval]))", "{{stage}}"),),
            is_stacked=True,
        ),
    ),
)

_ANSWERS = Row(
    "Calls",
    (
        Graph(
            "Calls",
            "Calls a second for graphs and features, by method.",
            "reqps",
            (
                Query(
                    f"sum by (grpc_method) (rate(grpc_server_handled_total{{{_CALLS}}}[$__rate_interval]))",
                    "{{grpc_method}}",
                ),
            ),
            is_stacked=True,
        ),
        Graph(
            "Time of a call",
            "99th percentile by method; following a graph takes as long as the graph.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (grpc_method, le) "
                    f"(rate(grpc_server_handling_seconds_bucket{{{_CALLS}}}[$__rate_interval])))",
                    "{{grpc_method}}",
                ),
            ),
        ),
        Graph(
            "Answers by code",
            "Calls a second by gRPC code.",
            "reqps",
            (
                Query(
                    f"sum by (grpc_code) (rate(grpc_server_handled_total{{{_CALLS}}}[$__rate_interval]))",
                    "{{grpc_code}}",
                ),
            ),
            is_stacked=True,
        ),
    ),
)

_BASE_MODEL = Row(
    "Base model",
    (
        Graph(
            "Forward passes asked for",
            "Captures and steered runs a second, by method.",
            "reqps",
            (
                Query(
                    f"sum by (grpc_method) (rate(grpc_server_handled_total{{{_PASSES}}}[$__rate_interval]))",
                    "{{grpc_method}}",
                ),
            ),
        ),
        Graph(
            "Time of a forward pass",
            "99th percentile by method, the wait for the model included.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (grpc_method, le) "
                    f"(rate(grpc_server_handling_seconds_bucket{{{_PASSES}}}[$__rate_interval])))",
                    "{{grpc_method}}",
                ),
            ),
        ),
        Graph(
            "Waiting for the base model",
            "Forward passes that run or wait. A harvest beside graphs makes them wait for a turn of it.",
            "short",
            (Query(f"sum by (instance) (weft_queue_depth{{{CHOSEN}}})", "{{instance}}"),),
        ),
    ),
)

ATTRIBUTION = Board(
    "weft-attribution",
    "Attribution",
    "How many graphs are made, how long they take, and where their time goes.",
    (_NOW, _STAGES, _ANSWERS, _BASE_MODEL),
)
