"""The catalog over a real MinIO behind proxies that fail: nothing is lost, and nothing is there twice."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import minio.time
import numpy as np
import pytest
from cache_house import SPEC, House
from fault_proxy import FAULTS, fault_proxy
from minio_server import MinioServer
from toxiproxy_server import HARMFUL, TOXICS, toxiproxy

from weft_cache.core.records import Split, State
from weft_cache.core.retention import Retention
from weft_common.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    WeftError,
)
from weft_store import ObjectStore, open_store
from weft_store.documents import encode_json
from weft_store.shard import STREAMS

pytestmark = pytest.mark.s3

T = TypeVar("T")
_TRIES, _PAUSE_S = 40, 0.005
_STRIKES, _LIVES = 6, 20
_DAYS_S = 10 * 86_400.0


def _patiently(call: Callable[[], T]) -> T:
    """What every client of the catalog does: the same again, where the error says that this may help."""
    for attempt in range(_TRIES):
        try:
            return call()
        except WeftError as error:
            if not error.retryable or attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError


def _through(url: str, endpoint: str, server: MinioServer) -> ObjectStore:
    """The same bucket, by another address."""
    return open_store(url.replace(server.endpoint, endpoint), server.access_key, server.secret_key)


def _age_uploads(store: ObjectStore) -> None:
    """Make what is listed look old, as a collection waits an hour at least."""
    listed = store.list
    store.list = lambda prefix: (  # type: ignore[method-assign]
        replace(item, modified_s=item.modified_s - _DAYS_S) for item in listed(prefix)
    )


def _live(house: House, direct: ObjectStore) -> None:
    """
    Create, fill, seal, hold, read, collect and delete a dataset.

    Every shard is there once, byte for byte; what is garbage goes, what is held stays.

    Args:
        house: Over a store that fails now and then.
        direct: The same bucket, which does not.
    """
    house.now = datetime(2001, 1, 1, tzinfo=UTC)
    _patiently(lambda: house.catalog.create("a", SPEC))
    rows = {}
    for index in range(3):
        split = Split.HELD_OUT if index == 2 else Split.TRAIN
        record, encoded, rows[index] = _patiently(lambda i=index, s=split: house.upload("a", i, 20, s))
        kept = _patiently(lambda r=record, e=encoded: house.commits.commit("a", r, e.statistics))
        assert kept.sha256 == record.sha256
        if index == 1:
            assert _patiently(lambda: house.snapshots.take("a")).snapshot == 1
    sealed = _patiently(lambda: house.sealing.seal("a", 3))
    assert [shard.index for shard in sealed.shards] == [0, 1, 2]
    _patiently(lambda: house.catalog.update("a", {"team": "x"}, [], Retention(keep_days=1)))
    for shard in sealed.shards:
        for stream in STREAMS:
            read = _patiently(lambda k=shard.key, s=stream: house.reading._shards.read(k, s, 1, 0))
            wanted = rows[shard.index][stream][1, :16]
            np.testing.assert_allclose(read, wanted, rtol=2**-8)
    assert _patiently(lambda: house.reading.verify("a")).problems == ()

    direct.put("runs/r/run.json", encode_json({"state": "RUNNING"}))
    direct.put("datasets/a/shards/9-ff.weft", b"lost")
    _age_uploads(house.store)
    _patiently(lambda: house.holds.hold("a", "runs/r"))
    with pytest.raises(FailedPreconditionError, match="held by runs/r"):
        _patiently(lambda: house.deletion.delete("a"))
    house.now = datetime.now(UTC)
    found = _patiently(lambda: house.garbage.collect(delete=True))
    assert (found.expired, found.held) == ([], {"a": ["runs/r"]})
    whole = House(direct).catalog.get("a")
    assert (whole.state, whole.tags, whole.shards) == (State.SEALED, {"team": "x"}, sealed.shards)
    assert House(direct).reading.verify("a").problems == ()
    assert whole.num_tokens(Split.TRAIN) == 40

    _patiently(lambda: house.catalog.update("a", {}, [], Retention()))
    _patiently(lambda: house.garbage.collect(delete=True))
    there = [item.key for item in direct.list("datasets/a/shards/")]
    assert there == sorted(shard.key for shard in sealed.shards)

    direct.put("runs/r/run.json", encode_json({"state": "CANCELLED"}))
    # An answer that was lost is asked for again, and then there is nothing left to delete.
    with suppress(NotFoundError):
        _patiently(lambda: house.deletion.delete("a"))
    assert [item.key for item in direct.list("datasets/")] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_dataset_lives_through_failed_requests_whole_and_once(minio_server: MinioServer, fault: str) -> None:
    """Every sixth request or so fails."""
    url = minio_server.make_bucket(f"faults-{fault.replace('_', '-')}")
    direct = open_store(url, minio_server.access_key, minio_server.secret_key)
    with fault_proxy(minio_server.endpoint, fault) as (endpoint, proxy):
        proxy.fault = fault
        _live(House(_through(url, endpoint, minio_server)), direct)
        assert proxy.met.total() > 5, "too few faults were met to say anything"


@pytest.mark.parametrize("toxic", TOXICS)
def test_dataset_lives_through_a_bad_network_whole_and_once(
    minio_server: MinioServer, tmp_path: Path, toxic: str
) -> None:
    """Toxiproxy strikes at any byte of any answer; while it strikes for good, harmful toxics let nothing through."""
    url = minio_server.make_bucket(f"toxic-{toxic.replace('_', '-')}")
    direct = open_store(url, minio_server.access_key, minio_server.secret_key)
    with toxiproxy(minio_server.endpoint, tmp_path) as proxy:
        store = _through(url, proxy.endpoint, minio_server)
        if toxic in HARMFUL:
            direct.put("large", bytes(5000))
            proxy.poison(toxic)
            with pytest.raises(WeftError) as caught:
                store.get("large")
            assert caught.value.retryable
            proxy.heal(toxic)
            direct.delete("large")
        with proxy.now_and_then(toxic):
            # Strikes come by the clock: on a fast machine one life is over before there were enough to say anything.
            for _ in range(_LIVES):
                _live(House(_through(url, proxy.endpoint, minio_server)), direct)
                if proxy.num_poisoned >= _STRIKES:
                    break
        assert proxy.num_poisoned >= _STRIKES, "it struck too seldom to say anything"


@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_that_is_wrong_is_refused_and_changes_nothing(
    minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A service whose clock is an hour off is told so by the bucket; once it is right, all goes on."""
    url = minio_server.make_bucket(f"skew{'-ahead' if hours > 0 else ''}")
    house = House(open_store(url, minio_server.access_key, minio_server.secret_key))
    house.catalog.create("a", SPEC)
    record, encoded, _ = house.upload("a", 0, 20)
    before = {item.key: house.store.get(item.key) for item in house.store.list("")}
    right = minio.time.utcnow
    with monkeypatch.context() as patch:
        patch.setattr(minio.time, "utcnow", lambda: right() + timedelta(hours=hours))
        for call in (
            lambda: house.catalog.get("a"),
            lambda: house.commits.commit("a", record, encoded.statistics),
            lambda: house.sealing.seal("a", 1),
            lambda: house.holds.hold("a", "pins/p"),
            lambda: house.deletion.delete("a"),
            lambda: house.garbage.collect(delete=True),
        ):
            with pytest.raises((UnauthenticatedError, PermissionDeniedError)):
                call()
    assert {item.key: house.store.get(item.key) for item in house.store.list("")} == before
    house.commits.commit("a", record, encoded.statistics)
    assert house.sealing.seal("a", 1).shards == (record,)
