"""Many graphs at once: batches, what was made before, turns and limits of the queue."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attribution_house import AttributionHouse, attribution_house
from attribution_rig import make_transcoder
from google.longrunning import operations_pb2

from weft.attribution.v1 import batches_pb2, messages_pb2, targets_pb2
from weft_common.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, ResourceExhaustedError

SPEC = {"model": "models/tiny", "transcoder": "transcoders/t"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with attribution_house(tmp_path, max_waiting=3) as served:
        yield served


def item(prompt: str, graph_id: str = "", **spec: Any) -> batches_pb2.GraphBatchItem:
    return batches_pb2.GraphBatchItem(graph_id=graph_id, spec=messages_pb2.GraphSpec(prompt=prompt, **SPEC, **spec))


async def test_batch_makes_every_graph_and_tells_what_failed(house: AttributionHouse) -> None:
    """Graphs are those that are made one by one; a prompt that cannot be explained fails alone."""
    single = await house.make("single", "capital")
    items = [item("capitol"), item("x"), item("dapital", "mine"), item("capital")]
    operation = await house.client.graphs.create_batch("b1", items=items)
    done = await house.client.operations.wait(operation)
    assert isinstance(done, batches_pb2.GraphBatch)
    assert [result.graph for result in done.results] == [
        "graphs/b1-00000", "graphs/b1-00001", "graphs/mine", "graphs/b1-00003",
    ]  # fmt: skip
    assert (done.num_succeeded, done.num_failed, done.num_reused) == (3, 1, 1)
    assert "two tokens" in done.results[1].error_message
    assert [result.reused for result in done.results] == [False, False, False, True]
    again = (await house.client.graphs.get("b1-00003")).statistics
    assert again.reused
    assert (again.num_edges, again.conservation_error) == (
        single.statistics.num_edges,
        single.statistics.conservation_error,
    )
    assert await house.client.graphs.get_batch("b1") == done
    same = await house.client.graphs.create_batch("b1", items=items)
    assert same.name == operation.name
    with pytest.raises(AlreadyExistsError):
        await house.client.graphs.create_batch("b1", items=items[:1])


async def test_same_question_takes_the_rows_that_there_are(house: AttributionHouse) -> None:
    """The model does not run again, other thresholds prune anew; another prompt, setting or transcoder is made."""
    first = await house.make("g1")
    captures = house.runner.captures
    wide = await house.make("g2", node_threshold=1.0, edge_threshold=1.0, batch_size=3)
    assert house.runner.captures == captures
    assert wide.statistics.reused
    assert not first.statistics.reused
    assert wide.statistics.num_nodes_kept > first.statistics.num_nodes_kept
    assert wide.statistics.num_edges == first.statistics.num_edges
    content = await house.content("g2")
    assert content["metadata"]["slug"] == "g2"
    assert len(content["nodes"]) == wide.statistics.num_nodes_kept
    pruned = await house.client.graphs.prune("g1", node_threshold=1.0, edge_threshold=1.0)
    assert json.loads(pruned.json)["links"] == content["links"]
    make_transcoder(house.store, "u", house.runner.reference, seed=5)
    for number, other in enumerate((
        {"prompt": "capitol"},
        {"max_features": 9},
        {"max_logits": 2},
        {"position": 4},
        {"targets": [targets_pb2.Target(text="s")]},
        {"transcoder": "transcoders/u"},
    )):  # fmt: skip
        assert not (await house.make(f"other{number}", **other)).statistics.reused
    await house.client.graphs.delete("g1")
    assert (await house.make("g3")).statistics.reused
    await house.client.graphs.delete("g2")
    await house.client.graphs.delete("g3")
    assert not (await house.make("g4")).statistics.reused
    for graph in ("g4", *(f"other{number}" for number in range(6))):
        await house.client.graphs.delete(graph)
    assert not list(house.store.list("graph-cache/"))
    assert not list(house.store.list("graphs/"))


async def test_single_graphs_take_turns_with_a_batch(house: AttributionHouse) -> None:
    """A graph asked for while a batch runs is done before the batch; cancelling the batch ends what it queued."""
    reached, permits = asyncio.Event(), asyncio.Semaphore(0)
    capture = house.runner.capture

    async def waiting(*args: Any) -> Any:
        reached.set()
        await permits.acquire()
        return await capture(*args)

    house.runner.capture = waiting  # type: ignore[method-assign]
    items = [item(f"capital{letter}") for letter in "abcdefgh"]
    batch = await house.client.graphs.create_batch("zz", items=items)
    await asyncio.wait_for(reached.wait(), 60)
    spec = messages_pb2.GraphSpec(prompt="single", **SPEC)
    alone = await house.client.graphs.create("zzz", spec=spec)
    # The two that the batch had in the queue, and then it must be the single one's turn.
    for _ in range(3):
        permits.release()
    await house.client.operations.wait(alone, timeout_s=60)
    told = await house.client.graphs.get_batch("zz")
    assert told.state == messages_pb2.GRAPH_STATE_RUNNING
    assert told.num_succeeded <= 2
    await house.client.operations.cancel(batch.name)
    ended = None
    while ended is None or ended.state == messages_pb2.GRAPH_STATE_RUNNING:
        await asyncio.sleep(0.1)
        ended = await house.client.graphs.get_batch("zz")
    assert ended.state == messages_pb2.GRAPH_STATE_CANCELLED
    left = [graph async for graph in house.client.graphs.list()]
    while any(graph.state == messages_pb2.GRAPH_STATE_RUNNING for graph in left):
        await asyncio.sleep(0.1)
        left = [graph async for graph in house.client.graphs.list()]
    assert any(graph.state == messages_pb2.GRAPH_STATE_CANCELLED for graph in left)
    assert len(left) < len(items)


async def test_queue_has_an_end(house: AttributionHouse) -> None:
    """More graphs than may wait are refused, one that is asked for again is not; when they are done there is room."""
    going = asyncio.Event()
    capture = house.runner.capture

    async def waiting(*args: Any) -> Any:
        await going.wait()
        return await capture(*args)

    house.runner.capture = waiting  # type: ignore[method-assign]
    specs = [messages_pb2.GraphSpec(prompt=f"capital{number}", **SPEC) for number in range(3)]
    asked = [
        await house.client.graphs.create(f"g{number}", spec=each, request_id=f"r{number}")
        for number, each in enumerate(specs)
    ]
    spec = messages_pb2.GraphSpec(prompt="another", **SPEC)
    with pytest.raises(ResourceExhaustedError, match="WAITING_GRAPHS"):
        await house.client.graphs.create("g9", spec=spec)
    again = await house.client.graphs.create("g1", spec=specs[1], request_id="r1")
    assert again.name == asked[1].name
    going.set()
    for operation in asked:
        await house.client.operations.wait(operation)
    await asyncio.sleep(1.5)
    assert isinstance(await house.client.graphs.create("g9", spec=spec), operations_pb2.Operation)


async def test_bad_batches_are_refused(house: AttributionHouse) -> None:
    """What can be seen without the model is refused at once, with the item that it is."""
    for items, batch_id in (
        ([], "b"),
        ([item("")], "b"),
        ([item("a", "Bad Id")], "b"),
        ([item("a", "x"), item("b", "x")], "b"),
        ([item("a", node_threshold=2.0)], "b"),
        ([item("a")], "no batch"),
        ([item("a")] * 1001, "b"),
    ):
        with pytest.raises(InvalidArgumentError):
            await house.client.graphs.create_batch(batch_id, items=items)
    assert (await house.client.graphs.create_batch("b", items=[item("capital")], validate_only=True)).name
    with pytest.raises(NotFoundError):
        await house.client.graphs.get_batch("b")


async def test_command_reads_lines_and_writes_graphs(house: AttributionHouse, tmp_path: Path) -> None:
    """Each line is a graph, and a file of it; what is wrong in a line has its number; one that fails exits 1."""
    file = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "capital", "graph": "one"},
        {"prompt": "capitol", "targets": ["s"], "target_token_ids": [3]},
        {"prompt": "capital", "position": 4},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    options = ["--transcoder", "t", "--model", "tiny", "--batch", "b", "--output", str(tmp_path / "out")]
    assert "3 of 3 graphs" in await house.text("graphs", "batch", str(file), *options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b-00001.json", "b-00002.json", "one.json"]
    spec = (await house.client.graphs.get("b-00001")).spec
    assert (spec.targets[0].text, list(spec.target_token_ids)) == ("s", [3])
    assert len(json.loads((tmp_path / "out" / "b-00002.json").read_text())["metadata"]["prompt_tokens"]) == 5
    file.write_text('{"prompt": "x"}\n')
    assert (await house.weft("graphs", "batch", str(file), "--transcoder", "t", "--model", "tiny")).exit_code == 1
    for wrong in ("[]", "{", '{"prompt": ""}', '{"prompt": "a", "position": "b"}', '{"prompt": "a", "other": 1}'):
        file.write_text(f'{{"prompt": "capital"}}\n{wrong}\n')
        result = await house.weft("graphs", "batch", str(file), "--transcoder", "t", "--model", "tiny")
        assert result.exit_code == 2
        assert "prompts.jsonl:2" in result.stderr
