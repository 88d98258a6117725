"""The console's HTTP on features and labels, in front of a real attribution service."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from attribution_house import AttributionHouse
from indexed_house import index_features, indexed_house, seen_by_console
from watched_page import TOKEN

from weft_console.serve import Console
from weft_console.settings import ConsoleSettings

POST = {"X-Weft-Console": "1"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with indexed_house(tmp_path / "house") as rig:
        house = rig.house
        await index_features(house)
        yield house


@pytest.fixture
def settings(settings: ConsoleSettings, house: AttributionHouse) -> ConsoleSettings:
    """The console looks at the real service."""
    return settings.model_copy(update=seen_by_console(house))


@pytest.fixture
async def person(console: Console) -> AsyncIterator[httpx2.AsyncClient]:
    """Somebody who is signed in."""
    async with httpx2.AsyncClient(base_url=console.url.rstrip("/"), timeout=10, headers=POST) as client:
        assert (await client.post("/api/session", json={"token": TOKEN})).status_code == 200
        yield client


async def test_features_are_listed_from_any_place(person: httpx2.AsyncClient, house: AttributionHouse) -> None:
    """Pages by how many are passed over join to what the service lists; briefs tell the same of a few."""
    listed = [each.name async for each in house.client.features.list("t", order_by="density desc")]
    joined: list[str] = []
    for skip in range(0, 40, 10):
        query: dict[str, Any] = {"order_by": "density desc", "skip": skip, "page_size": 10}
        page = (await person.get("/api/features/t", params=query)).json()
        assert page["total_size"] == 36
        joined += [each["name"] for each in page["features"]]
    assert joined == listed
    await house.client.labels.set("t", layer=1, index=2, text="months")
    brief = (await person.get("/api/features/t/briefs?features=1-2,0-3,1-2")).json()["features"]
    assert [each["name"].rpartition("/")[2] for each in brief] == ["1-2", "0-3"]
    assert brief[0]["label"] == {
        "text": "months", "is_human": True, "scores": {}, "explainer": "", "is_imported": False,
    }  # fmt: skip
    assert brief[1]["label"] is None
    index = (await person.get("/api/features/t/index")).json()["index"]
    assert index["num_features"] == [12, 12, 12]
    assert len(index["histogram_edges"]) > 10


WRONG = [
    ("t?layers=0,a", "layers has 'a'"),
    ("t?states=active,angry", "states has 'angry'"),
    ("t?label_state=mine", "label_state is 'mine'"),
    ("t?density_min=nan", "density_min is 'nan'"),
    ("t?skip=-1", "skip has '-1'"),
    ("t?skip=99999999999", "skip has"),
    ("t?label=a&token=b", "search for one of them"),
    ("t?order_by=age", "order_by"),
    ("t?page_size=many", "page_size"),
    ("t/briefs", "give 1 to 40"),
    ("t/briefs?features=" + ",".join(f"0-{n}" for n in range(41)), "give 1 to 40"),
    ("t/briefs?features=..", "features"),
    ("t/none/details", "LAYER|layer"),
    ("t/0-1/graphs?page_token=x", "page_token"),
]


async def test_wrong_questions_are_refused(person: httpx2.AsyncClient) -> None:
    """Each refusal is a 400 that says what was wrong and what may stand there."""
    for path, text in WRONG:
        answer = await person.get(f"/api/features/{path}")
        assert answer.status_code == 400, path
        assert re.search(text, answer.json()["detail"]), answer.text


async def test_label_follows_what_its_writer_saw(person: httpx2.AsyncClient, house: AttributionHouse) -> None:
    """An etag is given where nothing stands, never stood and no longer stands; an old one is refused."""
    path = "/api/features/t/0-5/label"
    empty = (await person.get(path)).json()
    assert empty == {"label": None, "revisions": [], "has_more": False, "etag": "0"}
    first = (await person.post(path, json={"text": "one", "etag": "0", "author": "me"})).json()
    assert (first["label"]["text"], first["label"]["origin"], first["label"]["author"]) == ("one", "human", "me")
    refused = await person.post(path, json={"text": "two", "etag": "0"})
    assert (refused.status_code, refused.json()["code"]) == (409, "ABORTED")
    gone = (await person.delete(f"{path}?etag={first['etag']}")).json()
    assert gone["label"] is None
    assert [each["text"] for each in gone["revisions"]] == ["", "one"]
    assert (await person.post(path, json={"text": "two", "etag": first["etag"]})).status_code == 409
    assert (await person.post(path, json={"text": "two", "etag": gone["etag"]})).json()["label"]["text"] == "two"
    for body in ({"text": ""}, {"text": "a\nb"}, {"text": 3}, {}):
        assert (await person.post(path, json=body)).status_code == 400
    assert (await person.post("/api/features/t/0-99/label", json={"text": "x"})).status_code == 404
    assert (await person.delete(f"{path}?origin=nobody")).status_code == 400
    assert (await house.client.labels.get("t", layer=0, index=5)).text == "two"


async def test_many_are_labelled_but_not_over_what_was_not_seen(
    person: httpx2.AsyncClient, house: AttributionHouse
) -> None:
    """Two people label the same features at once: each feature has one of both words, and who lost it is told."""
    features = [{"layer": 0, "index": index, "seen": ""} for index in range(8)]

    async def label(text: str) -> dict[str, Any]:
        answer = await person.post("/api/features/t/labels", json={"text": text, "features": features})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    one, other = await asyncio.gather(label("ours"), label("theirs"))
    stands = [(await house.client.labels.get("t", layer=0, index=index)).text for index in range(8)]
    assert one["num_labelled"] == stands.count("ours")
    assert other["num_labelled"] == stands.count("theirs")
    assert one["num_labelled"] + other["num_labelled"] == 8
    for told, text, another in ((one, "ours", "theirs"), (other, "theirs", "ours")):
        assert [(each["index"], each["text"]) for each in told["conflicts"]] == [
            (index, another) for index in range(8) if stands[index] != text
        ]
    # What was withdrawn stands for nothing seen; a feature that is not there is told, and the others are labelled.
    await house.client.labels.delete("t", layer=0, index=3)
    mixed = [{"layer": 0, "index": 3, "seen": ""}, {"layer": 0, "index": 99}, {"layer": 1, "index": 0}]
    answer = await person.post("/api/features/t/labels", json={"text": "mixed", "features": mixed})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["num_labelled"], told["conflicts"]) == (2, [])
    (failure,) = told["failures"]
    assert (failure["layer"], failure["index"]) == (0, 99)
    assert "has no feature 99" in failure["detail"]
    assert (await house.client.labels.get("t", layer=0, index=3)).text == "mixed"
    assert (await house.client.labels.get("t", layer=1, index=0)).text == "mixed"
    # The same once more, as after a lost answer: what was written is nobody else's.
    again = await person.post("/api/features/t/labels", json={"text": " mixed ", "features": mixed})
    assert again.json() == told
    history = [each.text async for each in house.client.labels.history("t", layer=1, index=0)]
    assert history == ["mixed"]
    # Where nothing at all could be written, that is the answer.
    nowhere = await person.post("/api/features/t/labels", json={"text": "x", "features": mixed[1:2]})
    assert nowhere.status_code == 404
    for features in ([], [{"layer": -1, "index": 0}], ["0-1"], [{"layer": 0, "index": 0}] * 201):
        answer = await person.post("/api/features/t/labels", json={"text": "x", "features": features})
        assert answer.status_code == 400
