"""
A proxy between a client of S3 and its server that does to requests what networks and overloaded servers do.

It reads a whole request, asks what is to happen to it, and speaks HTTP to the server itself, so it can send half an
answer, another one, or none after the server has done its work. The host that a client signs is the proxy's, which the
server takes as its own.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["FAULTS", "FaultProxy", "fault_proxy"]

FAULTS = (
    "slow",  # the answer comes in drops
    "reset",  # the connection is reset before the server hears of anything
    "lost_answer",  # the server has done it, the connection is reset before the answer
    "reset_body",  # the connection is reset in the middle of the answer
    "truncated",  # the answer ends early, in good order
    "unavailable",  # 503, and the server has not heard of anything
    "late_503",  # 503, though the server has done it
    "wrong_etag",  # the answer names another version
)
_SLOW_S = 0.05
_MAX_IN_A_ROW = 3
_NOT_PASSED_ON = frozenset({"transfer-encoding", "connection", "content-length"})


class FaultProxy:
    """
    What the proxy does, for the test to say.

    Attributes:
        fault: One of FAULTS, or None for none.
        share: Of the requests that meet it; never more than three in a row do.
        met: How often each fault was met, by method.
    """

    def __init__(self, upstream: str, seed: str) -> None:
        self.upstream = upstream
        self.fault: str | None = None
        self.share = 0.15
        self.met: Counter[tuple[str, str]] = Counter()
        self._random = random.Random(seed)
        self._in_a_row = 0
        self._lock = threading.Lock()

    def choose(self, method: str) -> str | None:
        """What happens to the next request."""
        with self._lock:
            meets = self._random.random() < self.share and self._in_a_row < _MAX_IN_A_ROW
            if self.fault is None or not meets:
                self._in_a_row = 0
                return None
            self._in_a_row += 1
            self.met[self.fault, method] += 1
            return self.fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.choose(self.command)
        if fault == "reset":
            self._reset()
            return
        if fault == "unavailable":
            self._answer(503, [], b"")
            return
        status, headers, data = self._ask(body)
        if fault == "lost_answer":
            self._reset()
        elif fault == "late_503":
            self._answer(503, [], b"")
        elif fault == "wrong_etag":
            headers = [(name, '"0123456789abcdef"' if name.lower() == "etag" else value) for name, value in headers]
            self._answer(status, headers, data)
        elif fault in ("reset_body", "truncated"):
            self._answer(status, headers, data, sent=len(data) // 2)
            self._reset() if fault == "reset_body" else self._close()
        else:
            self._answer(status, headers, data, pause_s=_SLOW_S if fault == "slow" else 0.0)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _NOT_PASSED_ON]
            data = answer.read()
            if self.command == "HEAD":
                headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
            return answer.status, headers, data
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, sent: int | None = None, pause_s: float = 0.0
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.flush()
        part = data[: len(data) if sent is None else sent]
        if pause_s:
            for piece in (part[: len(part) // 2], part[len(part) // 2 :]):
                time.sleep(pause_s)
                self.wfile.write(piece)
                self.wfile.flush()
        else:
            self.wfile.write(part)
        self.wfile.flush()

    def _reset(self) -> None:
        """End the connection by RST, which the other side sees as an error at once."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()

    def _close(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up are what this is for."""


@contextmanager
def fault_proxy(upstream: str, seed: str) -> Iterator[tuple[str, FaultProxy]]:
    """
    Run a proxy for as long as this lasts; gives its address.

    Args:
        upstream: `host:port` of the server.
        seed: The same seed and requests meet the same faults.
    """
    proxy = FaultProxy(upstream, seed)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", proxy
        finally:
            server.shutdown()
            thread.join()
