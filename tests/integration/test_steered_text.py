"""A text with changed features through gRPC, the client and the command, against the model itself in float64."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attribution_house import AttributionHouse, attribution_house
from attribution_rig import load_transcoder

from weft.features.v1 import labels_pb2, steering_pb2
from weft_client.names import feature_name
from weft_common.errors import InvalidArgumentError, NotFoundError

PROMPT = "capital"
Place = tuple[int, int, int]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with attribution_house(tmp_path) as house:
        yield house


class Oracle:
    """The same in float64 from the model's own streams, one position at a time."""

    def __init__(self, house: AttributionHouse) -> None:
        self.model = house.runner.reference
        self.tensors = load_transcoder(house.store, "t", 3)
        self.ids = [ord(c) % 40 for c in PROMPT]
        self.streams = self.model.streams(self.ids)

    def activation(self, layer: int, index: int, position: int) -> float:
        weight, bias = self.tensors[f"W_enc_{layer}"][index].double(), self.tensors[f"b_enc_{layer}"][index].double()
        pre = float(self.streams[f"layers.{layer}.mlp_in"][position] @ weight + bias)
        return pre if pre > float(self.tensors[f"threshold_{layer}"][index]) else 0.0

    def logits(self, moves: Mapping[Place, float], ids: Sequence[int]) -> torch.Tensor:
        added = {layer: torch.zeros(len(ids), 16, dtype=torch.float64) for layer in range(3)}
        for (layer, index, position), amount in moves.items():
            decoder = self.tensors[f"W_dec_{layer}"][index].double()
            for target in range(layer, 3):
                added[target][position] += amount * decoder[target - layer]
        tokens, places = self.model.embed(ids)
        return self.model.run(tokens + places, added=added)["logits"]

    def continuation(
        self, moves: Mapping[Place, float], always: Mapping[tuple[int, int], float], count: int
    ) -> list[int]:
        ids = list(self.ids)
        for _ in range(count):
            extra = {
                (layer, index, position): amount
                for (layer, index), amount in always.items()
                for position in range(len(self.ids), len(ids))
            }
            ids.append(int(self.logits({**moves, **extra}, ids).argmax()))
        return ids[len(self.ids) :]


def change(layer: int, index: int, *positions: int, **done: float) -> steering_pb2.PromptChange:
    return steering_pb2.PromptChange(feature=feature_name("t", layer, index), positions=positions, **done)


async def strongest(house: AttributionHouse) -> list[tuple[int, int, list[int]]]:
    answer = await house.client.features.on_prompt("t", PROMPT, max_features=1000)
    ranked = sorted(answer.features, key=lambda each: -max(each.activations))
    return [(each.layer, each.index, list(each.positions)) for each in ranked]


async def test_changes_move_the_model_as_its_own_arithmetic_says(house: AttributionHouse) -> None:
    """Ablated, set at a position and added everywhere at once: probabilities, divergence and text of both runs."""
    oracle = Oracle(house)
    first, second, third = (await strongest(house))[:3]
    at = second[2][0]
    changes = [
        change(*first[:2], factor=0.0),
        change(*second[:2], at, value=9.0),
        change(*third[:2], add=4.0),
    ]
    moves: dict[Place, float] = {}
    for position in first[2]:
        moves[first[0], first[1], position] = -oracle.activation(first[0], first[1], position)
    moves[second[0], second[1], at] = 9.0 - oracle.activation(second[0], second[1], at)
    for position in range(1, len(PROMPT)):
        moves[third[0], third[1], position] = 4.0
    found = await house.client.features.steer("t", PROMPT, changes=changes, max_new_tokens=5, num_top_tokens=6)

    was, now = oracle.logits({}, oracle.ids), oracle.logits(moves, oracle.ids)
    p_was, p_now = was.softmax(0), now.softmax(0)
    assert {each.token_id for each in found.next_tokens} == {
        *p_was.topk(6).indices.tolist(),
        *p_now.topk(6).indices.tolist(),
    }
    likeliest = [max(each.probability_before, each.probability_after) for each in found.next_tokens]
    assert likeliest == sorted(likeliest, reverse=True)
    shift = (now - now.mean()) - (was - was.mean())
    for each in found.next_tokens:
        assert each.text == f"t{each.token_id}"
        assert each.probability_before == pytest.approx(float(p_was[each.token_id]), rel=1e-4)
        assert each.probability_after == pytest.approx(float(p_now[each.token_id]), rel=1e-4)
        assert each.logit_change == pytest.approx(float(shift[each.token_id]), rel=1e-3, abs=1e-4)
    assert found.kl_divergence == pytest.approx(float((p_was * (p_was.log() - p_now.log())).sum()), rel=1e-3)
    assert found.kl_divergence > 0.01
    assert [each.token_id for each in found.undisturbed] == oracle.continuation({}, {}, 5)
    assert [each.token_id for each in found.changed] == oracle.continuation(moves, {third[:2]: 4.0}, 5)
    assert found.changed[0].probability == pytest.approx(float(p_now.max()), rel=1e-4)
    assert list(found.tokens) == list(PROMPT)
    ablated, set_there, added = found.features
    assert list(ablated.positions) == first[2]
    assert list(ablated.after) == [0.0] * len(first[2])
    assert list(ablated.before) == pytest.approx([oracle.activation(*first[:2], p) for p in first[2]], rel=1e-4)
    assert (list(set_there.positions), list(set_there.after)) == ([at], [9.0])
    assert (list(added.positions), added.added_after) == (list(range(1, len(PROMPT))), 4.0)


