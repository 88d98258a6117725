"""The demo's whole path on a release, with the real model: harvest, train on two pods, export, explain."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cluster_rig.graphs import create_graph, get_graph
from cluster_rig.kubectl import until
from cluster_rig.monitors import followed_monitors
from cluster_rig.release import Release
from cluster_rig.work import get_run, harvest, start_run, training_spec, upload_corpus
from page_open import page_open
from prometheus_server import PrometheusServer

from weft.activations.v1 import messages_pb2 as activations
from weft.attribution.v1 import messages_pb2 as attribution
from weft.training.v1 import messages_pb2 as training
from weft.training.v1 import service_pb2 as training_rpc
from weft.training.v1.service_pb2_grpc import TrainingServiceStub

__all__ = ["Story", "graph_spec", "tell"]

MODEL = "smollm2-135m-instruct"
_NAME = "real"


@dataclass(frozen=True)
class Story:
    """
    What came of it, and the Prometheus that watched.

    Args:
        harvest: As it ended.
        run: As it ended.
        rank_pods: Names of the run's pods.
        graph: Of a prompt, with its JSON.
        prometheus: That scraped the release meanwhile.
        start_s: When it began, since 1970.
        end_s: When it had ended and was scraped.
    """

    harvest: activations.Harvest
    run: training.Run
    rank_pods: tuple[str, ...]
    graph: attribution.Graph
    prometheus: PrometheusServer
    start_s: float
    end_s: float


def graph_spec(prompt: str) -> attribution.GraphSpec:
    """Explain a prompt to the real model by what the story trained."""
    return attribution.GraphSpec(model=f"models/{MODEL}", transcoder=f"transcoders/{_NAME}", prompt=prompt)


def tell(release: Release, prometheus: PrometheusServer, targets: Path) -> Story:
    """
    Go the whole path, through the Services' addresses, with TLS and tokens.

    Args:
        release: On which.
        prometheus: That watches.
        targets: File from which it has its targets.
    """
    start_s = time.time()
    page = f"https://localhost:{release.ports['console']}"
    trusted = ssl.create_default_context(cafile=str(release.authority))
    with followed_monitors(release, targets), page_open(page, trusted):
        upload_corpus(release, "text")
        harvested = harvest(release, _NAME, model=MODEL, num_tokens=2000, sequence_tokens=128)
        spec = training_spec(_NAME, num_features=64, top_k=8, num_steps=12, step_tokens=256, checkpoint_steps=6)
        operation = start_run(release, _NAME, spec)
        pods = until(
            lambda: len(found := release.kubectl.items("pods", f"weft.dev/run={_NAME}")) == 2 and found,
            "two pods of ranks",
            60,
        )
        release.wait("trainer", operation)
        with release.channel("trainer") as channel:
            request = training_rpc.ExportTranscoderRequest(checkpoint=f"runs/{_NAME}", transcoder_id=_NAME)
            release.wait("trainer", TrainingServiceStub(channel).ExportTranscoder(request, timeout=60))
        with release.channel("attribution") as channel:
            operation = create_graph(channel, _NAME, graph_spec("The capital of France is"))
        release.wait("attribution", operation)
        # The last figures are scraped, then the rules are evaluated on them.
        time.sleep(6)
    return Story(
        harvest=harvested,
        run=get_run(release, _NAME),
        rank_pods=tuple(sorted(pod["metadata"]["name"] for pod in pods)),
        graph=get_graph(release, _NAME),
        prometheus=prometheus,
        start_s=start_s,
        end_s=time.time(),
    )
