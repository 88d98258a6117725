"""The dashboard of data: how fast activations come in, what becomes of them, whether they stay what they were."""

from deploy.grafana.panels import CHOSEN, Board, Graph, Limits, Query, Row, Stat

__all__ = ["EXTRACTION_AND_CACHE"]

_EXTRACTION = Row(
    "Extraction",
    (
        Stat(
            "Tokens",
            "Tokens whose activations were committed in the chosen time.",
            "short",
            (Query(f"sum(increase(weft_extract_tokens_total{{{CHOSEN}}}[$__range]))", "tokens"),),
        ),
        Stat(
            "Incomplete captures",
            "Pieces of harvests that could not be captured in the chosen time. None was committed in part.",
            "short",
            (
                Query(
                    "sum(increase(weft_extract_incomplete_total"
                    f'{{reason!~"another_was_first|interrupted", {CHOSEN}}}[$__range]))',
                    "pieces",
                ),
            ),
            Limits(1),
        ),
        Stat(
            "Harvests worked on",
            "Harvests that have not ended yet.",
            "short",
            (Query(f'max(sum by (state) (weft_operations{{kind="harvest", {CHOSEN}}}))', "harvests"),),
        ),
        Stat(
            "Oldest harvest",
            "Age of the oldest harvest that has not ended.",
            "s",
            (Query(f'max(weft_operation_age_seconds{{kind="harvest", {CHOSEN}}})', "age"),),
        ),
        Graph(
            "Tokens a second",
            "Tokens committed, by replica. A replica that stays behind the others waits for its model or the bucket.",
            "short",
            (
                Query(
                    f"sum by (instance) (rate(weft_extract_tokens_total{{{CHOSEN}}}[$__rate_interval]))", "{{instance}}"
                ),
            ),
            is_stacked=True,
        ),
        Graph(
            "Waiting for the base model",
            "Forward passes that run or wait, by replica. A harvest keeps one or two in the queue.",
            "short",
            (Query(f"sum by (instance) (weft_queue_depth{{{CHOSEN}}})", "{{instance}}"),),
        ),
        Graph(
            "Pieces not finished",
            "Over the last 15 minutes. interrupted and another_was_first do no harm; every other reason is an alert.",
            "short",
            (
                Query(
                    f"sum by (reason) (increase(weft_extract_incomplete_total{{{CHOSEN}}}[15m]))",
                    "{{reason}}",
                ),
            ),
        ),
    ),
)

_CACHE = Row(
    "Cache",
    (
        Stat(
            "Corrupt objects",
            "Objects found in the chosen time whose bytes are not what their record says. They are refused.",
            "short",
            (Query(f"sum(increase(weft_cache_corrupt_total{{{CHOSEN}}}[$__range]))", "objects"),),
            Limits(1),
        ),
        Stat(
            "Compression",
            "Size in bfloat16 over stored size of the shards committed since the start; 0 before the first.",
            "short",
            (Query(f"max(weft_cache_compression_ratio{{{CHOSEN}}})", "ratio"),),
        ),
        Graph(
            "Requests by result",
            "Requests a second by gRPC code. NOT_FOUND is a normal answer to a client that looks whether something is "
            "there.",
            "reqps",
            (Query(f"sum by (result) (rate(weft_cache_requests_total{{{CHOSEN}}}[$__rate_interval]))", "{{result}}"),),
            is_stacked=True,
        ),
        Graph(
            "Bytes through the cache",
            "Bytes a second that the cache itself reads and sends. Ranks read most of theirs from the bucket directly.",
            "Bps",
            (
                Query(
                    f"sum by (direction, stage) (rate(weft_cache_bytes_total{{{CHOSEN}}}[$__rate_interval]))",
                    "{{direction}} for {{stage}}",
                ),
            ),
        ),
        Graph(
            "Time of the cache's calls",
            "99th percentile by method.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (grpc_method, le) (rate(grpc_server_handling_seconds_bucket"
                    f'{{grpc_service=~"weft[.]cache[.].*", {CHOSEN}}}[$__rate_interval])))',
                    "{{grpc_method}}",
                ),
            ),
        ),
    ),
)

_BUCKET = Row(
    "Bucket",
    (
        Graph(
            "Time of writes",
            "Median and 99th percentile of writing an object, by service.",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({quantile}, sum by (job, le) "
                    f'(rate(weft_s3_request_seconds_bucket{{op=~"put|put_file", {CHOSEN}}}[$__rate_interval])))',
                    f"{{{{job}}}} {name}",
                )
                for quantile, name in ((0.5, "median"), (0.99, "99 %"))
            ),
        ),
        Graph(
            "Time of reads",
            "Median and 99th percentile of reading an object or a range of one, by service.",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({quantile}, sum by (job, le) "
                    f'(rate(weft_s3_request_seconds_bucket{{op=~"get|get_file", {CHOSEN}}}[$__rate_interval])))',
                    f"{{{{job}}}} {name}",
                )
                for quantile, name in ((0.5, "median"), (0.99, "99 %"))
            ),
        ),
        Graph(
            "Outcomes",
            "Requests a second that did not end OK, by outcome. ALREADY_EXISTS, ABORTED and NOT_FOUND are lost races "
            "and absent objects.",
            "reqps",
            (
                Query(
                    "sum by (code) "
                    f'(rate(weft_s3_request_seconds_count{{code!="OK", {CHOSEN}}}[$__rate_interval])) or vector(0)',
                    "{{code}}",
                ),
            ),
        ),
    ),
)

EXTRACTION_AND_CACHE = Board(
    "weft-extraction-and-cache",
    "Extraction and cache",
    "How fast activations come in, what becomes of them, and whether they are still what they were.",
    (_EXTRACTION, _CACHE, _BUCKET),
)
