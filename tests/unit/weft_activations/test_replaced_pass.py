"""Passes with a caller in the place of MLPs, against transformers' own model with hooks on its modules, in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_gpt2, make_llama
from torch import Tensor
from transformers import AutoModelForCausalLM

from weft_activations.adapters.replaced_pass import ReplacedPasses
from weft_activations.adapters.torch_blocks import take_apart
from weft_activations.core.ports import Floats, MlpStop, PassPlan, PassScore

NUM_LAYERS, D_MODEL, POSITIONS = 3, 32, 9
KEPT = (0, 4, POSITIONS)
"""The first row of each sequence, and one more of the first."""
Reconstruct = Callable[[int, list[Tensor]], Tensor]
"""From a layer and the MLP inputs of the layers up to it, [B, P, D] each, to that layer's output."""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    made = (make_llama if request.param == "llama" else make_gpt2)(folder / request.param)
    return AutoModelForCausalLM.from_pretrained(made, attn_implementation="sdpa").eval().double()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 300, (2, POSITIONS), generator=torch.Generator().manual_seed(4))


def crossing(layer: int, inputs: list[Tensor]) -> Tensor:
    """A small nonlinear map from all inputs up to a layer, as a cross-layer transcoder is one."""
    random = torch.Generator().manual_seed(9)
    mixing = torch.randn(NUM_LAYERS, NUM_LAYERS, D_MODEL, D_MODEL, generator=random, dtype=torch.float64) * 0.1
    return sum((torch.relu(x) @ mixing[source, layer] for source, x in enumerate(inputs)), torch.zeros(()))


@contextmanager
def mlps_replaced(model: Any, layers: list[int], reconstruct: Reconstruct | None) -> Iterator[None]:
    """Hook the model's MLPs: the layers given return what is reconstructed, or zero, outside of the kept rows."""
    body = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    seen: list[Tensor] = []

    def hook(layer: int) -> Callable[..., Tensor]:
        def replace(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            seen.append(args[0])
            if layer not in layers:
                return output
            new = torch.zeros_like(output) if reconstruct is None else reconstruct(layer, seen)
            for row in KEPT:
                new[row // POSITIONS, row % POSITIONS] = output[row // POSITIONS, row % POSITIONS]
            return new

        return replace

    handles = [block.mlp.register_forward_hook(hook(layer)) for layer, block in enumerate(body)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def oracle(model: Any, tokens: Tensor, layers: list[int], reconstruct: Reconstruct | None) -> PassScore:
    """Score by whole tensors and torch's own losses."""
    clean = model(tokens).logits
    with mlps_replaced(model, layers, reconstruct):
        changed = model(tokens).logits
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[:, -1] = False
    scored.view(-1)[list(KEPT)] = False
    following = tokens.roll(-1, 1)[scored]
    clean, changed = clean[scored], changed[scored]
    cross_entropy = torch.nn.functional.cross_entropy
    divergence = torch.nn.functional.kl_div(
        changed.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="sum"
    )
    return PassScore(
        int(scored.sum()),
        float(cross_entropy(clean, following, reduction="sum")),
        float(cross_entropy(changed, following, reduction="sum")),
        float(divergence),
        int((clean.argmax(-1) == changed.argmax(-1)).sum()),
    )


def run(passes: ReplacedPasses, plan: PassPlan, answer: Callable[[MlpStop], Floats]) -> PassScore:
    """Go through a pass."""
    stop = passes.begin(plan)
    while isinstance(stop, MlpStop):
        stop = passes.go_on(answer(stop) if stop.is_replaced else None)
    return stop


def close(found: PassScore, wanted: PassScore, abs_tol: float) -> None:
    assert (found.tokens, found.agreed) == (wanted.tokens, wanted.agreed)
    for field in ("model_cross_entropy_sum", "cross_entropy_sum", "kl_sum"):
        assert getattr(found, field) == pytest.approx(getattr(wanted, field), rel=1e-5, abs=abs_tol)


def passes_of(model: Any, tokens: Tensor) -> ReplacedPasses:
    return ReplacedPasses(take_apart(model), tokens, "mlp_in", lambda: None)


@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 1, 2], [0, 2]])
def test_replaced_pass_equals_hooks_on_the_model(model: Any, tokens: Tensor, layers: list[int]) -> None:
    """A transcoder that reads the replaced stream, layer by layer, gives what hooks in one forward pass give."""
    passes = passes_of(model, tokens)
    seen: dict[int, Tensor] = {}

    def answer(stop: MlpStop) -> Floats:
        inputs = [seen[layer] for layer in range(stop.layer + 1)]
        made: Floats = crossing(stop.layer, inputs).flatten(0, 1).float().numpy()
        return made

    def read(stop: MlpStop) -> None:
        assert stop.input_ND is not None
        seen[stop.layer] = torch.from_numpy(stop.input_ND).double().reshape(2, POSITIONS, D_MODEL)

    stop = passes.begin(PassPlan(tuple(range(NUM_LAYERS)), replaced_layers=tuple(layers), kept_rows=KEPT))
    while isinstance(stop, MlpStop):
        read(stop)
        stop = passes.go_on(answer(stop) if stop.is_replaced else None)
    wanted = oracle(model, tokens, layers, crossing)
    assert wanted.kl_sum > 1e-3
    close(stop, wanted, 1e-5)


