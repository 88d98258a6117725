"""The console's page, held open."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["page_open"]


@contextmanager
def page_open(url: str, trusted: ssl.SSLContext | None = None) -> Iterator[None]:
    """Ask the page for its runs again and again, as a browser does that has it open; nobody is signed in."""
    closed = threading.Event()

    def look() -> None:
        while not closed.wait(0.5):
            try:
                urllib.request.urlopen(f"{url}/api/runs", timeout=5, context=trusted).close()
            except urllib.error.HTTPError as answer:
                answer.close()
            except (OSError, http.client.HTTPException):
                # On a busy machine, or while the console is exchanged, one look may get no answer.
                continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()
