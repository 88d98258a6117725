"""What every service shows of itself beside its calls: limits, operations, certificates."""

import asyncio
import datetime
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from weft_common.admission import Admission
from weft_common.certificates import first_expiry_s, watch_certificate
from weft_common.errors import Code, InvalidArgumentError, ResourceExhaustedError
from weft_common.metrics import REGISTRY, set_build_info
from weft_common.operation_census import OperationCensus
from weft_common.operation_store import Record
from weft_common.server import serving

RECORD = Record(kind="work", request=b"", metadata=b"", create_s=0.0)


def sample(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(name, labels)
    assert value is not None, f"{name}{labels} is not exported"
    return value


def test_admission_shows_limits_and_what_is_open() -> None:
    """Both limits, open calls and refusals are exported, refusals from 0 on."""
    admission = Admission(max_inflight_bytes=1000, max_concurrent_rpcs=1)
    assert sample("weft_admission_limit", resource="inflight_bytes") == 1000
    assert sample("weft_admission_limit", resource="concurrent_rpcs") == 1
    refused = sample("weft_rejected_total", reason="concurrent_rpcs")
    open_before = sample("weft_open_rpcs")
    with admission.call():
        assert sample("weft_open_rpcs") == open_before + 1
        with pytest.raises(ResourceExhaustedError), admission.call():
            pass
    assert sample("weft_open_rpcs") == open_before
    assert sample("weft_rejected_total", reason="concurrent_rpcs") == refused + 1


def test_census_tells_waiting_here_and_elsewhere_apart() -> None:
    """Each unfinished operation counts once; what is done or of another kind does not."""
    census = OperationCensus(["work"])
    census.count(
        {
            "a": replace(RECORD, create_s=time.time() - 60),
            "b": replace(RECORD, create_s=time.time() - 30, owner="me"),
            "c": replace(RECORD, create_s=time.time(), owner="you"),
            "d": replace(RECORD, done=True),
            "e": replace(RECORD, kind="unheard-of"),
        },
        running_here={"b"},
    )
    counts = {state: sample("weft_operations", kind="work", state=state) for state in ("waiting", "here", "elsewhere")}
    assert counts == {"waiting": 1, "here": 1, "elsewhere": 1}
    assert sample("weft_operation_age_seconds", kind="work") == pytest.approx(60, abs=5)
    census.count({}, running_here=set())
    assert sample("weft_operation_age_seconds", kind="work") == 0
    assert sample("weft_operations", kind="work", state="here") == 0


def test_census_counts_ends_from_zero_on() -> None:
    """Every result is there before it happens, since Prometheus cannot see the first increase otherwise."""
    census = OperationCensus(["endings"])
    assert [sample("weft_operations_ended_total", kind="endings", result=code.name) for code in Code] == [0] * len(Code)
    census.ended("endings", Code.DATA_LOSS)
    census.ended("unheard-of", Code.OK)
    assert sample("weft_operations_ended_total", kind="endings", result="DATA_LOSS") == 1
    assert REGISTRY.get_sample_value("weft_operations_ended_total", {"kind": "unheard-of", "result": "OK"}) is None


def test_certificate_expiry_is_the_first_of_the_chain(tmp_path: Path) -> None:
    """A chain is as good as its shortest certificate, and that moment is what is exported."""
    authority = trustme.CA()
    early = datetime.datetime(2027, 3, 1, tzinfo=datetime.UTC)
    late = datetime.datetime(2028, 3, 1, tzinfo=datetime.UTC)
    chain = tmp_path / "chain.pem"
    for moment in (late, early):
        authority.issue_cert("localhost", not_after=moment).cert_chain_pems[0].write_to_path(chain, append=True)
    assert first_expiry_s(chain) == early.timestamp()
    watch_certificate(chain)
    name = "weft_tls_certificate_expiry_timestamp_seconds"
    assert sample(name, certificate="server") == early.timestamp()


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_certificate_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """The file is named, and what it should hold."""
    chain = tmp_path / "chain.pem"
    chain.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"chain\.pem holds no certificate chain"):
        first_expiry_s(chain)


def test_build_info_names_the_component() -> None:
    """`service` is a label that Prometheus operators give to targets, so the component is not called that."""
    set_build_info("tested")
    families = {family.name: family for family in REGISTRY.collect()}
    found = [sample for sample in families["weft_build_info"].samples if sample.labels["component"] == "tested"]
    assert [set(sample.labels) for sample in found] == [{"component", "version", "python"}]


async def test_methods_are_shown_before_their_first_call(kit: Any) -> None:
    """A method that was never called has figures, with its kind, so that its first call is seen."""
    labels = {"grpc_type": "server_stream", "grpc_service": "grpc.health.v1.Health", "grpc_method": "Watch"}
    async with serving("test", kit.settings(), []):
        assert REGISTRY.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": "OK"}) is not None
        assert REGISTRY.get_sample_value("grpc_server_handling_seconds_count", labels) is not None
        assert REGISTRY.get_sample_value("grpc_server_started_total", labels) is not None


async def test_open_calls_stay_counted_until_they_end() -> None:
    """Calls that wait at the same time count together."""
    admission = Admission(max_inflight_bytes=1000, max_concurrent_rpcs=8)
    before, release = sample("weft_open_rpcs"), asyncio.Event()

    async def call() -> None:
        with admission.call():
            await release.wait()

    calls = [asyncio.create_task(call()) for _ in range(3)]
    await asyncio.sleep(0)
    assert sample("weft_open_rpcs") == before + 3
    release.set()
    await asyncio.gather(*calls)
    assert sample("weft_open_rpcs") == before
