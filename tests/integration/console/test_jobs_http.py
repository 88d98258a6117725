"""What the console's backend takes and refuses of jobs, over real HTTP before the real attribution service."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jobs_house import CONSOLE_TOKEN, JobsHouse, jobs_house

from weft_console.serve import serving_console

POST = {"X-Weft-Console": "1"}
JOB = {"transcoder": "t", "work": "explain", "features": ["1-0"], "max_calls": 5}


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[JobsHouse]:
    # Nothing is explained here: what is refused is refused before anybody is asked.
    async with jobs_house(tmp_path, "http://127.0.0.1:9/v1", num_sequences=20) as made:
        yield made


@pytest.fixture
async def person(jobs: JobsHouse, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that is signed in."""
    static = tmp_path / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html><title>weft</title>")
    async with (
        serving_console(jobs.settings.model_copy(update={"static_dir": static})) as console,
        httpx2.AsyncClient(base_url=console.url.rstrip("/"), timeout=10) as client,
    ):
        answer = await client.post("/api/session", json={"token": CONSOLE_TOKEN}, headers=POST)
        assert answer.status_code == 200
        yield client


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"work": "sing"}, "work"), ({"transcoder": "../t"}, "transcoder"), ({"features": ["1"]}, "features"),
        ({"features": "1-0"}, "features"), ({"graphs": ["a/b"]}, "graphs"), ({"max_calls": -1}, "max_calls"),
        ({"max_calls": True}, "max_calls"), ({"max_calls": 0}, "scope.max_calls"),
        ({"max_tokens": 2**60}, "max_tokens"),
        ({"num_examples": 101}, "num_examples"), ({"features": [], "filter": {"states": ["asleep"]}}, "filter"),
        ({"filter": {"layers": [-1]}}, "layers"), ({"filter": {"density": {"most": 1}}}, "density"),
        ({"filter": {"density": {"max": float("1e400")}}}, "density"),
        ({"work": "score", "kinds": ["singing"]}, "kinds"), ({"prompt": "explain-99"}, None),
    ],
)  # fmt: skip
async def test_malformed_jobs_are_refused_by_field(
    person: httpx2.AsyncClient, change: dict[str, Any], field: str | None
) -> None:
    """Each answer is 400 with the field's name, and nothing is begun."""
    body = json.dumps({**JOB, **change})
    headers = {**POST, "Content-Type": "application/json"}
    answer = await person.post("/api/interpretations", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json().get("field") == field
    listed = (await person.get("/api/interpretations")).json()
    assert listed == {"interpretations": [], "next_page_token": ""}


async def test_job_without_an_index_is_refused_in_the_service_s_words(person: httpx2.AsyncClient) -> None:
    """A filter needs the index as well as the work does."""
    for body in (JOB, {**JOB, "features": [], "filter": {}}):
        answer = await person.post("/api/interpretations", json=body, headers=POST)
        assert answer.status_code == 409
        assert "index" in answer.json()["detail"]


async def test_filter_that_takes_nothing_is_refused(person: httpx2.AsyncClient, jobs: JobsHouse) -> None:
    """No job over no features is begun; the message says what to do."""
    await jobs.index()
    wanted = {"density": {"min": 2.0}}
    answer = await person.post("/api/interpretations", json={**JOB, "features": [], "filter": wanted}, headers=POST)
    assert answer.status_code == 400
    assert "widen the filter" in answer.json()["detail"]


async def test_jobs_that_are_not_there_are_not_found(person: httpx2.AsyncClient, jobs: JobsHouse) -> None:
    """Neither shown nor stopped, nor is other work of the service stopped under this name."""
    await jobs.index()
    operations = [each.name async for each in jobs.house.client.operations.list("attribution")]
    for operation in (operations[0].rpartition("/")[2], "attribution-explain-features.nothing"):
        assert (await person.get(f"/api/interpretations/{operation}")).status_code == 404
        assert (await person.get(f"/api/interpretations/{operation}/features")).status_code == 404
        for verb in ("cancel", "resume"):
            answer = await person.post(f"/api/interpretations/{operation}/{verb}", json={}, headers=POST)
            assert answer.status_code == 404
    for verb in ("cancel", "resume"):
        answer = await person.post(f"/api/transcoders/t/indexes/i1/{verb}", json={}, headers=POST)
        assert answer.status_code == 404
        assert "whole" in answer.json()["detail"]
    assert (await person.get("/api/interpretations/x/features?from=-1")).status_code == 400
    assert (await person.get("/api/interpretations/x/features?outcome=sung")).status_code == 400


async def test_index_is_refused_by_field(person: httpx2.AsyncClient) -> None:
    """What is no id or no number never reaches the service; what it refuses comes in its words."""
    for body, field in (
        ({"index_id": "a/b", "dataset": "d"}, "index_id"),
        ({"index_id": "a", "dataset": ""}, "dataset"),
        ({"index_id": "a", "dataset": "d", "max_tokens": -1}, "max_tokens"),
        ({"index_id": "a", "dataset": "d", "num_top": 101}, None),
    ):
        answer = await person.post("/api/transcoders/t/indexes", json=body, headers=POST)
        assert answer.status_code == 400, answer.text
        assert field is None or answer.json()["field"] == field
    assert (await person.get("/api/transcoders/t/indexes")).json() == {"indexes": [], "jobs": []}
