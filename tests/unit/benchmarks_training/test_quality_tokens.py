"""What the sides of the quality benchmark train on, in which order, and with which settings."""

from typing import Any

import numpy as np
import pytest
from benchmarks.training.quality.arms import ARMS, PEER, PEER_ARMS, Job, Training, jobs_of
from benchmarks.training.quality.tokens import deal

from weft_clt.config import TrainingConfig

TRAINING = Training(num_features=64, num_steps=40, step_tokens=32)


def _jobs(**changes: Any) -> list[Job]:
    asked: dict[str, Any] = {
        "seeds": (1, 2),
        "top_ks": (4, 8, 16),
        "sparsity_coeffs": (1.0, 2.0),
        "peer": True,
    } | changes
    return list(jobs_of(TRAINING, "tokens", **asked))


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
    """Each is a run of its own, the first seed's before the second's; without the peer only ours are left."""
    jobs = _jobs()
    counting = sum(arm.setting == "k" for arm in ARMS)
    own = 3 * counting + 2 * (len(ARMS) - counting)
    assert len(jobs) == 2 * (own + 2 * len(PEER_ARMS))
    assert len({job.digest for job in jobs}) == len(jobs)
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    assert {job.side for job in _jobs(peer=False)} == {"weft"}


def test_both_sides_take_the_same_steps() -> None:
    """Tokens of a step, steps and features agree over all jobs, and so do the settings of the recipe they share."""
    for job in _jobs():
        if job.side == PEER:
            settings = job.conditions["settings"]
            sizes = settings["train_batch_size_tokens"], settings["total_training_tokens"], settings["d_latent"]
            continue
        config = TrainingConfig.from_spec(job.conditions["spec"])
        batch = config.batch
        assert (batch.step_tokens, batch.num_steps * batch.step_tokens, config.features.num_features) == (32, 1280, 64)
        assert batch.seed == job.seed
        assert sizes == (32, 1280, 64)
        if job.arm == "clt-forge-gpt2":
            assert config.loss.sparsity_coeff == job.value
            assert config.loss.preact_coeff == settings["dead_penalty_coef"]
            assert config.features.bandwidth == settings["jumprelu_bandwidth"]
            assert config.features.threshold_init == settings["jumprelu_init_threshold"]
            assert config.optimizer.warmup_steps == settings["lr_warm_up_steps"]
            assert config.optimizer.learning_rate == pytest.approx(PEER_ARMS[0].learning_rate)


def test_only_arms_with_aux_k_revive_features() -> None:
    """Their names say so."""
    revived = {job.arm for job in _jobs(peer=False) if job.conditions["spec"]["aux_top_k"]}
    assert revived == {"top-k, AuxK", "batch-top-k, AuxK", "joint-top-k, AuxK"}
