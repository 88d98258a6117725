"""Which features fire on a text where a transcoder counts: those that a graph of it would have."""

from pathlib import Path

import pytest
from attribution_house import PROMPT, attribution_house
from attribution_rig import counted, load_transcoder, make_transcoder


@pytest.mark.parametrize("kind", ["top_k", "joint_top_k"])
async def test_features_on_a_text_are_those_that_are_counted(tmp_path: Path, kind: str) -> None:
    """All of them, those of one layer and those asked for by name are what sorting every position in Python gives."""
    async with attribution_house(tmp_path) as house:
        model = house.runner.reference
        make_transcoder(house.store, "k", model, activation=kind, top_k=4, bias=0.0, jump=True)
        tensors = load_transcoder(house.store, "k", 3)
        ids = [token.id for token in await house.runner.tokenize("tiny", PROMPT)]
        streams = model.streams(ids)
        pres = [streams[f"layers.{i}.mlp_in"] @ tensors[f"W_enc_{i}"].T + tensors[f"b_enc_{i}"] for i in range(3)]
        wanted: dict[tuple[int, int], dict[int, float]] = {}
        for layer, fired in enumerate(counted(kind, 4, tensors)(pres)):
            for position, feature in fired.nonzero().tolist():
                if position:
                    wanted.setdefault((layer, feature), {})[position] = float(pres[layer][position, feature])
        answer = await house.client.features.on_prompt("k", PROMPT, max_features=1000)
        assert answer.num_active_features == len(wanted)
        for feature in answer.features:
            expected = wanted[feature.layer, feature.index]
            assert list(feature.positions) == list(expected)
            assert list(feature.activations) == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-6)
        last = await house.client.features.on_prompt("k", PROMPT, layers=[2])
        assert {each.index for each in last.features} == {index for layer, index in wanted if layer == 2}
        asked = next(iter(wanted))
        (named,) = (await house.client.features.on_prompt("k", PROMPT, features=[asked])).features
        assert list(named.positions) == list(wanted[asked])
