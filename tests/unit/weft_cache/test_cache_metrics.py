"""What the cache shows of itself."""

from prometheus_client import CollectorRegistry

from weft_cache.adapters.prometheus_counters import PrometheusCounters
from weft_common.errors import Code


def test_counters_are_shown_before_they_count() -> None:
    """Results, bytes and corrupt objects start at 0, so that alerts see the first of each."""
    registry = CollectorRegistry()
    counters = PrometheusCounters(registry)
    assert registry.get_sample_value("weft_cache_corrupt_total") == 0
    assert [registry.get_sample_value("weft_cache_requests_total", {"result": code.name}) for code in Code] == [
        0
    ] * len(Code)
    before = [sample for family in registry.collect() for sample in family.samples]
    counters.moved("in", "commit", 10)
    counters.moved("in", "verify", 10)
    counters.moved("out", "read", 10)
    after = [sample for family in registry.collect() for sample in family.samples]
    assert len(after) == len(before)
