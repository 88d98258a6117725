"""Parts of edges by heads and positions against whole sweeps over models whose patterns have been cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_transformer import FrozenTransformer
from swept_model import IDS, Swept, build, build_from

from weft_attribution.core.head_loadings import Reading, Written, split_edge


@pytest.fixture(params=["llama", "gpt2 with skips", "gemma2", "neox with skips"])
def swept(request: pytest.FixtureRequest, tmp_path: Path) -> Swept:
    """The oracle of two families is written from the papers, that of the others is transformers' own."""
    family, _, skip = request.param.partition(" with ")
    if family in ("llama", "gpt2"):
        return build(tmp_path, family, skip=bool(skip))
    return build_from(FrozenTransformer(family, tmp_path / "model"), tmp_path / "model", skip=bool(skip))


def source_of(swept: Swept, node: int) -> Written:
    """What a column of the edges writes, put together from the transcoder's own tensors."""
    features, layers, positions = swept.features, swept.model.num_layers, len(IDS)
    embed = torch.zeros(positions, swept.model.d_model, dtype=torch.float64)
    if node < len(features):
        layer, index = int(features.layer_N[node]), int(features.index_N[node])
        decoder = swept.tensors[f"W_dec_{layer}"][index] * features.activation_N[node]
        return Written(embed, dict(enumerate(decoder, start=layer)), int(features.position_N[node]))
    node -= len(features)
    if node < layers * (positions - 1):
        layer, before = divmod(node, positions - 1)
        return Written(embed, {layer: features.error_LPD[layer, before + 1]}, before + 1)
    position = node - layers * (positions - 1)
    embed[position] = swept.model.embed(IDS)[0][position]
    return Written(embed, {}, position)


def target_of(swept: Swept, row: int) -> Reading:
    vector = swept.targets.readers(np.array([row]))[0]
    return Reading(vector, int(swept.targets.layer_N[row]), int(swept.targets.position_N[row]))


@contextmanager
def attending(swept: Swept, cut: dict[int, torch.Tensor]) -> Iterator[None]:
    """Multiply the patterns of some layers."""
    patterns = list(swept.operator.pattern_HPP)
    try:
        for layer, factor in cut.items():
            swept.operator.pattern_HPP[layer] = patterns[layer] * factor
        yield
    finally:
        swept.operator.pattern_HPP[:] = patterns


def some_edges(swept: Swept, edges: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Edges of every kind of source and target, drawn from those that are not zero."""
    rows, columns = np.nonzero(edges)
    pick = np.random.default_rng(0).permutation(len(rows))[:count]
    return [*zip(rows[pick].tolist(), columns[pick].tolist(), strict=True), (len(edges) - 1, edges.shape[1] - 1)]


def test_parts_add_up_to_the_edge(swept: Swept) -> None:
    """Last heads and what goes through none are the edge; so are a layer's heads and what passes them by, as far up."""
    edges = swept.edges()
    for row, column in some_edges(swept, edges, 40):
        split = split_edge(swept.operator, source_of(swept, column), target_of(swept, row))
        np.testing.assert_allclose(split.total, edges[row, column], rtol=1e-8, atol=1e-11)
        later = split.last_LHP[:, :, int(swept.targets.position_N[row]) + 1 :]
        assert not later.any()


def test_last_head_is_what_is_lost_without_it(swept: Swept) -> None:
    """A part is the difference that one entry of a pattern makes where nothing above attends to the target's place."""
    edges = swept.edges()
    heads, positions, layers = swept.operator.weights.num_heads, len(IDS), swept.model.num_layers
    row = len(edges) - 1
    at = int(swept.targets.position_N[row])
    columns = [column for r, column in some_edges(swept, edges[-1:], 12) if r == 0]
    splits = [split_edge(swept.operator, source_of(swept, column), target_of(swept, row)) for column in columns]

    def without_above(layer: int, kept: tuple[int, int] | None) -> np.ndarray:
        """Edges where the target's place attends to nothing from `layer` on but for one entry there."""
        cut = {}
        for each in range(layer, layers):
            cut[each] = torch.ones(heads, positions, positions, dtype=torch.float64)
            cut[each][:, at] = 0
        if kept is not None:
            cut[layer][kept[0], at, kept[1]] = 1
        with attending(swept, cut):
            return swept.edges(rows=np.array([row]))[0]

    base = without_above(0, None)
    np.testing.assert_allclose([split.direct for split in splits], base[columns], rtol=1e-8, atol=1e-11)
    for layer, head, read in ((0, 1, 0), (1, 0, at), (1, 3, 2), (layers - 1, 2, 1)):
        found = [float(split.last_LHP[layer, head, read]) for split in splits]
        expected = without_above(layer, (head, read)) - without_above(layer, None)
        np.testing.assert_allclose(found, expected[columns], rtol=1e-7, atol=1e-11)


def test_head_carries_what_is_lost_without_it(swept: Swept) -> None:
    """What goes through a head at all is what the edge loses when that head's pattern is zero."""
    edges = swept.edges()
    heads = swept.operator.weights.num_heads
    some = some_edges(swept, edges, 15)
    splits = [split_edge(swept.operator, source_of(swept, column), target_of(swept, row)) for row, column in some]
    for layer in range(swept.model.num_layers):
        for head in (0, heads - 1):
            factor = torch.ones(heads, 1, 1, dtype=torch.float64)
            factor[head] = 0
            with attending(swept, {layer: factor}):
                lost = edges - swept.edges()
            found = [float(split.through_LH[layer, head]) for split in splits]
            np.testing.assert_allclose(found, [lost[pair] for pair in some], rtol=1e-7, atol=1e-10)
