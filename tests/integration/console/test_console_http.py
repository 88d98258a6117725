"""The console's backend over real HTTP, in front of in-memory peers over real gRPC."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from weft.attribution.v1 import reading_pb2
from weft_common.errors import FailedPreconditionError
from weft_common.server import PortTakenError
from weft_console.serve import Console, serving_console
from weft_console.settings import ConsoleSettings

TOKEN = "a-token-for-tests"
POST = {"X-Weft-Console": "1"}


@pytest.fixture
async def browser(console: Console) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that is not signed in."""
    async with httpx2.AsyncClient(base_url=console.url.rstrip("/"), timeout=10) as client:
        yield client


@pytest.fixture
async def person(browser: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """A client that is signed in."""
    answer = await browser.post("/api/session", json={"token": TOKEN}, headers=POST)
    assert answer.status_code == 200
    return browser


async def test_api_without_session_is_unauthenticated(browser: httpx2.AsyncClient) -> None:
    """Every path of the API asks for a session, also those that do not exist."""
    for path in ("/api/graphs", "/api/runs", "/api/datasets", "/api/session", "/api/nothing"):
        answer = await browser.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "UNAUTHENTICATED"


async def test_healthz_needs_no_session_and_no_host(browser: httpx2.AsyncClient) -> None:
    """A probe that knows neither token nor name gets its answer."""
    answer = await browser.get("/healthz", headers={"Host": "10.0.0.7:1234"})
    assert (answer.status_code, answer.text) == (200, "ok\n")


async def test_token_in_address_signs_in_and_disappears(browser: httpx2.AsyncClient) -> None:
    """The token is taken out of the address, and the cookie is strict, out of scripts' reach and not the token."""
    answer = await browser.get("/graphs/france", params={"token": TOKEN, "a": "b"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/graphs/france?a=b"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    assert (await browser.get("/api/graphs")).status_code == 200


@pytest.mark.parametrize("token", ["wrong", "", TOKEN + "x", "ünïcode"])
async def test_wrong_token_signs_nobody_in(browser: httpx2.AsyncClient, token: str) -> None:
    """Neither way in takes another token."""
    answer = await browser.post("/api/session", json={"token": token}, headers=POST)
    assert answer.status_code == 401
    assert "set-cookie" not in (await browser.get("/", params={"token": token})).headers
    assert (await browser.get("/api/graphs")).status_code == 401


async def test_redirect_after_token_stays_on_host(browser: httpx2.AsyncClient) -> None:
    """An address with two slashes cannot send a signed-in person elsewhere."""
    answer = await browser.get(f"{browser.base_url}//example.org/x", params={"token": TOKEN})
    assert answer.headers["location"] == "/example.org/x"


async def test_foreign_host_is_refused(person: httpx2.AsyncClient) -> None:
    """A name that leads here by DNS rebinding is not served, cookie or not."""
    for path in ("/", "/api/graphs"):
        answer = await person.get(path, headers={"Host": "evil.example"})
        assert answer.status_code == 421
        assert "WEFT_CONSOLE_ALLOWED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize("headers", [{}, {"X-Weft-Console": "1", "Origin": "http://evil.example"}])
async def test_post_from_another_site_is_refused(person: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    """Without the page's own header, or from another origin, nothing is changed."""
    answer = await person.post("/api/graphs", json={}, headers=headers)
    assert answer.status_code == 403


async def test_every_answer_carries_security_headers(browser: httpx2.AsyncClient) -> None:
    """No inline scripts, no framing, no sniffing, whatever is asked for."""
    for path in ("/", "/api/graphs", "/healthz", "/assets/none.js"):
        headers = (await browser.get(path)).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"


async def test_signing_out_ends_the_session(person: httpx2.AsyncClient) -> None:
    """After it, the browser has no cookie any more."""
    assert (await person.delete("/api/session", headers=POST)).status_code == 200
    assert (await person.get("/api/graphs")).status_code == 401


async def test_graph_file_passes_through_unchanged(person: httpx2.AsyncClient, graph_json: object) -> None:
    """The page gets the file that the attribution service wrote."""
    assert (await person.get("/api/graphs/france/json")).json() == graph_json
    described = (await person.get("/api/graphs/france")).json()
    assert described["state"] == "succeeded"
    assert "json" not in described
    assert described["statistics"]["num_edges"] == 1_204_113


async def test_errors_of_peers_keep_code_and_message(person: httpx2.AsyncClient) -> None:
    """NOT_FOUND of another service is a 404 with that service's own words."""
    answer = await person.get("/api/graphs/nowhere")
    assert answer.status_code == 404
    assert answer.json()["code"] == "NOT_FOUND"
    assert "weft graphs list" in answer.json()["detail"]


async def test_peer_that_is_down_is_unavailable(settings: ConsoleSettings) -> None:
    """The page comes up without its peers and says which one does not answer."""
    lonely = settings.model_copy(update={"cache_target": "127.0.0.1:1", "call_timeout_s": 1.0})
    async with serving_console(lonely) as console, httpx2.AsyncClient(base_url=console.url, timeout=10) as client:
        await client.post("api/session", json={"token": TOKEN}, headers=POST)
        answer = await client.get("api/datasets")
        assert answer.status_code in (503, 504)
        assert answer.json()["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


async def test_peers_refusal_of_token_is_no_sign_out(settings: ConsoleSettings) -> None:
    """A wrong token for a peer is the console's fault: the person stays signed in."""
    wrong = ConsoleSettings(**{**settings.model_dump(), "cache_token": "wrong"})
    async with serving_console(wrong) as console, httpx2.AsyncClient(base_url=console.url, timeout=10) as client:
        await client.post("api/session", json={"token": TOKEN}, headers=POST)
        answer = await client.get("api/datasets")
        assert answer.status_code == 500
        assert "WEFT_CONSOLE_CACHE_TOKEN" in answer.json()["detail"]


ASKED = {"prompt": "a", "model": "models/m", "transcoder": "transcoders/t"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "  ", "model": "models/m", "transcoder": "transcoders/t"}, "prompt"),
        ({"prompt": 3, "model": "models/m", "transcoder": "transcoders/t"}, "prompt"),
        ({"prompt": "a", "model": "models/m", "transcoder": "transcoders/t", "max_logits": 101}, "max_logits"),
        ({"prompt": "a", "model": "models/m", "transcoder": "transcoders/t", "max_logits": True}, "max_logits"),
        ({"prompt": "a", "model": "models/m"}, "transcoder"),
        (ASKED | {"targets": [{"text": ""}]}, "text"),
        (ASKED | {"targets": [{"text": " a", "layer": 3}]}, "targets"),
        (ASKED | {"targets": ["a"]}, "targets"),
        (ASKED | {"targets": [{"text": "a"}] * 101}, "targets"),
        (ASKED | {"targets": [{"layer": -1, "index": 0}]}, "layer"),
        (ASKED | {"targets": [{"plus": 1, "minus": 2**31}]}, "minus"),
        (ASKED | {"targets": [{"token_id": True}]}, "token_id"),
        (ASKED | {"position": -1}, "position"),
        (ASKED | {"position": "2"}, "position"),
    ],
)
async def test_bad_graph_request_names_its_field(
    person: httpx2.AsyncClient, world: object, body: dict[str, object], field: str
) -> None:
    """What is wrong is said at once, and no graph is asked for."""
    answer = await person.post("/api/graphs", json=body, headers=POST)
    assert answer.status_code == 400
    assert answer.json()["field"] == field
    assert world.created == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"{", "application/json", "no valid JSON"),
        (b"[]", "application/json", "no JSON object"),
        (b"a=b", "application/x-www-form-urlencoded", "application/json"),
        (b'{"token": "' + b"x" * 70_000 + b'"}', "application/json", "65536 bytes"),
    ],
)
async def test_bad_body_is_refused(browser: httpx2.AsyncClient, content: bytes, kind: str, said: str) -> None:
    """Bodies are bounded and of one type."""
    answer = await browser.post("/api/session", content=content, headers={**POST, "Content-Type": kind})
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


