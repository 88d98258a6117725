"""Exports of features through gRPC, the client and the command: made, listed, read, deleted, cancelled."""

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2
from indexed_house import Indexed, indexed_house

from weft.features.v1 import export_pb2
from weft_client.aio.calls import pages, unary
from weft_common.errors import (
    AlreadyExistsError,
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

CIRCUIT_TRACER, SAE_DASHBOARD = export_pb2.EXPORT_FORMAT_CIRCUIT_TRACER, export_pb2.EXPORT_FORMAT_SAE_DASHBOARD


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Indexed]:
    async with indexed_house(tmp_path) as rig:
        yield rig


async def export(rig: Indexed, export_id: str = "e1", **arguments: Any) -> export_pb2.FeatureExport:
    operation = await rig.features.export("t", export_id, **{"layout": CIRCUIT_TRACER, **arguments})
    found = await rig.house.client.operations.wait(operation)
    assert isinstance(found, export_pb2.FeatureExport)
    return found


async def test_export_is_made_listed_read_and_deleted(rig: Indexed, tmp_path: Path) -> None:
    """Its files hold what GetFeature tells; the index is the newest unless another is named; gone is gone."""
    with pytest.raises(FailedPreconditionError, match="IndexFeatures"):
        await rig.features.export("t", "e1", layout=CIRCUIT_TRACER)
    await rig.index()
    await rig.index("i2")
    made = await export(rig, layout=SAE_DASHBOARD, num_logits=3)
    assert (made.name, made.index) == ("transcoders/t/exports/e1", "transcoders/t/indexes/i2")
    assert (made.model_name, made.source_set, list(made.layers), made.num_features) == ("tiny", "t", [0, 1, 2], 36)
    assert made == await rig.features.get_export("t", "e1")
    assert made == await export(rig, layout=SAE_DASHBOARD, num_logits=3)
    await rig.features.download(made, tmp_path / "out")
    files = [file async for file in rig.features.exported_files(made.name)]
    assert [file.path for file in files] == sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.json")
    )
    told = {
        (batch["layer"], each["feature_index"]): each
        for path in (tmp_path / "out").rglob("batch-*.json")
        for batch in [json.loads(path.read_text())]
        for each in batch["features"]
    }
    for (layer, index), each in told.items():
        feature = await rig.features.get("t", layer=layer, index=index, num_logits=3)
        assert each["pos_str"] == [logit.text for logit in feature.top_logits]
        assert each["neg_values"] == pytest.approx([logit.weight for logit in feature.bottom_logits], rel=1e-3)
        assert [list(example["tokens"]) for example in each["activations"]] == [
            list(example.tokens) for example in feature.examples
        ]
    older = await export(rig, "e2", index="i1", layers=[2])
    assert (older.index, list(older.layers), older.num_features) == ("transcoders/t/indexes/i1", [2], 12)
    listed = [each async for each in rig.features.exports("t")]
    assert [each.name for each in listed] == [made.name, older.name]
    assert (made.num_files, made.size_bytes) == (len(files), sum(file.size_bytes for file in files))
    paged = export_pb2.ListExportedFilesRequest(parent=made.name, page_size=2)
    page = await unary(rig.features._stub.ListExportedFiles, paged)
    assert (list(page.files), bool(page.next_page_token)) == (files[:2], True)
    assert [file async for file in pages(rig.features._stub.ListExportedFiles, paged, lambda page: page.files)] == files
    await rig.features.delete_export("t", "e1")
    for call in (rig.features.get_export, rig.features.delete_export):
        with pytest.raises(NotFoundError):
            await call("t", "e1")
    # Its id is free again.
    assert (await export(rig, "e1", layers=[0])).num_features == 12


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"layout": 0}, InvalidArgumentError),
        ({"layout": 7}, InvalidArgumentError),
        ({"export_id": "no/id"}, InvalidArgumentError),
        ({"num_logits": -1}, InvalidArgumentError),
        ({"layers": [3]}, NotFoundError),
        ({"transcoder": "absent"}, NotFoundError),
        ({"index": "absent"}, NotFoundError),
        ({"export_id": "taken"}, AlreadyExistsError),
    ],
)
async def test_exports_that_cannot_be_made_are_refused(
    rig: Indexed, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """Before anything is started; what would be done can be checked."""
    await rig.index()
    await export(rig, "taken", layers=[1])
    with pytest.raises(error):
        await rig.features.export(
            **{"transcoder": "t", "export_id": "e1", "layout": CIRCUIT_TRACER, "validate_only": True, **arguments}
        )
    checked = await rig.features.export("t", "e1", layout=CIRCUIT_TRACER, validate_only=True)
    assert isinstance(checked, operations_pb2.Operation)
    with pytest.raises(NotFoundError):
        await rig.features.get_export("t", "e1")


async def test_index_of_another_transcoder_is_refused(rig: Indexed) -> None:
    """Its name says whose it is."""
    request = export_pb2.ExportFeaturesRequest(
        transcoder="transcoders/t", export_id="e1", format=CIRCUIT_TRACER, index="transcoders/u/indexes/i1"
    )
    with pytest.raises(InvalidArgumentError, match="of another transcoder"):
        await unary(rig.features._stub.ExportFeatures, request)


async def test_cancelled_export_is_not_deleted_under_way_and_goes_on_when_asked_again(
    rig: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is made it cannot be deleted; cancelled, it leaves no manifest; asked for again it is made."""
    from weft_attribution.core.feature_export import exporting

    await rig.index()
    begun, held = threading.Event(), threading.Event()
    original = exporting.describe

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert held.wait(30)
        return original(*arguments, **options)

    monkeypatch.setattr(exporting, "describe", slow)
    operation = await rig.features.export("t", "e1", layout=CIRCUIT_TRACER)
    assert await asyncio.to_thread(begun.wait, 30)
    with pytest.raises(FailedPreconditionError, match="not done"):
        await rig.features.delete_export("t", "e1")
    await rig.house.client.operations.cancel(operation.name)
    held.set()
    with pytest.raises(CancelledError):
        await rig.house.client.operations.wait(operation)
    with pytest.raises(NotFoundError):
        await rig.features.get_export("t", "e1")
    assert (await export(rig)).num_features == 36


async def test_commands_export_list_and_delete(rig: Indexed, tmp_path: Path) -> None:
    """The command names the export after format and index, and writes its files."""
    out = tmp_path / "viewer"
    refused = await rig.house.weft("features", "export", "t", "--format", "circuit-tracer")
    assert refused.exit_code != 0
    assert "weft features index" in refused.stderr
    await rig.index()
    arguments = ("features", "export", "t", "--format", "circuit-tracer", "--layer", "1", "--out", str(out))
    assert "circuit-tracer-i1 is in" in await rig.house.text(*arguments)
    assert sorted(path.name for path in out.iterdir()) == ["index.json.gz", "layer_1.bin"]
    assert list(json.loads(gzip.decompress((out / "index.json.gz").read_bytes()))) == ["1"]
    (listed,) = (await rig.house.json("features", "exports", "t"))["exports"]
    assert listed["name"] == "transcoders/t/exports/circuit-tracer-i1"
    assert "would be accepted" in await rig.house.text(
        "features", "export", "t", "--format", "sae-dashboard", "--validate-only"
    )
    await rig.house.text("features", "delete-export", "t", "circuit-tracer-i1")
    assert not (await rig.house.json("features", "exports", "t"))["exports"]
