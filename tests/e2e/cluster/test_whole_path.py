"""The demo's whole path on a cluster, with the real model: harvest, train on two pods, export, explain, show."""

import pytest
from cluster_rig.release import Release
from cluster_rig.work import get_run, harvest, start_run, training_spec, upload_corpus

from weft.attribution.v1 import messages_pb2 as attribution
from weft.attribution.v1 import service_pb2 as attribution_rpc
from weft.attribution.v1.service_pb2_grpc import AttributionServiceStub
from weft.training.v1 import messages_pb2 as training
from weft.training.v1 import service_pb2 as training_rpc
from weft.training.v1.service_pb2_grpc import TrainingServiceStub

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

MODEL = "smollm2-135m-instruct"


def test_prediction_is_explained_by_what_was_trained_in_pods(release: Release) -> None:
    """Through the Services' addresses, with TLS and tokens; the graph's arithmetic closes."""
    upload_corpus(release, "text")
    done = harvest(release, "real", model=MODEL, num_tokens=2000, sequence_tokens=128)
    assert done.tokens_committed == 2000
    spec = training_spec("real", num_features=64, top_k=8, num_steps=12, step_tokens=256, checkpoint_steps=6)
    release.wait("trainer", start_run(release, "real", spec))
    run = get_run(release, "real")
    assert (run.state, run.attempt) == (training.RUN_STATE_SUCCEEDED, 1)
    with release.channel("trainer") as channel:
        request = training_rpc.ExportTranscoderRequest(checkpoint="runs/real", transcoder_id="real")
        release.wait("trainer", TrainingServiceStub(channel).ExportTranscoder(request, timeout=60))
    with release.channel("attribution") as channel:
        stub = AttributionServiceStub(channel)
        graph_spec = attribution.GraphSpec(
            model=f"models/{MODEL}", transcoder="transcoders/real", prompt="The capital of France is"
        )
        request = attribution_rpc.CreateGraphRequest(graph_id="real", spec=graph_spec)
        release.wait("attribution", stub.CreateGraph(request, timeout=60))
        graph = stub.GetGraph(attribution_rpc.GetGraphRequest(name="graphs/real"), timeout=60)
    assert graph.statistics.conservation_error < 1e-4
    assert graph.statistics.num_nodes > 10
    assert b"Paris" in graph.json