async def test_dataset_leaves_long_parts_out(person: httpx2.AsyncClient) -> None:
    """Shards and means, megabytes of them, stay behind; their number is told."""
    dataset = (await person.get("/api/datasets/demo")).json()
    assert dataset["num_shards"] == 12
    assert "shards" not in dataset
    stats = (await person.get("/api/datasets/demo/stats")).json()
    assert len(stats["stats"]) == 60
    assert stats["bits_per_value"] == pytest.approx(4.612)


async def test_run_events_resume_where_they_were(person: httpx2.AsyncClient) -> None:
    """A browser that comes back with its last event's id gets what follows it."""
    async with person.stream("GET", "/api/runs/demo/events", headers={"Last-Event-ID": "118"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        steps = []
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "metrics":
                steps.append(json.loads(line.removeprefix("data: "))["step"])
            elif line.startswith("data: ") and name == "evaluation":
                break
    assert steps == [119, 120]


async def test_events_of_missing_graph_tell_a_problem(person: httpx2.AsyncClient) -> None:
    """An error inside a stream arrives as an event, and the stream ends."""
    text = (await person.get("/api/graphs/nowhere/events")).text
    assert "event: problem" in text
    assert "NOT_FOUND" in text


async def test_open_stream_does_not_hold_up_the_stop(settings: ConsoleSettings) -> None:
    """A live page does not keep a console that is told to stop from ending at once."""
    loop = asyncio.get_running_loop()
    async with serving_console(settings) as console:
        async with httpx2.AsyncClient(base_url=console.url, timeout=10) as client:
            await client.post("api/session", json={"token": TOKEN}, headers=POST)
            async with client.stream("GET", "api/runs/demo/events") as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                began = loop.time()
                console.stop()
                async for _ in lines:
                    pass
        assert loop.time() - began < 1.5


async def test_metrics_count_requests_by_handler(person: httpx2.AsyncClient, console: Console) -> None:
    """Metrics stand on a port of their own, without the session."""
    await person.get("/api/graphs")

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{console.metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(scrape)
    assert 'weft_console_requests_total{handler="list_graphs",method="GET",status="200"}' in text


async def test_taken_port_says_what_to_set(console: Console, settings: ConsoleSettings) -> None:
    """A second console on the same port names the variable to change."""
    with pytest.raises(PortTakenError, match="WEFT_CONSOLE_PORT"):
        Console(settings.model_copy(update={"port": console.port}))


async def test_page_that_is_not_built_says_so(settings: ConsoleSettings) -> None:
    """A checkout without a built page names the command that builds it."""
    with pytest.raises(FailedPreconditionError, match="make page"):
        async with serving_console(settings.model_copy(update={"static_dir": settings.static_dir / "none"})):
            pass


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("summary?likeness=colour", "likeness"),
        ("summary?max_supernodes=13", "max_supernodes"),
        ("summary?max_supernodes=-1", "max_supernodes"),
        ("paths?source=a&target=b&num_paths=101", "num_paths"),
        ("comparison/a%20b", "other"),
    ],
)
async def test_bad_question_to_a_graph_names_its_field(person: httpx2.AsyncClient, path: str, field: str) -> None:
    """What is out of bounds is refused before another service is asked."""
    answer = await person.get(f"/api/graphs/france/{path}")
    assert answer.status_code == 400
    assert answer.json()["field"] == field


async def test_questions_to_a_graph_pass_through(person: httpx2.AsyncClient, world: Any) -> None:
    """Scores, paths, summary and comparison come as the attribution service has them."""
    scored = await person.post("/api/graphs/france/score", json={"node_ids": ["E_100_0", "E_101_1"]}, headers=POST)
    assert scored.json()["subgraph"] == {"replacement_score": 0.02, "completeness_score": 0.32}
    bad = await person.post("/api/graphs/france/score", json={"node_ids": [3]}, headers=POST)
    assert (bad.status_code, bad.json()["field"]) == (400, "node_ids")
    paths = await person.get("/api/graphs/france/paths", params={"source": "E_104_4", "target": "31_500_5"})
    assert [path["strength"] for path in paths.json()["paths"]] == [0.04, 0.02]
    backwards = await person.get("/api/graphs/france/paths", params={"source": "31_500_5", "target": "E_104_4"})
    assert backwards.status_code == 400
    heads = (await person.get("/api/graphs/france/heads", params={"source": "E_104_4", "target": "31_500_5"})).json()
    assert heads["parts"][1] == {"layer": 9, "head": 0, "position": 2, "value": -0.2}
    assert world.split == [("E_104_4", "31_500_5")]
    why = {"layer": "11", "head": "2", "query": "5", "key": "4"}
    attention = (await person.get("/api/graphs/france/attention", params=why)).json()
    assert (attention["pattern"], attention["pairs"][1]["key_node_id"], attention["rest"]) == (0.432, "constant", -0.2)
    assert world.attention == [(11, 2, 5, 4)]
    for name in why:
        bad = await person.get("/api/graphs/france/attention", params={**why, name: "x"})
        assert (bad.status_code, bad.json()["field"]) == (400, name)
        bad = await person.get("/api/graphs/france/attention", params={k: v for k, v in why.items() if k != name})
        assert (bad.status_code, bad.json()["field"]) == (400, name)
    summary = (await person.get("/api/graphs/france/summary?max_supernodes=2&likeness=decoder")).json()
    assert [group["kind"] for group in summary["supernodes"]][:3] == ["features", "features", "tokens"]
    assert world.summarized == [(2, reading_pb2.LIKENESS_DECODER)]
    assert (await person.get("/api/graphs/france/comparison/italy")).json()["overlap"] == 0.643


async def test_steering_of_every_node_passes_through(person: httpx2.AsyncClient, world: Any) -> None:
    """Changes, held layers and held attention arrive as asked; every node's effect and the agreement come back."""
    url = "/api/graphs/france/steering"
    change = {"node_ids": ["1_2_3", "4_5_3"], "factor": 0}
    found = (await person.post(url, json={"changes": [change]}, headers=POST)).json()
    assert found["rank_agreement"] == 0.721
    assert found["nodes"][2]["measured"] == pytest.approx(0.1)
    whole = {"changes": [{**change, "value": 2}], "held": {"first": 0, "last": 30}, "freeze_attention": True}
    await person.post(url, json=whole, headers=POST)
    first, second = world.steered
    assert [(list(each.node_ids), each.factor) for each in first.changes] == [(change["node_ids"], 0.0)]
    assert (first.HasField("held"), first.freeze_attention) == (False, False)
    assert (second.changes[0].value, second.held.first, second.held.last, second.freeze_attention) == (2.0, 0, 30, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "changes"),
        ({"changes": [3]}, "changes"),
        ({"changes": [{"factor": 1}]}, "node_ids"),
        ({"changes": [{"node_ids": [1], "factor": 1}]}, "node_ids"),
        ({"changes": [{"node_ids": ["1_2_3"]}]}, "factor"),
        ({"changes": [{"node_ids": ["1_2_3"], "value": "much"}]}, "value"),
        ({"changes": [], "held": 3}, "held"),
        ({"changes": [], "held": {"first": 3, "last": 1}}, "held"),
        ({"changes": [], "held": {"first": 3}}, "last"),
        ({"changes": [], "freeze_attention": 1}, "freeze_attention"),
    ],
)
async def test_steering_that_makes_no_sense_is_refused(
    person: httpx2.AsyncClient, world: Any, body: dict[str, Any], field: str
) -> None:
    """The message names the field, and nothing is asked of the service."""
    answer = await person.post("/api/graphs/france/steering", json=body, headers=POST)
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert not world.steered
