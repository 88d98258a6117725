"""A small dataset in a folder bucket, and ranks over it as torchrun starts them."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from free_ports import free_port

from weft.cache.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import channel
from weft_store import open_store
from weft_store.documents import create_json, read_json
from weft_store.shard import CodecSpec, encode_shard

NUM_LAYERS, D_MODEL, ROW_GROUP_TOKENS = 3, 16, 32


def spec_of(**changes: Any) -> dict[str, Any]:
    """A training spec that two ranks finish in seconds."""
    spec: dict[str, Any] = {
        "dataset": "datasets/small",
        "num_features": 32,
        "activation": "ACTIVATION_TOP_K",
        "top_k": 4,
        "num_steps": 12,
        "step_tokens": 32,
        "feature_ranks": 2,
        "data_ranks": 1,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "decay_share": 0.3,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "clip_norm": 1.0,
        "dead_after_tokens": 100,
        "checkpoint_steps": 3,
        "seed": 7,
    }
    return spec | changes


@dataclass
class Rig:
    """A bucket with a dataset in it, and the cache service over it."""

    folder: Path
    cache_target: str
    groups: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def bucket_url(self) -> str:
        return f"file://{self.folder / 'bucket'}"

    def create_run(self, run: str, spec: dict[str, Any]) -> None:
        create_json(open_store(self.bucket_url), f"runs/{run}/run.json", {"spec": spec, "attempt": 1})

    def environment(self, run: str, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
        return kept | {
            "WEFT_WORKER_RUN": run,
            "WEFT_WORKER_ATTEMPT": "1",
            "WEFT_WORKER_BUCKET_URL": self.bucket_url,
            "WEFT_WORKER_CACHE_TARGET": self.cache_target,
            "WEFT_WORKER_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def start(self, run: str, num_ranks: int, **more: str) -> "subprocess.Popen[bytes]":
        """Start the ranks of a run as the launcher does, in a process group of their own."""
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(num_ranks),
            "--master-addr", "127.0.0.1", "--master-port", str(free_port()), "--max-restarts", "0",
            "-m", "weft_trainer.worker",
        ]  # fmt: skip
        with (self.folder / f"{run}.log").open("ab") as log:
            group = subprocess.Popen(
                command, env=self.environment(run, **more), stdout=log, stderr=log, start_new_session=True
            )
        self.groups.append(group)
        return group

    def train(self, run: str, num_ranks: int, **more: str) -> None:
        code = self.start(run, num_ranks, **more).wait(240)
        assert code == 0, (self.folder / f"{run}.log").read_text()[-6000:]

    def kill(self, group: "subprocess.Popen[bytes]") -> None:
        """End every process of a group by SIGKILL."""
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()

    def metrics(self, run: str) -> list[dict[str, Any]]:
        store = open_store(self.bucket_url)
        chunks = [store.get(info.key) for info in store.list(f"runs/{run}/attempts/") if info.key.endswith(".jsonl")]
        return [json.loads(line) for chunk in chunks for line in chunk.splitlines()]

    def peak_memory_bytes(self, run: str) -> int:
        """The largest resident size of a rank of a run, as the ranks' last words have it."""
        lines = (self.folder / f"{run}.log").read_text().splitlines()
        ends = [json.loads(line) for line in lines if line.startswith("{") and '"peak_memory_bytes"' in line]
        return max(int(line["peak_memory_bytes"]) for line in ends)

    def digests(self, run: str, step: int) -> dict[str, str]:
        manifest, _ = read_json(open_store(self.bucket_url), f"runs/{run}/checkpoints/{step:08d}/manifest.json")
        # Two runs that came to the same may have taken another number of attempts.
        return {name.partition("-")[2]: facts["sha256"] for name, facts in manifest["files"].items()}


def harvest(
    rig: Rig,
    name: str = "small",
    *,
    num_layers: int = NUM_LAYERS,
    d_model: int = D_MODEL,
    row_group_tokens: int = ROW_GROUP_TOKENS,
    shard_tokens: tuple[int, int, int] = (200, 150, 70),
) -> None:
    """Make a dataset whose outputs depend on its inputs, two shards to train on and one held out."""
    random = np.random.default_rng(3)
    mixing_LDD = random.standard_normal((num_layers, d_model, d_model)) / d_model**0.5
    store, stub = open_store(rig.bucket_url), service_pb2_grpc.CacheServiceStub(channel(rig.cache_target))
    spec = messages_pb2.DatasetSpec(
        model="models/small", model_revision="0" * 64, num_layers=num_layers, d_model=d_model, input_hook="mlp_in",
        output_hook="mlp_out", codec="bf16", corpus="noise", corpus_digest="0" * 64,
    )  # fmt: skip
    stub.CreateDataset(service_pb2.CreateDatasetRequest(dataset_id=name, spec=spec), timeout=30, wait_for_ready=True)
    for index, num_tokens in enumerate(shard_tokens):
        inputs_LTD = random.standard_normal((num_layers, num_tokens, d_model)).astype(np.float32)
        outputs_LTD = np.maximum(inputs_LTD @ mixing_LDD, 0).astype(np.float32)
        split = messages_pb2.SPLIT_HELD_OUT if index == 2 else messages_pb2.SPLIT_TRAIN
        encoded = encode_shard(
            {"input": inputs_LTD, "output": outputs_LTD}, CodecSpec("bf16", 0.0),
            row_group_tokens=row_group_tokens, attributes={},
        )  # fmt: skip
        upload = stub.BeginShard(service_pb2.BeginShardRequest(dataset=f"datasets/{name}", shard_index=index))
        store.put(upload.key, encoded.data)
        shard = messages_pb2.Shard(
            index=index, key=upload.key, sha256=hashlib.sha256(encoded.data).hexdigest(),
            size_bytes=len(encoded.data), num_tokens=num_tokens, split=split, row_group_tokens=row_group_tokens,
            statistics=[_statistics(entry) for entry in encoded.statistics],
        )  # fmt: skip
        stub.CommitShard(service_pb2.CommitShardRequest(dataset=f"datasets/{name}", shard=shard))
    stub.SealDataset(service_pb2.SealDatasetRequest(name=f"datasets/{name}", num_shards=3))


def _statistics(entry: Any) -> messages_pb2.LayerStatistics:
    streams = {
        name: messages_pb2.StreamStatistics(
            **{
                each.name: getattr(getattr(entry, name), each.name)
                for each in messages_pb2.StreamStatistics.DESCRIPTOR.fields
            }
        )
        for name in ("input", "output")
    }
    return messages_pb2.LayerStatistics(layer=entry.layer, **streams)
