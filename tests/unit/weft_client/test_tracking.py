"""A run's metrics as TensorBoard and W&B have them, read back by their own readers."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from weft.training.v1 import messages_pb2, service_pb2
from weft_client.tracking.following import track
from weft_client.tracking.tensorboard_files import TensorBoardFiles
from weft_client.tracking.wandb_run import WandbRun


def events() -> Iterator[service_pb2.WatchRunResponse]:
    """Three steps, an evaluation after the second, and a change of state that is nobody's value."""
    for step in (1, 2, 3):
        yield service_pb2.WatchRunResponse(
            metrics=messages_pb2.Metrics(step=step, tokens=512 * step, loss=1 / step, dead_share=0.25)
        )
        if step == 2:
            evaluation = messages_pb2.Evaluation(
                step=2,
                explained_variance=0.5,
                explained_variance_by_layer=[0.25, 0.75],
                l0_by_layer=[10, 20],
                density_edges_log10=[-2, -1, 0],
                density_counts_by_layer=[3, 4, 0, 5],
            )
            yield service_pb2.WatchRunResponse(evaluation=evaluation)
    yield service_pb2.WatchRunResponse(run=messages_pb2.Run(name="runs/r"))


def wandb_records(file: Path) -> Iterator[Any]:
    """
    Read a `.wandb` file: seven bytes of its own, then LevelDB's log format.

    Blocks of 32 KiB hold pieces: CRC (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last), then data;
    what is left of a block that has no room for a header is filled up.
    """
    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    """Scalars by step, and densities as histograms with their edges, in a folder that was not there."""
    files = TensorBoardFiles(tmp_path / "logs" / "r")
    assert track(events(), [files]) == 4
    files.close()
    found = EventAccumulator(str(tmp_path / "logs" / "r"), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]
    assert [event.value for event in found.Scalars("train/tokens")] == [512, 1024, 1536]
    assert [(event.step, event.value) for event in found.Scalars("held_out/explained_variance/layer_01")] == [(2, 0.75)]
    assert [event.value for event in found.Scalars("held_out/l0")] == [15]
    (density,) = found.Histograms("held_out/density_log10/layer_01")
    assert density.step == 2
    assert list(density.histogram_value.bucket_limit) == [-2, -1, 0]
    assert list(density.histogram_value.bucket) == [0, 0, 5]
    assert density.histogram_value.sum == pytest.approx(-2.5)
    assert not any(math.isnan(event.value) for event in found.Scalars("train/dead_share"))


def test_wandb_keeps_everything_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WANDB_MODE=offline its own file has every step, under the project and the run's id; nothing is sent."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracked = WandbRun("weft-tests", "r", {"num_features": 8}, tmp_path)
    track(events(), [tracked])
    tracked.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-r.wandb")
    rows: dict[int, dict[str, str]] = {}
    project = ""
    for record in wandb_records(file):
        if record.HasField("run"):
            # A run's later record may leave out what its first one said.
            project = record.run.project or project
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows[record.history.step.num] = items
    assert project == "weft-tests"
    assert sorted(rows) == [1, 2, 3]
    assert float(rows[2]["train/loss"]) == 0.5
    assert float(rows[2]["held_out/explained_variance"]) == 0.5
    density = {key: text for key, text in rows[2].items() if key.startswith("held_out/density_log10/layer_01")}
    assert any(json.loads(text) == [0, 5] for text in density.values())
    assert "held_out/explained_variance" not in rows[3]
