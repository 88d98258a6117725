# ruff: noqa: N802  gRPC names the methods
"""The command and a trainer as a process: files of other tools in, files for other tools out, and what is refused."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from free_ports import free_port
from safetensors.numpy import load_file, save_file
from structlog.testing import capture_logs
from transcoder_layouts import (
    clt_forge_original,
    inputs_of,
    per_layer_original,
    predict,
    random_transcoder,
)
from typer.testing import CliRunner

from weft.activations.v1 import messages_pb2 as activations
from weft.activations.v1 import service_pb2_grpc as activations_grpc
from weft.training.v1 import service_pb2, service_pb2_grpc
from weft_attribution.core.transcoder import TranscoderReader
from weft_client.cli import app
from weft_clt.formats.files import FolderFiles
from weft_clt.formats.opening import open_transcoder, write_transcoder
from weft_common.client import aio_channel, error_from_rpc
from weft_common.errors import Code
from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings
from weft_store import open_store

TOKEN = "t" * 32
WAIT_S = 60.0


class Models(activations_grpc.ActivationServiceServicer):
    """One model."""

    async def GetModel(self, request: Any, context: Any) -> Any:
        return activations.Model(name=request.name, revision="b" * 64)


class House:
    """A trainer over a bucket in a folder, and a command that finds it."""

    def __init__(self, folder: Path, trainer_port: int) -> None:
        self.folder = folder
        self.trainer_port = trainer_port
        self.bucket = folder / "bucket"
        self.store = open_store(f"file://{self.bucket}")

    def log(self) -> str:
        return (self.folder / "trainer.log").read_text()[-4000:]

    async def weft(self, *arguments: str) -> Any:
        return await asyncio.to_thread(
            CliRunner().invoke, app, ["--endpoints", str(self.folder / "endpoints.json"), *arguments]
        )

    async def done(self, *arguments: str) -> Any:
        """Run the command with --json; it must succeed."""
        result = await self.weft("transcoders", *arguments, "--json")
        assert result.exit_code == 0, f"{result.stderr}\n{self.log()}"
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A trainer as a process, for all tests here."""
    house = House(tmp_path_factory.mktemp("trainer"), free_port())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
    settings = {
        "PORT": str(house.trainer_port),
        "TOKEN": TOKEN,
        "BUCKET_URL": f"file://{house.bucket}",
        "WORK_DIR": str(house.folder / "work"),
        "CACHE_TARGET": f"127.0.0.1:{free_port()}",
    }
    environment |= {f"WEFT_TRAINER_{key}": value for key, value in settings.items()}
    with (house.folder / "trainer.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "weft_trainer"], env=environment, stdout=log, stderr=log)
    try:
        yield house
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0, house.log()


@pytest.fixture
async def house(trainer: House) -> AsyncIterator[House]:
    """The trainer, once it answers, and a model beside it."""
    models = Registration(
        "weft.activations.v1.ActivationService",
        lambda server: activations_grpc.add_ActivationServiceServicer_to_server(Models(), server),
    )
    with capture_logs():
        async with serving("activations", ServiceSettings(token=TOKEN), [models]) as server:
            services = {
                name: {"target": f"127.0.0.1:{at}", "token": TOKEN}
                for name, at in (("activations", server.port), ("trainer", trainer.trainer_port))
            }
            (trainer.folder / "endpoints.json").write_text(json.dumps({"services": services}))
            async with aio_channel(f"127.0.0.1:{trainer.trainer_port}", token=TOKEN) as connection:
                stub = service_pb2_grpc.TrainingServiceStub(connection)
                await stub.ListTranscoders(service_pb2.ListTranscodersRequest(), wait_for_ready=True, timeout=WAIT_S)
            yield trainer


async def test_transcoders_come_in_and_go_out_in_other_layouts(house: House, tmp_path: Path) -> None:
    """What a tool would predict is what weft's files do, and what files exported again do, to 1e-6."""
    forge, gemma = tmp_path / "forge", tmp_path / "gemma"
    forge.mkdir()
    gemma.mkdir()
    made = {
        "forge": clt_forge_original(forge, 3, 3, 6, 4, crossing=True, ranks=2),
        "gemma": per_layer_original(gemma, 3, 3, 6, 4, layout="gemmascope"),
    }
    save_file({f"weight_{layer}": np.ones(4, np.float32) for layer in range(3)}, gemma / "norm.safetensors")
    for name, options, window, layout in (
        ("forge", ("--input-hook", "mlp_in"), 3, "llamascopium"),
        ("gemma", ("--format", "gemmascope"), 1, "circuit-tracer"),
    ):
        found = await house.done("import", name, str(tmp_path / name), "--model", "a", *options)
        assert (found["name"], found["model"], found["num_features"]) == (f"transcoders/{name}", "models/a", 6)
        assert found["window"] == window
        source = open_transcoder(FolderFiles(house.bucket / found["prefix"]), "circuit-tracer")
        inputs_LTD = inputs_of(source.facts, 3)
        np.testing.assert_allclose(predict(source, inputs_LTD), made[name], rtol=1e-6, atol=1e-5)
        assert [info.key for info in house.store.list(f"uploads/transcoders/{name}")] == []
        reader = TranscoderReader(house.store, name)
        ((_, rows),) = reader.decoders(0, np.array([1, 4]))
        assert rows.shape == (2, window, 4)
        out = tmp_path / "out" / layout
        listed = await house.done("export", name, "--format", layout, "--out", str(out))
        assert [file["path"] for file in listed["files"]] == sorted(FolderFiles(out).sizes())
        again = open_transcoder(FolderFiles(out))
        np.testing.assert_allclose(predict(again, inputs_LTD), made[name], rtol=1e-6, atol=1e-5)
    assert load_file(out / "W_dec_0.safetensors")["W_dec_0"].shape == (6, 3, 4)
    # The same export again is there already.
    await house.done("export", "gemma", "--format", "circuit-tracer", "--out", str(tmp_path / "again"))


async def test_what_cannot_be_converted_is_said_before_any_work(house: House, tmp_path: Path) -> None:
    """Pickles stay here; broken headers, a taken id and a layout that cannot hold it are answered at once."""
    good = tmp_path / "good"
    good.mkdir()
    list(write_transcoder(random_transcoder(1, 2, 4, 3), "circuit-tracer", good, "tiny"))
    await house.done("import", "good", str(good), "--model", "a")
    broken = tmp_path / "broken"
    broken.mkdir()
    list(write_transcoder(random_transcoder(1, 2, 4, 3), "clt-forge", broken, "tiny"))
    weights = broken / "clt_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "model.pt").write_bytes(b"\x80\x04")
    for arguments, code, says in (
        (("import", "good", str(good), "--model", "a"), "ALREADY_EXISTS", "choose another"),
        (("import", "b", str(broken), "--model", "a"), "DATA_LOSS", "its header describes"),
        (("import", "p", str(pickled), "--model", "a"), "INVALID_ARGUMENT", "pickled checkpoint"),
        (("import", "x", str(good), "--model", "a", "--format", "nope"), "INVALID_ARGUMENT", "format is 'nope'"),
        (("import", "x", "--model", "a"), "INVALID_ARGUMENT", "--prefix"),
        (("export", "good", "--format", "saelens", "--out", str(tmp_path / "o")), "FAILED_PRECONDITION", "per-layer"),
        (("export", "good", "--format", "gemmascope", "--out", str(tmp_path / "o")), "INVALID_ARGUMENT", "give one of"),
        (("export", "none", "--format", "saelens", "--out", str(tmp_path / "o")), "NOT_FOUND", "transcoders/none"),
    ):
        result = await house.weft("transcoders", *arguments, "--json")
        assert result.exit_code != 0
        error = json.loads(result.stderr)["error"]
        assert (error["code"], says in error["message"]) == (code, True), error
    # What was left of the broken files is not in the way of others.
    assert (await house.done("import", "b", str(good), "--model", "a"))["num_layers"] == 2


async def test_a_broken_weight_fails_the_operation_with_its_name(house: House, tmp_path: Path) -> None:
    """NaN is found when it is read, and nothing is left that looks like a transcoder."""
    folder = tmp_path / "nan"
    folder.mkdir()
    per_layer_original(folder, 1, 1, 4, 3, layout="saelens")
    state = load_file(folder / "blocks.0/sae_weights.safetensors")
    state["W_dec"][2, 1] = np.nan
    save_file(state, folder / "blocks.0/sae_weights.safetensors")
    result = await house.weft("transcoders", "import", "nan", str(folder), "--model", "a", "--json")
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "FAILED_PRECONDITION"
    assert "W_dec of" in error["message"]
    assert "NaN or infinite" in error["message"]
    assert [info.key for info in house.store.list("transcoders/nan/manifest")] == []


async def test_uploads_and_reads_keep_to_their_folders(house: House) -> None:
    """A path that leads elsewhere, a changing name, a piece too large, and a file that was not written are refused."""
    async with aio_channel(f"127.0.0.1:{house.trainer_port}", token=TOKEN) as connection:
        stub = service_pb2_grpc.TrainingServiceStub(connection)

        async def code_of(*pieces: service_pb2.UploadTranscoderFileRequest) -> Code:
            with pytest.raises(grpc.RpcError) as caught:
                await stub.UploadTranscoderFile(iter(pieces), timeout=WAIT_S)
            return error_from_rpc(caught.value).code

        def piece(file: str = "", data: bytes = b"x", transcoder: str = "") -> service_pb2.UploadTranscoderFileRequest:
            return service_pb2.UploadTranscoderFileRequest(transcoder_id=transcoder, file=file, data=data)

        for file in ("", "../x", "/x", "a/../b", ".hidden", "a//b", "a\\b", "x" * 200, "a/" * 8 + "a"):
            assert await code_of(piece(file, transcoder="t")) == Code.INVALID_ARGUMENT, file
        assert await code_of(piece("x", transcoder="../t")) == Code.INVALID_ARGUMENT
        assert await code_of() == Code.INVALID_ARGUMENT
        assert await code_of(piece("x", transcoder="t"), piece("y")) == Code.INVALID_ARGUMENT
        assert await code_of(piece("x", b"x" * ((1 << 20) + 1), "t")) == Code.INVALID_ARGUMENT
        assert [info.key for info in house.store.list("uploads/transcoders/t")] == []
        read = service_pb2.ReadTranscoderFileRequest(name="transcoders/t", format="../..", file="manifest.json")
        with pytest.raises(grpc.RpcError) as caught:
            async for _ in stub.ReadTranscoderFile(read, timeout=WAIT_S):
                pass
        assert error_from_rpc(caught.value).code == Code.INVALID_ARGUMENT
