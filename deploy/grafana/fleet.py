"""The dashboard to look at first: are the services there, do they answer, are they full, does the bucket answer."""

from deploy.grafana.panels import CHOSEN, IN_NAMESPACE, Board, Graph, Limits, Query, Row, Stat

__all__ = ["FLEET"]

_OURS = f'grpc_service=~"weft[.].*", {CHOSEN}'
# What every program exports, kept to weft's processes and named by component.
_OF_COMPONENT = f"* on (namespace, job, instance) group_left (component) weft_build_info{{{CHOSEN}}}"

_NOW = Row(
    "Now",
    (
        Stat(
            "Replicas",
            "Processes that Prometheus reaches, by component. A component that is missing here is down or not scraped.",
            "short",
            (Query(f"count by (component) (weft_build_info{{{CHOSEN}}})", "{{component}}"),),
            width=8,
        ),
        Stat(
            "Versions",
            "Processes by version. Two versions are normal during an upgrade only.",
            "short",
            (Query(f"count by (version) (weft_build_info{{{CHOSEN}}})", "{{version}}"),),
        ),
        Stat(
            "Errors in an hour",
            "Largest share of failed requests of any service in the last hour. The objective is 0.1 %; from 1.44 % on "
            "the month's budget is gone in two days.",
            "percentunit",
            (Query(f"max(weft:error_ratio:rate1h{{{IN_NAMESPACE}}})", "worst service"),),
            Limits(0.001, 0.0144),
        ),
        Stat(
            "Alerts",
            "Alerts of weft that fire now.",
            "short",
            (
                Query(
                    f'count(ALERTS{{alertname=~"Weft.*", alertstate="firing", {IN_NAMESPACE}}}) or vector(0)', "firing"
                ),
            ),
            Limits(1),
        ),
        Stat(
            "Certificates about to expire",
            "Served certificates that expire within 14 days. Renew them, then restart what serves with them.",
            "short",
            (
                Query(
                    f"count(weft_tls_certificate_expiry_timestamp_seconds{{{CHOSEN}}} - time() < 14 * 86400) "
                    "or vector(0)",
                    "certificates",
                ),
            ),
            Limits(1),
        ),
    ),
)

_CALLS = Row(
    "Calls",
    (
        Graph(
            "Requests",
            "Requests a second, by service: gRPC, and HTTP for the console.",
            "reqps",
            (Query(f"weft:requests:rate5m{{{IN_NAMESPACE}}}", "{{job}}"),),
        ),
        Graph(
            "Share of errors",
            "Requests that failed for a reason of the service's own, by service. Refusals at a limit are below.",
            "percentunit",
            (Query(f"weft:error_ratio:rate5m{{{IN_NAMESPACE}}}", "{{job}}"),),
            Limits(0.001, 0.0144),
        ),
        Graph(
            "Time of a call",
            "Median and 99th percentile of calls with a single answer, by service.",
            "s",
            (
                Query(f"weft:grpc_handling_seconds:p50_5m{{{IN_NAMESPACE}}}", "{{job}} median"),
                Query(f"weft:grpc_handling_seconds:p99_5m{{{IN_NAMESPACE}}}", "{{job}} 99 %"),
            ),
        ),
        Graph(
            "Busiest methods",
            "Calls a second of the ten methods that are called most.",
            "reqps",
            (
                Query(
                    f"topk(10, sum by (grpc_method) (rate(grpc_server_handled_total{{{_OURS}}}[$__rate_interval])))",
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
                    f"sum by (grpc_code) (rate(grpc_server_handled_total{{{_OURS}}}[$__rate_interval]))",
                    "{{grpc_code}}",
                ),
            ),
            is_stacked=True,
        ),
        Graph(
            "Console",
            "HTTP requests a second by status. 401 is a person who has not signed in.",
            "reqps",
            (
                Query(
                    f"sum by (status) (rate(weft_console_requests_total{{{CHOSEN}}}[$__rate_interval]))", "{{status}}"
                ),
            ),
            is_stacked=True,
        ),
        Graph(
            "Time of a page request",
            "Median and 99th percentile of the console's requests, to the head of the answer.",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({quantile}, sum by (le) "
                    f"(rate(weft_console_request_seconds_bucket{{{CHOSEN}}}[$__rate_interval])))",
                    name,
                )
                for quantile, name in ((0.5, "median"), (0.99, "99 %"))
            ),
        ),
    ),
)

