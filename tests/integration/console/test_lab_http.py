"""What the lab's HTTP API refuses before it asks anybody."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from watched_page import TOKEN

from weft_console.serve import Console

POST = {"X-Weft-Console": "1"}
ASKED = {"transcoder": "t", "prompt": "a b"}
STEERED = {**ASKED, "changes": [{"feature": "0-1", "factor": 0}]}


@pytest.fixture
async def person(console: Console) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that is signed in."""
    async with httpx2.AsyncClient(base_url=console.url.rstrip("/"), timeout=10, headers=POST) as client:
        assert (await client.post("/api/session", json={"token": TOKEN})).status_code == 200
        yield client


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("activations", {"prompt": "a"}, "transcoder is missing"),
        ("activations", {**ASKED, "transcoder": "a/b"}, "transcoder"),
        ("activations", {**ASKED, "prompt": " "}, "the prompt is empty"),
        ("activations", {**ASKED, "layers": [-1]}, "layers has -1"),
        ("activations", {**ASKED, "layers": [True]}, "layers has True"),
        ("activations", {**ASKED, "layers": [0] * 1001}, "give 1000 at most"),
        ("activations", {**ASKED, "features": [3]}, "a feature is no text"),
        ("activations", {**ASKED, "max_features": "many"}, "max_features has 'many'"),
        ("steering", ASKED, "changes is missing"),
        ("steering", {**ASKED, "changes": [3]}, "a change is no object"),
        ("steering", {**ASKED, "changes": [{"feature": "0-1"}]}, "nothing to do"),
        ("steering", {**ASKED, "changes": [{"feature": "0-1", "factor": 0, "add": 1}]}, "factor and add"),
        ("steering", {**ASKED, "changes": [{"feature": "0-1", "value": "x"}]}, "value is 'x'"),
        ("steering", {**ASKED, "changes": [{"feature": "0-1", "value": 1, "positions": [1.5]}]}, "positions has 1.5"),
        ("steering", {**STEERED, "max_new_tokens": 2**31}, "max_new_tokens has"),
    ],
)
async def test_bodies_that_make_no_sense_are_refused(
    person: httpx2.AsyncClient, path: str, body: dict[str, Any], text: str
) -> None:
    """Each is answered with 400 and says what is wrong, without another service being asked."""
    answer = await person.post(f"/api/lab/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["detail"]