async def test_nothing_to_multiply_changes_nothing(house: AttributionHouse) -> None:
    """A feature that is silent on the text is ablated nowhere, and both runs are one."""
    active = {(layer, index) for layer, index, _ in await strongest(house)}
    silent = next((layer, index) for layer in range(3) for index in range(12) if (layer, index) not in active)
    found = await house.client.features.steer("t", PROMPT, changes=[change(*silent, factor=0.0)], max_new_tokens=3)
    assert list(found.features[0].positions) == []
    assert found.kl_divergence == pytest.approx(0, abs=1e-12)
    assert found.undisturbed == found.changed
    assert all(each.logit_change == pytest.approx(0, abs=1e-9) for each in found.next_tokens)


async def test_labels_come_with_what_was_changed(house: AttributionHouse) -> None:
    """A model's label from elsewhere is told as such, a person's as a person's."""
    layer, index, _ = (await strongest(house))[0]
    for origin, explainer in ((labels_pb2.LABEL_ORIGIN_MODEL, "elsewhere-1"), (labels_pb2.LABEL_ORIGIN_HUMAN, "")):
        label = labels_pb2.Label(layer=layer, index=index, text="capitals", origin=origin, explainer=explainer)
        await house.client.labels.add("t", [label])
        found = await house.client.features.steer("t", PROMPT, changes=[change(layer, index, factor=2.0)])
        told = found.features[0].label
        assert (told.text, told.is_human, told.is_imported, told.explainer) == (
            "capitals", not explainer, bool(explainer), explainer,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "more", "error", "text"),
    [
        ([], {}, InvalidArgumentError, "give 1 to 100"),
        ([change(0, 1)], {}, InvalidArgumentError, "nothing to do"),
        ([change(0, 1, factor=float("nan"))], {}, InvalidArgumentError, "not finite"),
        ([change(0, 1, 0, factor=0)], {}, InvalidArgumentError, "features at positions 1 to 6"),
        ([change(0, 1, 7, value=1)], {}, InvalidArgumentError, "features at positions 1 to 6"),
        ([change(0, 1, 2, value=1), change(0, 1, add=1)], {}, InvalidArgumentError, "changed twice at position 2"),
        ([change(3, 1, factor=0)], {}, NotFoundError, "no layer 3"),
        ([change(0, 12, factor=0)], {}, NotFoundError, "no feature 12"),
        ([change(0, 1, factor=0)], {"prompt": ""}, InvalidArgumentError, "prompt is empty"),
        ([change(0, 1, factor=0)], {"max_new_tokens": 201}, InvalidArgumentError, "max_new_tokens is 201"),
        ([change(0, 1, factor=0)], {"num_top_tokens": -1}, InvalidArgumentError, "num_top_tokens is -1"),
        ([change(0, 1, factor=0)] * 101, {}, InvalidArgumentError, "changes has 101"),
    ],
)
async def test_changes_that_make_no_sense_are_refused(
    house: AttributionHouse, changes: list[Any], more: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Each says what was wrong and what was expected."""
    with pytest.raises(error, match=text):
        await house.client.features.steer("t", **{"prompt": PROMPT, "changes": changes, **more})


async def test_command_prints_both_runs(house: AttributionHouse) -> None:
    """`weft features steer` shows what was changed, the next tokens and both texts; --json is the message."""
    layer, index, positions = (await strongest(house))[0]
    feature = f"{layer}-{index}"
    text = await house.text("features", "steer", "t", "--prompt", PROMPT, "--ablate", feature, "--tokens", "2")
    assert "KL divergence" in text
    assert "undisturbed" in text
    asked = f"{feature}@{positions[0]}=3.5"
    told = await house.json("features", "steer", "t", "--prompt", PROMPT, "--set", asked, "--tokens", "2")
    assert told["features"][0]["after"] == [3.5]
    assert len(told["changed"]) == 2
    for arguments in ([], ["--scale", feature], ["--ablate", "x@y"]):
        refused = await house.weft("features", "steer", "t", "--prompt", PROMPT, *arguments)
        assert refused.exit_code != 0
