"""A run whose bucket answers 503 for a while, or breaks off in the middle of what it takes or gives."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from checkpoint_process import NUM_STEPS, load, train, train_over
from minio_server import MinioServer

from weft_common.errors import UnavailableError
from weft_store import ObjectStore, open_store
from weft_store.adapters.file import FileObjectStore
from weft_store.documents import encode_json
from weft_trainer.worker import patience
from weft_trainer.worker.checkpoints import RunCheckpoints

pytestmark = pytest.mark.s3

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

# Told the first line of a request and how many of that line there were: "pass", "refuse" or "break".
Fault = Callable[[bytes, int], str]


def _head(stream: BinaryIO) -> tuple[bytes, int]:
    """Read up to the body of one HTTP message; empty where the other side has closed. Also the body's length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return b"", 0
        head += line
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head, int(length[1]) if length else 0


@contextmanager
def _faulty(endpoint: str, fault: Fault) -> Iterator[str]:
    """Stand before a bucket; a connection that breaks does so in the middle of the request's body, or the answer's."""
    host, port = endpoint.split(":")
    seen: dict[bytes, int] = {}
    lock = threading.Lock()

    def pass_on(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port)), timeout=60) as server, suppress(OSError):
            requests, answers = client.makefile("rb"), server.makefile("rb")
            while (message := _head(requests))[0]:
                head, length = message
                # The query carries a signature, which differs each time.
                line = head.split(b"\r\n")[0].split(b"?")[0].removesuffix(b" HTTP/1.1")
                with lock:
                    seen[line] = seen.get(line, 0) + 1
                    what = fault(line, seen[line])
                if what == "break" and length:
                    requests.read(length // 2)
                    client.shutdown(socket.SHUT_RDWR)
                    return
                body = requests.read(length)
                if what == "refuse":
                    client.sendall(_REFUSAL)
                    client.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(head + body)
                head, length = _head(answers)
                body = b"" if line.startswith(b"HEAD") else answers.read(length)
                client.sendall(head + (body[: length // 2] if what == "break" else body))
                if what == "break":
                    client.shutdown(socket.SHUT_RDWR)
                    return

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=pass_on, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, torch.Tensor]:
    """The last state of a run that nothing happened to."""
    store = FileObjectStore(tmp_path)
    store.put("runs/r/run.json", encode_json({"attempt": 1}))
    train(str(tmp_path), lambda moment, op, key, count: None)
    return _state(store)


def _state(store: ObjectStore) -> dict[str, torch.Tensor]:
    trainer = load(RunCheckpoints(store, "r", 1))
    assert trainer.step == NUM_STEPS
    return dict(trainer.state())


def _open(server: MinioServer, endpoint: str, bucket: str) -> ObjectStore:
    return open_store(f"s3+http://{endpoint}/{bucket}?region=us-east-1", server.access_key, server.secret_key)


@pytest.mark.parametrize(
    ("bucket", "what", "times"),
    # One more than the client tries by itself, so that the rank has to.
    [("refuses", "refuse", 6), ("breaks-off", "break", 1)],
)
def test_run_ends_bit_for_bit_over_a_bucket_that_fails_for_a_while(
    minio_server: MinioServer,
    wanted: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    bucket: str,
    what: str,
    times: int,
) -> None:
    """A rank's file, its part and a manifest are refused on their way up, and a rank's file on its way down."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.001)
    minio_server.make_bucket(bucket)
    steps = {b"PUT": (b"2/attempt1-rank0", b"4/attempt1-part-", b"5/manifest"), b"GET": (b"5/attempt1-rank0",)}
    hit: set[bytes] = set()

    def fault(line: bytes, count: int) -> str:
        method = line.split(b" ")[0]
        if count > (times if method == b"PUT" else 1) or not any(step in line for step in steps.get(method, ())):
            return "pass"
        hit.add(line)
        return what

    with _faulty(minio_server.endpoint, fault) as endpoint:
        store = _open(minio_server, endpoint, bucket)
        store.put("runs/r/run.json", encode_json({"attempt": 1}))
        train_over(store, 120.0)
        found = _state(store)
    assert len(hit) == 4
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_bucket_that_stays_away_is_told_and_leaves_the_last_checkpoint(minio_server: MinioServer) -> None:
    """After the bound the error says which bucket refused which object; what was complete before is whole."""
    minio_server.make_bucket("stays-away")
    with _faulty(
        minio_server.endpoint, lambda line, count: "refuse" if b"00000004/attempt1-rank0" in line else "pass"
    ) as proxy:
        store = _open(minio_server, proxy, "stays-away")
        store.put("runs/r/run.json", encode_json({"attempt": 1}))
        with pytest.raises(UnavailableError, match="'stays-away'"):
            train_over(store, 0.0)
    direct = _open(minio_server, minio_server.endpoint, "stays-away")
    checkpoints = RunCheckpoints(direct, "r", 1)
    assert checkpoints.newest_step() == 2
    assert load(checkpoints).step == 2
