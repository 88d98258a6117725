"""
Asks every service of a release again and again, through the Services' addresses; runs in a pod of the client's image.

Reads WEFT_POLL_TARGETS, host:port by service as JSON. gRPC calls have the retries that every client of weft has and
nothing beyond them; the page is asked once, as a browser does. Prints all that it saw, as one line of JSON, every
second.
"""

import http.cookiejar
import json
import os
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.activations.v1 import service_pb2 as activations
from weft.activations.v1.service_pb2_grpc import ActivationServiceStub
from weft.attribution.v1 import service_pb2 as attribution
from weft.attribution.v1.service_pb2_grpc import AttributionServiceStub
from weft.cache.v1 import service_pb2 as cache
from weft.cache.v1.service_pb2_grpc import CacheServiceStub
from weft.training.v1 import service_pb2 as training
from weft.training.v1.service_pb2_grpc import TrainingServiceStub
from weft_common.client import channel

AUTHORITY = Path("/etc/weft/tls/ca.crt")
TOKENS = Path("/etc/weft/tokens")
TIMEOUT_S = 30
EVERY_S = 0.1
CALLS: dict[str, Callable[[Any], object]] = {
    "activations": lambda found: ActivationServiceStub(found).ListModels(
        activations.ListModelsRequest(), timeout=TIMEOUT_S
    ),
    "cache": lambda found: CacheServiceStub(found).ListDatasets(cache.ListDatasetsRequest(), timeout=TIMEOUT_S),
    "trainer": lambda found: TrainingServiceStub(found).ListRuns(training.ListRunsRequest(), timeout=TIMEOUT_S),
    "attribution": lambda found: AttributionServiceStub(found).ListGraphs(
        attribution.ListGraphsRequest(), timeout=TIMEOUT_S
    ),
}


class Seen:
    """What came of the calls to one service."""

    def __init__(self) -> None:
        self.calls = 0
        self.longest_s = 0.0
        self.failures: list[str] = []

    def ask(self, call: Callable[[], object]) -> None:
        """Call once, and note what came of it."""
        begun = time.monotonic()
        try:
            call()
        except Exception as error:
            self.failures.append(f"{time.strftime('%H:%M:%S')} {error!r}"[:400])
        self.calls += 1
        self.longest_s = max(self.longest_s, time.monotonic() - begun)


def poll(service: str, target: str, seen: Seen) -> None:
    """Ask a gRPC service, now over a channel that is kept, now over a new one as a command does."""
    token = (TOKENS / service).read_text().strip()
    kept = channel(target, token=token, tls_ca=AUTHORITY)
    while True:
        seen.ask(lambda: CALLS[service](kept))
        time.sleep(EVERY_S)
        with channel(target, token=token, tls_ca=AUTHORITY) as fresh:
            seen.ask(lambda: CALLS[service](fresh))
        time.sleep(EVERY_S)


def poll_page(target: str, seen: Seen) -> None:
    """Sign in, then ask the page's backend for datasets, each time over a new connection."""
    context = ssl.create_default_context(cafile=str(AUTHORITY))
    cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), cookies)
    body = json.dumps({"token": (TOKENS / "console").read_text().strip()}).encode()
    headers = {"Content-Type": "application/json", "X-Weft-Console": "1"}
    opener.open(urllib.request.Request(f"https://{target}/api/session", body, headers), timeout=TIMEOUT_S).close()
    while True:
        seen.ask(lambda: opener.open(f"https://{target}/api/datasets", timeout=TIMEOUT_S).close())
        time.sleep(EVERY_S)


def main() -> None:
    """Poll until the pod is deleted."""
    found = {}
    for service, target in json.loads(os.environ["WEFT_POLL_TARGETS"]).items():
        seen = found[service] = Seen()
        arguments = (target, seen) if service == "console" else (service, target, seen)
        threading.Thread(target=poll_page if service == "console" else poll, args=arguments, daemon=True).start()
    while True:
        time.sleep(1)
        sys.stdout.write(json.dumps({service: vars(seen) for service, seen in found.items()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
