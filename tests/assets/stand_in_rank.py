"""
A rank without mathematics: it counts steps, reports them over the real RPC, saves, obeys, and fails where told to.

The seed of the run says what goes wrong: 42 refuses the configuration, 7 kills itself once at step 7.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import grpc

from weft.training.v1 import messages_pb2, service_pb2, service_pb2_grpc
from weft_common.client import channel
from weft_store import open_store
from weft_store.documents import list_ids, read_json

STEP_S = 0.05
SAVE_EVERY = 5


def setting(name: str) -> str:
    return os.environ[f"WEFT_WORKER_{name}"]


def tls() -> dict[str, Path]:
    names = ("TLS_CA", "TLS_CERT", "TLS_KEY")
    return {name.lower(): Path(setting(name)) for name in names if f"WEFT_WORKER_{name}" in os.environ}


class Rank:
    def __init__(self) -> None:
        self.run, self.attempt = setting("RUN"), int(setting("ATTEMPT"))
        self.rank = int(os.environ["RANK"])
        self.store = open_store(setting("BUCKET_URL"))
        self.spec = read_json(self.store, f"runs/{self.run}/run.json")[0]["spec"]
        self.stub = service_pb2_grpc.RunReportServiceStub(
            channel(setting("TRAINER_TARGET"), token=setting("TRAINER_TOKEN"), **tls())
        )
        self.waiting: list[messages_pb2.Metrics] = []
        self.stopping = False
        signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_sigterm(self, number: int, frame: object) -> None:
        self.stopping = True

    def report(self, **more: object) -> int:
        request = service_pb2.ReportRequest(
            run=f"runs/{self.run}",
            attempt=self.attempt,
            rank=self.rank,
            metrics=self.waiting if self.rank == 0 else [],
            peak_memory_bytes=1000 + self.rank,
            **more,
        )
        try:
            answer = self.stub.Report(request, timeout=2)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                sys.exit(0)
            return service_pb2.DIRECTIVE_CONTINUE
        self.waiting = []
        return answer.directive

    def save(self, step: int) -> None:
        if self.rank == 0:
            prefix = f"runs/{self.run}/checkpoints/{step:08d}/"
            self.store.put(f"{prefix}rank0-of-1.safetensors", b"state")
            self.store.put(f"{prefix}manifest.json", json.dumps({"step": step, "attempt": self.attempt}).encode())
        self.report(checkpoint_step=step)

    def saved(self) -> list[int]:
        return [int(step) for step in list_ids(self.store, f"runs/{self.run}/checkpoints/", "/manifest.json")]

    def train(self) -> None:
        if self.spec["seed"] == 42:
            self.report(error_message="the stand-in refuses seed 42")
            sys.exit(42)
        step = max(self.saved(), default=0)
        while step < self.spec["num_steps"]:
            time.sleep(STEP_S)
            step += 1
            self.waiting.append(messages_pb2.Metrics(step=step, tokens=step, loss=1.0 / step, tokens_per_s=10.0))
            directive = self.report()
            # Rank 0 alone, which has written its checkpoint of step 5 and writes no other.
            if self.spec["seed"] == 7 and (self.attempt, self.rank, step) == (1, 0, 7):
                os.kill(os.getpid(), signal.SIGKILL)
            if directive == service_pb2.DIRECTIVE_STOP:
                return
            if directive == service_pb2.DIRECTIVE_SAVE_AND_STOP or self.stopping:
                self.save(step)
                return
            if step % SAVE_EVERY == 0:
                self.save(step)
        self.save(step)
        while self.waiting:
            time.sleep(STEP_S)
            self.report()
        self.report(finished=True)

    def evaluate(self) -> None:
        step = int(setting("CHECKPOINT_STEP"))
        document = {"step": step, "tokens": int(setting("EVALUATION_TOKENS")), "l0_by_layer": [1.0, 2.0]}
        if self.rank == 0:
            key = f"runs/{self.run}/checkpoints/{step:08d}/evaluation-ranks.json"
            self.store.put(key, json.dumps(document).encode())


def main() -> None:
    # Who ran, for the test to look for later.
    if "STAND_IN_PIDS" in os.environ:
        (Path(os.environ["STAND_IN_PIDS"]) / str(os.getpid())).touch()
    rank = Rank()
    rank.evaluate() if setting("MODE") == "evaluate" else rank.train()


if __name__ == "__main__":
    main()
