"""Forward pass, losses, every gradient and the optimiser against dense autograd in float64."""

from typing import Any

import pytest
import torch
from clt_cases import (
    JUMP_RELU,
    NUM_TOKENS,
    RECIPES,
    Oracle,
    config_of,
    gradients,
    own_batch,
    some_dead,
    tokens,
    trainer_of,
)

from weft_clt.config import Activation
from weft_clt.initial import calibrate_biases
from weft_clt.kernels import CpuKernels, Kernels, ReferenceKernels
from weft_clt.schedule import learning_rate, sparsity_coeff

CASES: dict[str, dict[str, Any]] = RECIPES | {
    "jump_relu_wide_band": JUMP_RELU | {"bandwidth": 4.0, "gradient_through_threshold": True},
    "jump_relu_without_preact": JUMP_RELU | {"preact_coeff": 0.0},
    "jump_relu_without_sparsity": JUMP_RELU | {"sparsity_coeff": 0.0},
    "jump_relu_reconstruction_only": JUMP_RELU | {"sparsity_coeff": 0.0, "preact_coeff": 0.0},
}


@pytest.mark.parametrize("kernels", [ReferenceKernels(), CpuKernels()], ids=["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_step_has_the_losses_and_gradients_of_the_oracle(case: str, kernels: Kernels) -> None:
    """All three losses and the gradients of all parameters agree to rounding."""
    config = config_of(**CASES[case])
    trainer = trainer_of(config, kernels)
    oracle = Oracle.of(trainer.params)
    inputs, targets = tokens(0)
    coeff = 0.7 * config.loss.sparsity_coeff
    dead = some_dead(config)
    forward = trainer.engine.forward(*trainer.engine.gather(inputs, targets), dead_LF=dead)
    reconstruction = float(forward.error_LTC.square().sum()) / NUM_TOKENS
    losses = trainer.engine.backward(forward, step_tokens=NUM_TOKENS, sparsity_coeff=coeff)
    wanted = oracle.losses(inputs, targets, config, coeff, dead)
    torch.stack(wanted).sum().backward()
    found = [reconstruction, losses.sparsity, losses.preact, losses.aux]
    assert found == pytest.approx(torch.stack(wanted).tolist(), rel=1e-12)
    assert (losses.aux > 0) == (dead is not None)
    grads = gradients(trainer)
    assert trainer.engine.decoder_grads is not None
    assert trainer.engine.decoder_grads.squares == pytest.approx(
        float(oracle.grads()["w_dec"].square().sum()), rel=1e-10
    )
    if config.features.activation is Activation.BATCH_TOP_K:
        assert not grads.pop("threshold").any()
    assert grads.keys() == oracle.grads().keys()
    for name, grad in oracle.grads().items():
        assert float(grad.abs().max()) > 0, name
        torch.testing.assert_close(
            grads[name], grad, rtol=1e-11, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("case", ["top_k", "jump_relu_through_threshold"])
@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_training_takes_the_steps_of_torch_adam(case: str, beta1: float) -> None:
    """Several steps with warm-up, decay and active clipping end where torch's own optimiser and clipping end."""
    config = config_of(**CASES[case], adam_beta1=beta1)
    trainer = trainer_of(config, CpuKernels())
    oracle: Oracle | None = None
    clipped = 0
    for step in range(1, config.batch.num_steps + 1):
        inputs, targets = tokens(step)
        if oracle is None:
            if trainer.params.threshold_LS is not None:
                # The first step sets the biases from its tokens; the oracle starts from the same ones.
                calibrate_biases(trainer.params, inputs, trainer.mesh)
            oracle = Oracle.of(trainer.params)
            adam = torch.optim.Adam(oracle.leaves(), lr=1.0, betas=(beta1, 0.99), eps=1e-8)
        metrics = trainer.train_step(own_batch(step, trainer.mesh))
        losses = oracle.losses(inputs, targets, config, sparsity_coeff(config.loss, step, 5))
        adam.zero_grad()
        torch.stack(losses).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(oracle.leaves(), config.optimizer.clip_norm)
        clipped += float(norm) > config.optimizer.clip_norm
        adam.param_groups[0]["lr"] = learning_rate(config.optimizer, step, 5)
        adam.step()
        if oracle.threshold is not None:
            oracle.threshold.data.clamp_(min=0)
        assert metrics.loss == pytest.approx(float(torch.stack(losses).detach().sum()), rel=1e-9)
        assert metrics.gradient_norm == pytest.approx(float(norm), rel=1e-9)
    assert clipped
    assert oracle is not None
    # clip_grad_norm_ divides by norm + 1e-6, hence the tolerance.
    torch.testing.assert_close(trainer.params.w_enc_LSD, oracle.w_enc.detach(), rtol=1e-6, atol=1e-7)
    blocks = torch.stack([block.detach() for row in oracle.w_dec for block in row])
    torch.testing.assert_close(trainer.params.w_dec_PFC, blocks, rtol=1e-6, atol=1e-7)


def test_metrics_measure_the_step() -> None:
    """Explained variance and L0 are those of the step's own tokens."""
    config = config_of()
    trainer = trainer_of(config, CpuKernels())
    inputs, targets = tokens(1)
    with torch.no_grad():
        oracle = Oracle.of(trainer.params)
        _, acts = oracle.acts(inputs, config)
        explained = []
        for target in range(3):
            predicted = oracle.b_dec[target] + sum(acts[s] @ oracle.w_dec[s][target - s] for s in range(target + 1))
            spread = (targets[target] - targets[target].mean(0)).square().sum()
            explained.append(1 - float((predicted - targets[target]).square().sum() / spread))
    metrics = trainer.train_step(own_batch(1, trainer.mesh))
    assert metrics.explained_variance == pytest.approx(sum(explained) / 3)
    assert metrics.l0 == pytest.approx(sum(float((a > 0).sum()) for a in acts) / 3 / NUM_TOKENS)
    assert metrics.tokens == NUM_TOKENS


def test_dead_clock_counts_tokens() -> None:
    """A feature that cannot fire is dead once the configured number of tokens has passed, not earlier."""
    config = config_of(dead_after_tokens=2 * NUM_TOKENS, learning_rate=1e-9)
    trainer = trainer_of(config, CpuKernels())
    trainer.params.b_enc_LS[0, :6] = -1e6
    shares = [trainer.train_step(own_batch(step, trainer.mesh)).dead_share for step in range(1, 3)]
    assert shares[0] == 0
    assert shares[1] >= 6 / 36
    assert int(trainer.clock.silent_tokens_LF[0, 0]) == 2 * NUM_TOKENS
