"""What only a bucket behind a network can do: refuse credentials, be away, and lose an answer."""

import multiprocessing
import pickle
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import pytest
from minio_server import MinioServer

from weft_common.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnauthenticatedError,
    UnavailableError,
    WeftError,
)
from weft_store import ObjectStore, open_store

pytestmark = pytest.mark.s3


def _message(stream: BinaryIO, *, with_body: bool = True) -> bytes:
    """Read one HTTP message; empty where the other side has closed."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return b""
        head += line
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head + (stream.read(int(length[1])) if length and with_body else b"")


@contextmanager
def _proxy_that_loses_answers(endpoint: str, method: bytes) -> Iterator[str]:
    """Pass requests on, but close instead of giving the answer to the first one with `method`."""
    host, port = endpoint.split(":")
    lost = threading.Event()

    def pass_on(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port)), timeout=30) as server, suppress(OSError):
            requests, answers = client.makefile("rb"), server.makefile("rb")
            while request := _message(requests):
                server.sendall(request)
                answer = _message(answers, with_body=not request.startswith(b"HEAD"))
                if request.startswith(method) and not lost.is_set():
                    lost.set()
                    # Not only `close`: the file made from the socket would keep the connection.
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=pass_on, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        assert lost.is_set()
        listener.shutdown(socket.SHUT_RDWR)


def test_a_write_whose_answer_is_lost_still_wins(minio_server: MinioServer) -> None:
    """A conditional put that succeeded, but heard nothing and was sent again, is no conflict with itself."""
    minio_server.make_bucket("lost-answers")
    with _proxy_that_loses_answers(minio_server.endpoint, b"PUT") as endpoint:
        store = open_store(
            f"s3+http://{endpoint}/lost-answers?region=us-east-1", minio_server.access_key, minio_server.secret_key
        )
        written = store.put("lease", b"mine", if_absent=True)
    direct = open_store(
        f"s3+http://{minio_server.endpoint}/lost-answers", minio_server.access_key, minio_server.secret_key
    )
    assert direct.info("lease").etag == written.etag
    with pytest.raises(AlreadyExistsError):
        direct.put("lease", b"mine", if_absent=True)
    with _proxy_that_loses_answers(minio_server.endpoint, b"PUT") as endpoint:
        store = open_store(
            f"s3+http://{endpoint}/lost-answers?region=us-east-1", minio_server.access_key, minio_server.secret_key
        )
        store.put("lease", b"renewed", if_match=written.etag)
    assert direct.get("lease") == b"renewed"


def test_a_lost_race_stays_lost_when_the_answer_is_lost(minio_server: MinioServer) -> None:
    """A refused put whose answer was lost is refused again, because what is there are not its bytes."""
    url = minio_server.make_bucket("lost-races")
    direct = open_store(url, minio_server.access_key, minio_server.secret_key)
    direct.put("lease", b"theirs")
    with _proxy_that_loses_answers(minio_server.endpoint, b"PUT") as endpoint:
        store = open_store(
            f"s3+http://{endpoint}/lost-races?region=us-east-1", minio_server.access_key, minio_server.secret_key
        )
        with pytest.raises(AlreadyExistsError):
            store.put("lease", b"mine", if_absent=True)
    with pytest.raises(ConflictError):
        direct.put("lease", b"mine", if_match="0" * 32)
    assert direct.get("lease") == b"theirs"


def test_wrong_credentials_are_refused_with_what_to_do(minio_server: MinioServer) -> None:
    """An unknown user and a wrong secret are unauthenticated, in reads as in presigned writes; no secret is shown."""
    url = minio_server.make_bucket("credentials")
    for access, secret in (("nobody-here", "x" * 20), (minio_server.access_key, "wrong-secret")):
        store = open_store(url + "?region=us-east-1", access, secret)
        for call in (lambda: store.put("a", b"x"), lambda: store.get("a"), lambda: list(store.list(""))):  # noqa: B023
            with pytest.raises(UnauthenticatedError, match="check access key") as caught:
                call()
            assert secret not in str(caught.value)


def test_a_missing_bucket_says_so(minio_server: MinioServer) -> None:
    """A bucket that is not there is to be created first, whatever is asked of it."""
    store = open_store(
        f"s3+http://{minio_server.endpoint}/no-such-bucket", minio_server.access_key, minio_server.secret_key
    )
    for call in (lambda: store.put("a", b"x"), lambda: store.get("a"), lambda: list(store.list(""))):
        with pytest.raises(FailedPreconditionError, match="create the bucket"):
            call()


def test_a_server_that_is_away_is_unavailable() -> None:
    """Nothing listens there: the error names the address and comes soon."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        store = open_store(f"s3+http://{address}/bucket?region=us-east-1", "access", "secret-secret")
        with pytest.raises(UnavailableError, match=address):
            store.get("a")


def test_a_prefix_keeps_stores_apart(minio_server: MinioServer) -> None:
    """Two prefixes of one bucket do not see each other, and keys are without the prefix."""
    url = minio_server.make_bucket("prefixes")
    left, right = (
        open_store(f"{url}/team/{name}", minio_server.access_key, minio_server.secret_key) for name in ("a", "b")
    )
    left.put("runs/one/run.json", b"{}")
    assert [info.key for info in left.list("")] == ["runs/one/run.json"]
    assert list(left.list_folders("")) == ["runs"]
    assert list(right.list("")) == []


def _write_from_child(store: ObjectStore, key: str) -> None:
    store.put(key, b"from a child")


def test_a_store_crosses_processes(minio_store: Callable[[], ObjectStore]) -> None:
    """A child process and a pickled copy connect by themselves."""
    store = minio_store()
    store.put("parent", b"x")
    pickle.loads(pickle.dumps(store)).put("pickled", b"x")
    child = multiprocessing.get_context("spawn").Process(target=_write_from_child, args=(store, "child"))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert [info.key for info in store.list("")] == ["child", "parent", "pickled"]


@pytest.mark.parametrize("expires_s", [0, -1, 8 * 86400])
def test_presigned_urls_last_a_week_at_most(minio_store: Callable[[], ObjectStore], expires_s: int) -> None:
    """A duration that S3 does not know is refused before anything is signed."""
    with pytest.raises(InvalidArgumentError, match="cannot last"):
        minio_store().presign_get("key", expires_s)


def test_errors_are_typed(minio_store: Callable[[], ObjectStore]) -> None:
    """A range beyond the end of an object is no error, and whatever else is raised is one of ours."""
    store = minio_store()
    store.put("a", b"12345")
    assert store.get("a", offset=5) == b""
    with pytest.raises(WeftError):
        store.put("a", b"x", if_match="not the etag")