_LOAD = Row(
    "Load",
    (
        Graph(
            "Share of the limits in use",
            "Open calls and bytes of requests against the limit at which a replica refuses, fullest replica.",
            "percentunit",
            (
                Query(
                    f"max by (job, resource) (weft:admission:used_ratio{{{CHOSEN}}})",
                    "{{job}} {{resource}}",
                ),
            ),
            Limits(0.8, 0.95),
        ),
        Graph(
            "Bytes in flight",
            "Bytes of the requests that are being worked on.",
            "bytes",
            (Query(f"sum by (job) (weft_inflight_bytes{{{CHOSEN}}})", "{{job}}"),),
            is_stacked=True,
        ),
        Graph(
            "Refused calls",
            "Calls a second that were refused with RESOURCE_EXHAUSTED. Clients come again; more than a burst asks for "
            "more replicas or higher limits.",
            "reqps",
            (
                Query(
                    f"sum by (job, reason) (rate(weft_rejected_total{{{CHOSEN}}}[$__rate_interval]))",
                    "{{job}} {{reason}}",
                ),
            ),
        ),
        Graph(
            "Waiting for the base model",
            "Forward passes that run or wait, all replicas of activations together.",
            "short",
            (Query(f"sum by (job) (weft_queue_depth{{{CHOSEN}}})", "{{job}}"),),
        ),
        Graph(
            "Operations",
            "Long work: what replicas work on, and what waits for one. Work that waits for minutes finds no replica.",
            "short",
            (
                Query(f'sum by (kind) (weft_operations{{state="here", {CHOSEN}}})', "{{kind}} worked on"),
                Query(f'max by (kind) (weft_operations{{state="waiting", {CHOSEN}}})', "{{kind}} waiting"),
            ),
        ),
        Graph(
            "Oldest operation",
            "Age of the oldest unfinished operation of each kind. Training may take weeks; a graph should not.",
            "s",
            (Query(f"max by (kind) (weft_operation_age_seconds{{{CHOSEN}}})", "{{kind}}"),),
        ),
        Graph(
            "Operations that failed",
            "Ends other than OK and CANCELLED, over the last 15 minutes.",
            "short",
            (
                Query(
                    f'sum by (kind) (increase(weft_operations_ended_total{{result!~"OK|CANCELLED", {CHOSEN}}}[15m]))',
                    "{{kind}}",
                ),
            ),
        ),
    ),
)

_BUCKET = Row(
    "Bucket",
    (
        Graph(
            "Requests to the bucket",
            "Requests a second by kind, all services.",
            "reqps",
            (Query(f"sum by (op) (weft:s3_requests:rate5m{{{IN_NAMESPACE}}})", "{{op}}"),),
            is_stacked=True,
        ),
        Graph(
            "Share of the bucket's errors",
            "Requests that failed after retries, by service. Missing objects and lost races are answers, not errors.",
            "percentunit",
            (Query(f"weft:s3_error_ratio:rate5m{{{IN_NAMESPACE}}}", "{{job}}"),),
            Limits(0.001, 0.01),
        ),
        Graph(
            "Time of a request to the bucket",
            "99th percentile by kind, slowest service.",
            "s",
            (Query(f"max by (op) (weft:s3_request_seconds:p99_5m{{{IN_NAMESPACE}}})", "{{op}}"),),
        ),
    ),
)

_PROCESSES = Row(
    "Processes",
    (
        Graph(
            "Memory",
            "Resident memory by component. On one machine training ranks are not in it.",
            "bytes",
            (Query(f"sum by (component) (process_resident_memory_bytes {_OF_COMPONENT})", "{{component}}"),),
            is_stacked=True,
        ),
        Graph(
            "Processor",
            "Cores in use by component.",
            "short",
            (
                Query(
                    f"sum by (component) (rate(process_cpu_seconds_total[$__rate_interval]) {_OF_COMPONENT})",
                    "{{component}}",
                ),
            ),
            is_stacked=True,
        ),
        Graph(
            "Restarts",
            "Starts of the same replica within an hour, by component.",
            "short",
            (Query(f"max by (component) (changes(process_start_time_seconds[1h]) {_OF_COMPONENT})", "{{component}}"),),
            Limits(2, 4),
        ),
    ),
)

FLEET = Board(
    "weft-fleet",
    "Fleet",
    "All services of weft: whether they are there, answer, are full, and reach their bucket.",
    (_NOW, _CALLS, _LOAD, _BUCKET, _PROCESSES),
)
