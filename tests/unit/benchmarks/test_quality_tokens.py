"""What the sides of the quality benchmark train on, in which order, and with which settings."""

import numpy as np
import pytest
from benchmarks.training.quality.arms import ARMS, PEER, PEER_ARMS, Job, Training, own_jobs, peer_jobs
from benchmarks.training.quality.tokens import deal

from weft_clt.config import TrainingConfig

TRAINING = Training(num_features=64, num_steps=40, step_tokens=32)


SEEDS, TOP_KS, COEFFS = (1, 2), (4, 8, 16), (1.0, 2.0)


def _own() -> list[Job]:
    return list(own_jobs(TRAINING, "tokens", seeds=SEEDS, top_ks=TOP_KS, sparsity_coeffs=COEFFS))


def _peers() -> list[Job]:
    return list(peer_jobs(TRAINING, "tokens", seeds=SEEDS, sparsity_coeffs=COEFFS))


def test_deal_gives_every_token_once_an_epoch() -> None:
    """Two and a half epochs in steps that do not divide them: whole epochs are permutations, each another one."""
    dealt = deal(10, num_steps=5, step_tokens=5, seed=3).ravel()
    assert sorted(dealt[:10]) == sorted(dealt[10:20]) == list(range(10))
    assert dealt[:10].tolist() != dealt[10:20].tolist()
    assert len(set(dealt[20:].tolist())) == 5


def test_deal_follows_from_the_seed() -> None:
    """A seed always gives one order, another seed another."""
    first = deal(50, num_steps=5, step_tokens=10, seed=1)
    np.testing.assert_array_equal(first, deal(50, num_steps=5, step_tokens=10, seed=1))
    assert (first != deal(50, num_steps=5, step_tokens=10, seed=2)).any()


def test_jobs_cover_every_arm_setting_and_seed_once() -> None:
    """Each is a run of its own, the first seed's before the second's."""
    own, peers = _own(), _peers()
    counting = sum(arm.setting == "k" for arm in ARMS)
    assert len(own) == 2 * (3 * counting + 2 * (len(ARMS) - counting))
    assert len(peers) == 2 * 2 * len(PEER_ARMS)
    assert len({job.digest for job in own + peers}) == len(own) + len(peers)
    for jobs in (own, peers):
        assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    assert ({job.side for job in own}, {job.side for job in peers}) == ({"weft"}, {PEER})


def test_both_sides_take_the_same_steps() -> None:
    """Tokens of a step, steps and features agree over all jobs, and so do the settings of the recipe they share."""
    settings = _peers()[0].conditions["settings"]
    for job in _peers():
        found = job.conditions["settings"]
        sizes = found["train_batch_size_tokens"], found["total_training_tokens"], found["d_latent"]
        assert sizes == (32, 1280, 64)
        assert found["l0_coefficient"] == job.value
    for job in _own():
        config = TrainingConfig.from_spec(job.conditions["spec"])
        batch = config.batch
        assert (batch.step_tokens, batch.num_steps * batch.step_tokens, config.features.num_features) == (32, 1280, 64)
        assert batch.seed == job.seed
        if job.arm == "clt-forge-gpt2":
            assert config.loss.sparsity_coeff == job.value
            assert config.loss.preact_coeff == settings["dead_penalty_coef"]
            assert config.features.bandwidth == settings["jumprelu_bandwidth"]
            assert config.features.threshold_init == settings["jumprelu_init_threshold"]
            assert config.optimizer.warmup_steps == settings["lr_warm_up_steps"]
            assert config.optimizer.learning_rate == pytest.approx(PEER_ARMS[0].learning_rate)


def test_only_arms_with_aux_k_revive_features() -> None:
    """Their names say so."""
    revived = {job.arm for job in _own() if job.conditions["spec"]["aux_top_k"]}
    assert revived == {"top-k, AuxK", "batch-top-k, AuxK", "joint-top-k, AuxK"}
