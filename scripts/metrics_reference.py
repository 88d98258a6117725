"""The reference page of all metrics, from the objects that export them."""

import importlib
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

# Where each component's metrics are made: a module, or a class that makes them on a registry.
_SOURCES = {
    "every service": ["weft_common.metrics"],
    "services with a bucket": ["weft_store.metered"],
    "activations": ["weft_activations.core.metrics"],
    "cache": ["weft_cache.adapters.prometheus_counters:PrometheusCounters"],
    "trainer": ["weft_trainer.adapters.prometheus_gauges"],
    "attribution": [
        "weft_attribution.adapters.prometheus_stages:PrometheusStages",
        "weft_attribution.adapters.prometheus_interpretation:PrometheusInterpretation",
    ],
    "console": ["weft_console.guard"],
}
_UNITS = (
    ("_timestamp_seconds", "s since 1970"),
    ("_seconds", "s"),
    ("bytes", "bytes"),
    ("_tokens_per_second", "tokens a second"),
    ("tokens", "tokens"),
    ("_share", "0 to 1"),
    ("_ratio", "ratio"),
    ("_info", ""),
    ("explained_variance", "at most 1"),
)


def metrics_of(component: str) -> list[MetricWrapperBase]:
    """Return the metrics that a component makes, by name."""
    found: dict[str, MetricWrapperBase] = {}
    for source in _SOURCES[component]:
        module, _, name = source.partition(":")
        owner = importlib.import_module(module)
        made = vars(getattr(owner, name)(CollectorRegistry()) if name else owner).values()
        found.update({exported_name(metric): metric for metric in _flat(made)})
    return [found[name] for name in sorted(found)]


def components() -> list[str]:
    """Name the components, those that are in all first."""
    return list(_SOURCES)


def exported_name(metric: MetricWrapperBase) -> str:
    """Return the name as Prometheus sees it, without a histogram's suffixes."""
    (family,) = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def label_names(metric: MetricWrapperBase) -> tuple[str, ...]:
    """Return the names of the labels."""
    # The library has no public name for them.
    return tuple(metric._labelnames)


def metrics_page() -> str:
    """Return the page of all metrics with their types, labels and units."""
    lines = [
        "# Metrics",
        "",
        "Made from the code. `grpc_server_*` has the names that Go's and Java's interceptors use. Every service also",
        "exports `process_*` and `python_gc_*`. No label is without bound: `run` is there for active runs only.",
        "[Monitoring](../operations/monitoring.md) says what is made of them.",
        "",
    ]
    for component in components():
        lines += [f"## {component[0].upper()}{component[1:]}", ""]
        lines += ["| metric | type | labels | unit | |", "| --- | --- | --- | --- | --- |"]
        for metric in metrics_of(component):
            (family,) = metric.describe()
            labels = ", ".join(f"`{label}`" for label in label_names(metric))
            name = exported_name(metric)
            lines.append(f"| `{name}` | {family.type} | {labels} | {_unit(name)} | {family.documentation} |")
        lines.append("")
    return "\n".join(lines)


def _flat(values: Iterable[object]) -> Iterator[MetricWrapperBase]:
    for value in values:
        if isinstance(value, MetricWrapperBase):
            yield value
        elif isinstance(value, dict):
            yield from _flat(value.values())


def _unit(name: str) -> str:
    plain = name.removesuffix("_total")
    return next((unit for suffix, unit in _UNITS if plain.endswith(suffix)), "")
