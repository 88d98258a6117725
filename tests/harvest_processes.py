"""The activations and cache services as processes of their own, on loopback, over a bucket in a folder."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from free_ports import free_port
from google.longrunning import operations_pb2, operations_pb2_grpc

from weft.activations.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import channel

TOKEN = "for-tests"


class Service:
    """One service process that can be killed and started again on the same port."""

    def __init__(self, name: str, folder: Path, **settings: str) -> None:
        self.name = name
        self.port = free_port()
        prefix = f"WEFT_{name.upper()}_"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
        own = {
            "port": str(self.port),
            "token": TOKEN,
            "bucket_url": f"file://{folder / 'bucket'}",
            "drain_s": "1",
            **settings,
        }
        self._environment = kept | {prefix + key.upper(): value for key, value in own.items()}
        self._log = folder / f"{name}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it without waiting for it."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"weft_{self.name}"], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in any case."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def log(self) -> str:
        """What it logged, all lives together."""
        return self._log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def services(folder: Path, models_dir: Path, *, replicas: int = 1, **settings: str) -> Iterator[list[Service]]:
    """Start a cache and replicas of activations; gives them in this order."""
    cache = Service("cache", folder)
    started = [cache]
    try:
        cache.start()
        for _ in range(replicas):
            replica = Service(
                "activations",
                folder,
                models_dir=str(models_dir),
                cache_target=cache.target,
                cache_token=TOKEN,
                **settings,
            )
            started.append(replica)
            replica.start()
        yield started
    finally:
        for service in started:
            service.stop()


def _connected(target: str) -> grpc.Channel:
    """
    Open a channel once its service is there.

    Seen twice on a machine with much else to do: a channel that was opened while its server was away did not hear of it
    in two minutes, though it listened and worked. So each is given up after a while for a new one.
    """
    for _ in range(8):
        opened = channel(target, token=TOKEN)
        try:
            grpc.channel_ready_future(opened).result(timeout=15)
        except grpc.FutureTimeoutError:
            opened.close()
        else:
            return opened
    raise AssertionError(f"nobody answers at {target}")


class Client:
    """What a user of the activations service does, over gRPC."""

    def __init__(self, target: str) -> None:
        self._channel = _connected(target)
        self.stub = service_pb2_grpc.ActivationServiceStub(self._channel)
        self.operations = operations_pb2_grpc.OperationsStub(self._channel)

    def upload(self, corpus_id: str, documents: dict[str, str]) -> service_pb2.Corpus:
        """Store a corpus."""
        return self.stub.UploadCorpus(
            service_pb2.UploadCorpusRequest(corpus_id=corpus_id, document=name, text=text.encode())
            for name, text in documents.items()
        )

    def harvest(self, harvest_id: str, spec: messages_pb2.HarvestSpec) -> operations_pb2.Operation:
        """Ask for a harvest."""
        operation: operations_pb2.Operation = self.stub.CreateHarvest(
            service_pb2.CreateHarvestRequest(harvest_id=harvest_id, spec=spec)
        )
        return operation

    def get(self, harvest_id: str) -> messages_pb2.Harvest:
        """Describe a harvest."""
        return self.stub.GetHarvest(service_pb2.GetHarvestRequest(name=f"harvests/{harvest_id}"))

    def wait(self, harvest_id: str, timeout_s: float = 240) -> messages_pb2.Harvest:
        """Wait until a harvest is over."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            harvest = self.get(harvest_id)
            if harvest.state != messages_pb2.HARVEST_STATE_RUNNING:
                return harvest
            time.sleep(0.1)
        raise TimeoutError(f"harvests/{harvest_id} still runs after {timeout_s} s: {harvest}")

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def harvest_spec(model_id: str, **changes: object) -> messages_pb2.HarvestSpec:
    """Return a spec that is right for most tests."""
    spec = messages_pb2.HarvestSpec(
        model=f"models/{model_id}",
        dataset="datasets/d",
        corpus="corpora/c",
        num_tokens=600,
        held_out_share=0.2,
        sequence_tokens=16,
        streams=messages_pb2.Streams(input_hook="mlp_in", output_hook="mlp_out"),
        codec=messages_pb2.Codec(kind="bf16"),
        lease_sequences=4,
    )
    for name, value in changes.items():
        if isinstance(value, (messages_pb2.Streams, messages_pb2.Codec)):
            getattr(spec, name).CopyFrom(value)
        else:
            setattr(spec, name, value)
    return spec