@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_ablated_pass_equals_hooks_on_the_model(model: Any, tokens: Tensor, layers: list[int]) -> None:
    """Zeros in the place of MLP outputs, from whichever layer on the pass begins."""
    passes = passes_of(model, tokens)
    found = run(passes, PassPlan(ablated_layers=tuple(layers), kept_rows=KEPT), lambda stop: pytest.fail("no stop"))
    close(found, oracle(model, tokens, layers, None), 1e-9)


def test_own_outputs_given_back_change_nothing(model: Any, tokens: Tensor) -> None:
    """A perfect transcoder, here the MLPs themselves, has divergence 0 and agrees everywhere, singly and at once."""
    passes = passes_of(model, tokens)
    blocks = take_apart(model).blocks

    @torch.no_grad()
    def answer(stop: MlpStop) -> Floats:
        assert stop.input_ND is not None
        made: Floats = blocks[stop.layer].mlp(torch.from_numpy(stop.input_ND).double()).float().numpy()
        return made

    for layers in [(0,), (1,), (2,), (0, 1, 2)]:
        found = run(passes, PassPlan(layers, replaced_layers=layers), answer)
        assert found.tokens == found.agreed == 2 * (POSITIONS - 1)
        assert found.kl_sum == pytest.approx(0, abs=1e-9)
        assert found.cross_entropy_sum == pytest.approx(found.model_cross_entropy_sum, abs=1e-5)


def test_clean_pass_reads_inputs_and_output_norms(model: Any, tokens: Tensor) -> None:
    """A pass that only reads shows the model's own streams and moves nothing."""
    body = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [
        block.mlp.register_forward_hook(lambda _, args, out, layer=layer: kept.update({layer: (args[0], out)}))
        for layer, block in enumerate(body)
    ]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    passes = passes_of(model, tokens)
    stops = []
    stop = passes.begin(PassPlan((0, 1, 2), read_output_norms=True))
    while isinstance(stop, MlpStop):
        stops.append(stop)
        stop = passes.go_on(None)
    assert [found.layer for found in stops] == [0, 1, 2]
    for found in stops:
        inputs, outputs = kept[found.layer]
        np.testing.assert_allclose(found.input_ND, inputs.flatten(0, 1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.output_norm_N, outputs.flatten(0, 1).norm(dim=1), rtol=1e-5)
    assert (stop.kl_sum, stop.agreed) == (0.0, stop.tokens)


def test_two_batches_may_take_turns(model: Any, tokens: Tensor) -> None:
    """A pass that was stopped goes on as if another batch of another length had not run in between."""
    own, other = passes_of(model, tokens), passes_of(model, tokens[:1, :5])
    plan = PassPlan((0, 1, 2), replaced_layers=(0, 1, 2), kept_rows=KEPT)
    zeros = np.zeros((2 * POSITIONS, D_MODEL), np.float32)
    stop = own.begin(plan)
    while isinstance(stop, MlpStop):
        run(other, PassPlan(ablated_layers=(1,)), lambda _: zeros)
        stop = own.go_on(zeros)
    close(stop, oracle(model, tokens, [0, 1, 2], None), 1e-9)
