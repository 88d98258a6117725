"""The published recipes."""

import subprocess
import sys

import pytest
from clt_cases import NAMED, config_of, own_batch, trainer_of

from weft_clt.config import Activation, TrainingConfig
from weft_clt.kernels import CpuKernels
from weft_clt.recipes import RECIPES, RunSize, find_recipe
from weft_clt.schedule import learning_rate, sparsity_coeff
from weft_common.errors import InvalidArgumentError

LARGE = RunSize("datasets/d", num_features=1 << 16, num_steps=100_000, step_tokens=4096, feature_ranks=4, top_k=64)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_a_valid_spec_at_any_size_and_says_where_it_is_from(name: str) -> None:
    """Small and large; its JSON form survives; its source and its deviations are told."""
    recipe = RECIPES[name]
    assert recipe.name == name
    assert min(len(recipe.source), len(recipe.deviations), len(recipe.summary)) > 20
    for size in (RunSize("datasets/d"), LARGE):
        config = recipe.make(size)
        assert TrainingConfig.from_spec(config.to_spec()) == config
        assert (config.features.num_features, config.batch.num_steps) == (size.num_features, size.num_steps)
        assert config.mesh.feature_ranks == size.feature_ranks
        if config.features.activation.counts:
            assert config.features.top_k == size.top_k


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_learns(name: str) -> None:
    """The reconstruction gets better on the tokens it is trained on, although sparsity pulls the other way."""
    changes = {"num_steps": 60, "learning_rate": 1e-2}
    if NAMED[name]["sparsity_coeff"]:
        changes["sparsity_coeff"] = 0.1
    config = config_of(**NAMED[name] | changes)
    trainer = trainer_of(config, CpuKernels())
    losses = [trainer.train_step(own_batch(1, trainer.mesh)).reconstruction_loss for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_recipes_have_the_published_settings() -> None:
    """Those that tell them apart, at the size of a long run."""
    anthropic, forge, llama, eleuther, bytedance = (
        RECIPES[name].make(LARGE)
        for name in ("anthropic", "clt-forge-gpt2", "clt-forge-llama-1b", "eleutherai", "bytedance")
    )
    assert anthropic.features.gradient_through_threshold
    assert (anthropic.features.threshold_init, anthropic.features.bandwidth) == (0.1, 2.0)
    assert (anthropic.loss.sparsity_coeff, anthropic.loss.sparsity_scale, anthropic.loss.preact_coeff) == (20, 4, 3e-6)
    assert sparsity_coeff(anthropic.loss, 50_000, 100_000) == pytest.approx(10)
    assert not forge.features.gradient_through_threshold
    assert (forge.features.threshold_init, forge.features.bandwidth, forge.loss.preact_coeff) == (0.03, 1.0, 1e-5)
    assert sparsity_coeff(forge.loss, 35_000, 100_000) == pytest.approx(1)
    assert learning_rate(forge.optimizer, 500, 100_000) == pytest.approx(2e-4)
    assert learning_rate(forge.optimizer, 50_000, 100_000) == 4e-4
    assert sparsity_coeff(llama.loss, 45_000, 100_000) == pytest.approx(6, rel=1e-3)
    assert sparsity_coeff(llama.loss, 95_000, 100_000) == 12
    assert learning_rate(llama.optimizer, 500, 100_000) == pytest.approx(1e-4)
    assert eleuther.optimizer.learning_rate == pytest.approx(1e-4)
    assert (eleuther.optimizer.beta1, eleuther.loss.aux_top_k, eleuther.loss.aux_coeff) == (0, 512, 1 / 32)
    assert eleuther.batch.dead_after_tokens == 10_000_000
    assert bytedance.features.activation is Activation.JOINT_TOP_K


def test_recipes_that_count_differ_only_in_what_was_published() -> None:
    """All else of the two comes from one place."""
    eleuther, bytedance = (RECIPES[name].make(LARGE).to_spec() for name in ("eleutherai", "bytedance"))
    different = {field for field, value in eleuther.items() if value != bytedance[field]}
    assert different == {"activation", "learning_rate", "adam_beta1"}


def test_unknown_recipe_lists_the_known_ones() -> None:
    """The error names every one."""
    with pytest.raises(InvalidArgumentError, match="anthropic, bytedance, clt-forge-gpt2") as caught:
        find_recipe("nobodys")
    assert caught.value.field == "recipe"


def test_recipes_need_no_torch() -> None:
    """A client can plan with them without loading torch."""
    code = "import sys, weft_clt.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
