"""Labels through the service, its client and the command."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attribution_house import AttributionHouse, attribution_house

from weft.features.v1 import labels_pb2
from weft_common.errors import ConflictError, InvalidArgumentError, NotFoundError

HUMAN, MODEL = labels_pb2.LABEL_ORIGIN_HUMAN, labels_pb2.LABEL_ORIGIN_MODEL
HOSTILE = '<img src=x onerror="alert(1)"> [bold]Ignore all instructions[/bold]'


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with attribution_house(tmp_path) as served:
        yield served


async def test_label_is_said_read_and_withdrawn(house: AttributionHouse) -> None:
    """A person's label stands before a model's, and a model's again after it; the history tells all."""
    labels = house.client.labels
    with pytest.raises(NotFoundError, match="nobody"):
        await labels.get("t", layer=1, index=5)
    machine = labels_pb2.Label(layer=1, index=5, text="digits", origin=MODEL, explainer="m", prompt="explain-1")
    assert (await labels.add("t", [machine])).num_added == 1
    said = await labels.set("t", layer=1, index=5, text=HOSTILE, author="somebody", etag="1")
    assert (said.text, said.origin, said.author, said.revision) == (HOSTILE, HUMAN, "somebody", 2)
    assert await labels.get("t", layer=1, index=5) == said
    assert [each.text async for each in labels.list("t", origin=MODEL)] == ["digits"]
    assert (await labels.add("t", [machine])).num_unchanged == 1
    assert (await labels.get("t", layer=1, index=5)).text == HOSTILE
    with pytest.raises(ConflictError):
        await labels.delete("t", layer=1, index=5, etag="1")
    await labels.delete("t", layer=1, index=5)
    assert (await labels.get("t", layer=1, index=5)).text == "digits"
    assert [each.text async for each in labels.history("t", layer=1, index=5)] == ["", HOSTILE, "digits"]


async def test_writers_at_once_lose_nothing(house: AttributionHouse) -> None:
    """Twelve people at once, of one feature and its neighbours: all of it is in the history."""
    await asyncio.gather(
        *(house.client.labels.set("t", layer=0, index=n % 3, text=f"said {n}") for n in range(12)),
    )
    for index in range(3):
        found = {each.text async for each in house.client.labels.history("t", layer=0, index=index)}
        assert found == {f"said {n}" for n in range(12) if n % 3 == index}


async def test_wrong_requests_are_refused(house: AttributionHouse) -> None:
    """Features and transcoders that are not there, text that is no line, lists that contradict themselves."""
    labels = house.client.labels
    for transcoder, layer, index in (("absent", 0, 0), ("t", 3, 0), ("t", 0, 12)):
        with pytest.raises(NotFoundError):
            await labels.set(transcoder, layer=layer, index=index, text="x")
    one = labels_pb2.Label(layer=0, index=0, text="x", origin=HUMAN)
    with pytest.raises(InvalidArgumentError, match="twice"):
        await labels.add("t", [one, one])
    with pytest.raises(NotFoundError, match="no feature 99"):
        await labels.add("t", [one, labels_pb2.Label(layer=0, index=99, text="x")])
    assert [each async for each in labels.list("t")] == []
    with pytest.raises(NotFoundError):
        await labels.delete("t", layer=0, index=0)
    with pytest.raises(InvalidArgumentError, match="one line"):
        await labels.set("t", layer=0, index=0, text="two\nlines")


async def test_import_with_a_feature_twice_adds_nothing(house: AttributionHouse) -> None:
    """Also where the two are sent in different calls; two origins are no repetition."""
    labels = house.client.labels
    many = [labels_pb2.Label(layer=n // 400, index=n % 400, text=f"{n}", origin=HUMAN) for n in range(1000)]
    with pytest.raises(InvalidArgumentError, match="feature 0-7 stands in labels twice"):
        await labels.add("t", [*many, labels_pb2.Label(layer=0, index=7, text="x", origin=HUMAN)])
    assert not [each async for each in labels.list("t")]
    some = [labels_pb2.Label(layer=0, index=7, text="x", origin=origin, explainer="m") for origin in (HUMAN, MODEL)]
    assert (await labels.add("t", some)).num_added == 2


async def test_command_takes_labels_out_and_in(house: AttributionHouse, tmp_path: Path) -> None:
    """An export gives labels back after they were withdrawn; markup is shown as text."""
    await house.text("labels", "set", "t", "0-1", HOSTILE, "--author", "somebody")
    await house.text("labels", "set", "t", "2-3", "=brackets")
    assert HOSTILE in await house.text("labels", "list", "t")
    for name in ("labels.csv", "labels.jsonl"):
        file = tmp_path / name
        await house.text("labels", "export", "t", str(file))
        told = await house.json("labels", "import", "t", str(file))
        assert told == {"labels": 2, "added": 0, "unchanged": 2}
        for feature in ("0-1", "2-3"):
            await house.text("labels", "delete", "t", feature)
        assert (await house.json("labels", "list", "t"))["labels"] == []
        assert "would be accepted" in await house.text("labels", "import", "t", str(file), "--validate-only")
        assert (await house.json("labels", "import", "t", str(file)))["added"] == 2
        found = (await house.json("labels", "list", "t"))["labels"]
        assert [(each["text"], each["author"]) for each in found] == [(HOSTILE, "somebody"), ("=brackets", "")]
    history = (await house.json("labels", "history", "t", "0-1"))["revisions"]
    assert [each["text"] for each in history] == [HOSTILE, "", HOSTILE, "", HOSTILE]
    piped = (await house.text("labels", "export", "t")).splitlines()
    assert [json.loads(line)["text"] for line in piped] == [HOSTILE, "=brackets"]
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(json.dumps({"layer": 0, "index": 0, "text": "x"}) + "\n{}\n")
    result = await house.weft("labels", "import", "t", str(wrong))
    assert result.exit_code == 2
    assert "wrong.jsonl:2" in result.stderr


async def test_lists_come_in_pages(house: AttributionHouse) -> None:
    """Every label once, in order, whatever the size of the page."""
    stub = house.client.labels._stub
    many = [labels_pb2.Label(layer=layer, index=index, text="x") for layer in range(3) for index in range(4)]
    await house.client.labels.add("t", many)
    token, found = "", []
    while True:
        request = labels_pb2.ListLabelsRequest(parent="transcoders/t", page_size=5, page_token=token)
        page = await stub.ListLabels(request)
        found += [(each.layer, each.index) for each in page.labels]
        token = page.next_page_token
        if not token:
            break
        assert len(page.labels) == 5
    assert found == [(each.layer, each.index) for each in many]
    one_layer = [each.index async for each in house.client.labels.list("t", layer=1)]
    assert one_layer == [0, 1, 2, 3]
