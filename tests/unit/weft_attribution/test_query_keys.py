"""Attention scores as sums over pairs, against autograd over transformers' own models in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_rig import oracle_edges
from frozen_transformer import FrozenTransformer
from swept_model import IDS, build_from
from tiny_models import _make_tokenizer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_attribution.core.query_key_weights import load_query_key
from weft_attribution.core.query_keys import Pair, _largest_pairs, attention_hooks, explain_score

_ASKED = "weft_tests_asked"


class AskedTransformer(FrozenTransformer):
    """A model whose `logits` in a held pass are one head's query and key, and their negatives: their mean is zero."""

    def __init__(self, family: str, folder: Path) -> None:
        super().__init__(family, folder)
        _make_tokenizer(folder, add_bos=False)
        self.asked: tuple[int, int, int, int] | None = None
        self.seen: dict[int, tuple[Tensor, Tensor, float]] = {}
        self.scales: dict[nn.Module, Tensor] = {}
        self.model.set_attn_implementation(_ASKED)
        for name, module in self.model.named_modules():
            if name.endswith(("q_norm", "k_norm")):
                module.register_forward_pre_hook(self._note)
                module.forward = self._normed(module)

    def _note(self, module: nn.Module, args: tuple[Tensor]) -> None:
        """Keep the scale of a clean pass."""
        if self._held is None:
            epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
            self.scales[module] = (args[0].square().mean(-1, keepdim=True) + epsilon).sqrt()

    def _normed(self, module: Any) -> Any:
        added = 1.0 if "Gemma" in type(module).__name__ else 0.0
        return lambda x: x / self.scales[module] * (module.weight + added)

    def run(self, embed: Tensor, **options: Any) -> dict[str, Tensor]:
        out = super().run(embed, **options)
        if self.asked is not None and options.get("held") is not None:
            layer, head, query, key = self.asked
            queries, keys, _ = self.seen[layer]
            group = len(queries) // len(keys)
            both = torch.cat([queries[head, query], keys[head // group, key]])
            out["logits_before_cap"] = torch.cat([both, -both])
        return out


def _asked(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **others: Any
) -> Any:
    oracle: Any = module.oracle[0]
    oracle.seen[int(module.oracle_key.split(".")[1])] = (query[0], key[0], scaling)
    return AttentionInterface._global_mapping["weft_tests_frozen"](module, query, key, value, mask, scaling, **others)


AttentionInterface.register(_ASKED, _asked)
AttentionMaskInterface.register(_ASKED, eager_mask)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3", "gemma2", "gemma3", "neox"])
def test_score_is_the_sum_over_pairs(tmp_path: Path, family: str) -> None:
    """Every pair is the product of what autograd says of query and key; all of them are the model's own score."""
    model = AskedTransformer(family, tmp_path / family)
    backend = TransformersBackend(tmp_path, dtype="float32", device="cpu", threads=1)

    def capture(hooks: Sequence[str]) -> Mapping[str, np.ndarray]:
        layers = range(model.num_layers)
        names = [hook.replace("*", str(layer)) for hook in hooks for layer in (layers if "*" in hook else [0])]
        return backend.forward(family, IDS, names)

    swept = build_from(model, tmp_path / family, streams=capture, skip=family in ("llama", "neox"))
    count = len(IDS)
    for layer, head, query, key in ((2, 3, count - 1, 2), (1, 0, 3, 0), (0, 1, 4, 4)):
        weights = load_query_key(tmp_path / family, layer, head, torch.float64)
        tensors = capture(attention_hooks(layer, is_rotated=weights.num_rotated > 0))
        found = explain_score(
            swept.operator, swept.features, np.array(IDS), weights, tensors,
            layer=layer, head_index=head, query=query, key=key, max_pairs=10_000,
        )  # fmt: skip
        model.asked = (layer, head, query, key)
        size = model.seen[layer][0].shape[-1]
        _, edges, values = oracle_edges(model, swept.tensors, IDS, list(range(2 * size)))
        scaling = model.seen[layer][2]
        assert weights.scaling == pytest.approx(scaling)
        both, both_values = edges[-2 * size :], values[-2 * size :]
        below = np.concatenate([
            np.flatnonzero(swept.features.layer_N < layer),
            len(swept.features) + np.arange(layer * (count - 1)),
            np.arange(edges.shape[1] - count, edges.shape[1]),
        ])  # fmt: skip
        sides = [
            np.concatenate([side[:, below], (value - side.sum(axis=1))[:, None]], axis=1)
            for side, value in ((both[:size], both_values[:size]), (both[size:], both_values[size:]))
        ]
        expected = sides[0].T @ sides[1] * scaling
        near = {"rtol": 2e-3, "atol": 2e-5 * np.abs(expected).max() + 1e-7}
        np.testing.assert_allclose(found.score, expected.sum(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.total, found.score, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.query_N, expected.sum(axis=1), rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found.key_N, expected.sum(axis=0), rtol=2e-3, atol=1e-4)
        dense = np.zeros_like(expected)
        for pair in found.pairs:
            dense[pair.query, pair.key] = pair.value
        np.testing.assert_allclose(dense, expected, **near)
        assert found.kinds.sum() == pytest.approx(found.total)
        ends = [found.table.error_start, found.table.token_start, found.table.logit_start]
        blocks = [[part.sum() for part in np.split(rows, ends, axis=1)] for rows in np.split(expected, ends)]
        np.testing.assert_allclose(found.kinds, blocks, rtol=2e-3, atol=1e-4)


def test_largest_pairs_are_those_of_the_whole_table() -> None:
    """Leaving out what cannot be among them changes nothing, whatever the lengths are."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(4, 1500)) * rng.pareto(1.0, 1500)
    key = rng.normal(size=(4, 900)) * rng.pareto(1.0, 900)
    whole = query.T @ key
    best = np.argsort(-np.abs(whole).ravel())[:25]
    found = _largest_pairs(query, key, 25)
    assert [(pair.query, pair.key) for pair in found] == [divmod(int(flat), 900) for flat in best]
    np.testing.assert_allclose([pair.value for pair in found], whole.ravel()[best])
    assert _largest_pairs(np.ones((2, 1)), np.array([[1.0], [-0.5]]), 3) == (Pair(0, 0, 0.5),)
    assert _largest_pairs(np.zeros((2, 3)), np.ones((2, 3)), 3) == ()
