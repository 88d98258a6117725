"""
An endpoint that speaks OpenAI's protocol on a free port: rules answer, and tests say what goes wrong.

    with interpreter_server(RuleBrain().answer) as server:
        server.faults = [status(429, {"Retry-After": "0.2"}), cut()]     # the first requests, in turn
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, str], str]
Fault = Callable[[BaseHTTPRequestHandler], bool]


@dataclass
class InterpreterServer:
    """
    What the server was asked, and what it does next.

    Args:
        url: Base URL.
        faults: Taken off the front, one a request; each may answer itself, and says whether it did.
        always: A fault for every request.
        requests: Path, body and headers of every request.
        times: Monotonic time of each.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int) -> None:
        """Wait until so many requests have come."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.requests) >= count, 60)


def send(handler: BaseHTTPRequestHandler, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """One whole answer."""
    handler.send_response(code)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: str | None, **message: Any) -> bytes:
    """A chat completion as the protocol has it."""
    finish = message.pop("finish_reason", "stop")
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def says(text: str | None, **message: Any) -> Fault:
    """Answers with this text whatever was asked."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, 200, completion(text, **message))
        return True

    return fault


def raw(body: bytes, headers: Mapping[str, str] | None = None) -> Fault:
    """Answers with these bytes."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, 200, body, headers)
        return True

    return fault


def status(code: int, headers: Mapping[str, str] | None = None, message: str = "no") -> Fault:
    """Answers with an error."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, code, json.dumps({"error": {"message": message}}).encode(), headers)
        return True

    return fault


def cut() -> Fault:
    """Closes the connection in the middle of the answer."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.wfile.flush()
        handler.close_connection = True
        return True

    return fault


def slow(seconds: float) -> Fault:
    """Answers right, but only after a while."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        time.sleep(seconds)
        return False

    return fault


def held(until: threading.Event) -> Fault:
    """Answers right, once it may; without leave after a minute."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        until.wait(60)
        return False

    return fault


@contextmanager
def interpreter_server(answer: Answer) -> Iterator[InterpreterServer]:
    """Serve until the end of the context."""
    state = InterpreterServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.came:
                state.times.append(time.monotonic())
                state.requests.append((self.path, body, {name.lower(): value for name, value in self.headers.items()}))
                state.came.notify_all()
                fault = state.faults.pop(0) if state.faults else state.always
            try:
                if fault is not None and fault(self):
                    return
                if self.path.endswith("/embeddings"):
                    send(self, 200, _embeddings(body["input"]))
                else:
                    system, user = (message["content"] for message in body["messages"])
                    send(self, 200, completion(answer(system, user)))
            except (BrokenPipeError, ConnectionResetError):
                # Who asked did not wait.
                return

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _embeddings(texts: list[str]) -> bytes:
    """Counts of a few words and kinds of characters: near where they have the same."""

    def vector(text: str) -> list[float]:
        words = [f" {word}" in f" {text}" for word in ("river", "stone", "cloud")]
        digit = "digit" in text or any(character.isdigit() for character in text)
        bracket = "bracket" in text or "(" in text or ")" in text
        return [1.0, *map(float, words), float(digit), float(bracket)]

    data = [{"index": at, "object": "embedding", "embedding": vector(text)} for at, text in enumerate(texts)]
    # Out of order, as the protocol allows.
    return json.dumps({"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 50}}).encode()
