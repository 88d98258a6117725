"""Two replicas as processes share a harvest over the real cache; one is killed, and nothing is lost or doubled."""

import time
from pathlib import Path

import pytest
from harvest_processes import Client, harvest_spec, services
from tiny_models import make_llama

from weft.activations.v1 import messages_pb2
from weft.cache.v1 import service_pb2, service_pb2_grpc
from weft_common.client import channel

DOCUMENTS = {
    f"doc {index}": f"The capital of Italy is Rome, says document {index}, of layer {index % 7}. " * 30
    for index in range(30)
}


def _tokens(target: str) -> tuple[int, int, list[int]]:
    with channel(target, token="for-tests") as opened:
        stub = service_pb2_grpc.CacheServiceStub(opened)
        dataset = stub.GetDataset(service_pb2.GetDatasetRequest(name="datasets/d"))
        verified = stub.VerifyDataset(service_pb2.VerifyDatasetRequest(name="datasets/d"))
        assert not verified.problems
        return dataset.num_train_tokens, dataset.num_held_out_tokens, [shard.index for shard in dataset.shards]


@pytest.mark.e2e
@pytest.mark.timeout(280)
def test_killed_replica_and_cache_lose_and_double_nothing(tmp_path: Path) -> None:
    """SIGKILL of a replica in the middle, then of the cache: the harvest ends with exactly the tokens asked for."""
    models_dir = tmp_path / "models"
    make_llama(models_dir / "llama")
    with services(tmp_path, models_dir, replicas=2, lease_s="2") as (cache, first, second):
        one, two = Client(first.target), Client(second.target)
        one.upload("c", DOCUMENTS)
        one.harvest("h", harvest_spec("llama", num_tokens=8000, lease_sequences=2))
        until = time.monotonic() + 120
        while two.get("h").num_leases_done < 8 and time.monotonic() < until:
            time.sleep(0.02)
        first.kill()
        one.close()
        before = two.get("h")
        assert before.state == messages_pb2.HARVEST_STATE_RUNNING, "the harvest ended before the kill"
        cache.kill()
        time.sleep(0.5)
        cache.start()
        harvest = two.wait("h")
        two.close()
        assert harvest.state == messages_pb2.HARVEST_STATE_SUCCEEDED, harvest.error_message
        assert (harvest.tokens_committed, harvest.tokens_held_out) == (8000, 1600)
        assert _tokens(cache.target) == (6400, 1600, list(range(harvest.num_leases)))


@pytest.mark.e2e
@pytest.mark.timeout(280)
def test_replica_killed_twice_goes_on_after_each_start(tmp_path: Path) -> None:
    """One replica alone, killed while it works and once more after that, ends with exactly the tokens asked for."""
    models_dir = tmp_path / "models"
    make_llama(models_dir / "llama")
    with services(tmp_path, models_dir, lease_s="1") as (cache, only):
        client = Client(only.target)
        client.upload("c", DOCUMENTS)
        client.harvest("h", harvest_spec("llama", num_tokens=3000, lease_sequences=2))
        done = 0
        for _ in range(2):
            until = time.monotonic() + 60
            while client.get("h").num_leases_done <= done + 2 and time.monotonic() < until:
                time.sleep(0.01)
            only.kill()
            client.close()
            only.start()
            client = Client(only.target)
            harvest = client.get("h")
            assert harvest.state == messages_pb2.HARVEST_STATE_RUNNING, "the harvest ended before the kill"
            assert harvest.num_leases_done > done
            done = harvest.num_leases_done
        harvest = client.wait("h")
        client.close()
        assert harvest.state == messages_pb2.HARVEST_STATE_SUCCEEDED, harvest.error_message
        assert harvest.tokens_committed == 3000
        assert _tokens(cache.target) == (2400, 600, list(range(harvest.num_leases)))
