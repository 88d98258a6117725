"""Linear layers with packed weights, beside plain ones in float64."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from weft_activations.adapters.packed_linear import PackedLinear, pack_linears


def small_llama(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attention_bias=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (0, 4), (2, 300)])
def test_packed_linear_computes_what_a_plain_one_does(shape: tuple[int, ...], bias: bool) -> None:
    """Any number of rows, in any number of dimensions, is within float32's sums of the product in float64."""
    torch.manual_seed(0)
    plain = nn.Linear(33, 17, bias=bias).requires_grad_(False)
    packed = PackedLinear(plain)
    x = torch.randn(*shape, 33)
    exact = copy.deepcopy(plain).double()(x.double())
    found = packed(x)
    assert found.shape == exact.shape
    assert torch.allclose(found.double(), exact, rtol=0, atol=1e-5)


def test_packed_linear_gives_its_plain_weight_back() -> None:
    """Every bit of the weight is kept, in its own order."""
    plain = nn.Linear(33, 17).requires_grad_(False)
    packed = PackedLinear(plain)
    assert torch.equal(packed.weight, plain.weight)
    assert packed.bias is not None
    assert torch.equal(packed.bias, plain.bias)


def test_packing_leaves_the_unembedding_and_long_sums() -> None:
    """A whole model computes the same logits; its tied unembedding stays one with the embedding."""
    model = small_llama()
    tokens = torch.tensor([[1, 7, 3, 9, 2]])
    expected = copy.deepcopy(model).double()(tokens).logits
    pack_linears(model)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, module in linears.items() if not isinstance(module, PackedLinear)} == {
        "lm_head",
        *(f"model.layers.{layer}.mlp.down_proj" for layer in range(2)),
    }
    assert len(linears) == 2 * 7 + 1
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.allclose(model(tokens).logits.double(), expected, rtol=0, atol=1e-5)


def test_packing_leaves_other_types_as_they_are() -> None:
    """A model in bfloat16 keeps its plain layers."""
    model = small_llama(torch.bfloat16)
    pack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
