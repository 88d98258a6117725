"""Differences, directions and features as what a graph explains, against float64 autograd and sums of rows."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_rig import ReferenceModel, ReferenceRunner, make_reference_folder, make_transcoder
from swept_model import IDS, Swept, build

from weft.attribution.v1 import targets_pb2
from weft_attribution.converting import target_from_proto, target_to_proto
from weft_attribution.core.ports import Token
from weft_attribution.core.sweep import make_targets, target_constants
from weft_attribution.core.targets import Target, check_targets, explain, name_targets, resolve_texts
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import InvalidArgumentError
from weft_store.opening import open_store

DIRECTION = tuple(np.random.default_rng(4).normal(size=16).astype(np.float32).tolist())
ASKED = (
    Target(token_id=5),
    Target(token_id=0),
    Target(kind="difference", token_id=5, minus_token_id=0),
    Target(kind="direction", direction=DIRECTION),
    Target(kind="feature", layer=2, index=3),
    Target(kind="feature", layer=0, index=1),
)


def reader(swept: Swept, input_hook: str = "mlp_in") -> TranscoderReader:
    store = open_store("memory://")
    make_transcoder(store, "t", swept.model, input_hook=input_hook)
    return TranscoderReader(store, "t")


@pytest.mark.parametrize("input_hook", ["mlp_in", "resid_mid"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_targets_are_what_autograd_gives(tmp_path: Path, family: str, input_hook: str) -> None:
    """Each source's edge is its inner product with the gradient of the target in the frozen model, written anew."""
    swept = build(tmp_path, family, input_hook=input_hook)
    explained = explain(swept.operator, reader(swept, input_hook), swept.capture.tensors, ASKED)
    swept.targets = make_targets(swept.operator, swept.features, explained)
    edges = swept.edges()[len(swept.features) :]
    model, clean = swept.model, swept.model.streams(IDS)
    tokens, positions = (part.clone().requires_grad_() for part in model.embed(IDS))
    outputs = [clean[f"layers.{i}.mlp_out"].clone().requires_grad_() for i in range(model.num_layers)]
    run = model.run(tokens + positions, held=clean, mlp_out=outputs)
    last = run[f"layers.{model.num_layers - 1}.resid_mid"] + outputs[-1]
    normed = model.norm(last, clean["ln_final.scale"], model.names(0)[2])[-1]
    logits, encoders = run["logits"], swept.tensors
    values = [
        logits[5] - logits.mean(), logits[0] - logits.mean(), logits[5] - logits[0],
        normed @ torch.tensor(DIRECTION, dtype=torch.float64),
        *(run[f"layers.{i}.{input_hook}"][-1] @ encoders[f"W_enc_{i}"][f] + encoders[f"b_enc_{i}"][f]
          for i, f in ((2, 3), (0, 1))),
    ]  # fmt: skip
    count = len(IDS)
    for row, value in enumerate(values):
        np.testing.assert_allclose(explained.value_K[row], value.item(), rtol=1e-9, atol=1e-12)
        grads = torch.autograd.grad(value, [*outputs, tokens], retain_graph=True, materialize_grads=True)
        tokens_T = (grads[-1] * tokens).sum(-1).detach()
        np.testing.assert_allclose(edges[row, -count:], tokens_T, rtol=1e-8, atol=1e-12)
        errors = [(g * swept.features.error_LPD[i]).sum(-1)[1:] for i, g in enumerate(grads[:-1])]
        errors_E = torch.cat(errors).detach()
        np.testing.assert_allclose(edges[row, len(swept.features) : -count], errors_E, rtol=1e-8, atol=1e-12)
        for node in range(0, len(swept.features), 5):
            layer, at, index = (
                int(a[node]) for a in (swept.features.layer_N, swept.features.position_N, swept.features.index_N)
            )
            decoder = encoders[f"W_dec_{layer}"][index]
            total = sum(float(grads[k][at] @ decoder[k - layer]) for k in range(layer, model.num_layers))
            expected = float(swept.features.activation_N[node]) * total
            np.testing.assert_allclose(edges[row, node], expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(edges[2], edges[0] - edges[1], rtol=1e-9, atol=1e-12)
    constant = target_constants(swept.operator, swept.targets, swept.features.constant_LPD)[len(swept.features) :]
    np.testing.assert_allclose(edges.sum(axis=1) + constant.numpy(), explained.value_K, rtol=1e-9, atol=1e-11)


@pytest.fixture
def runner(tmp_path: Path) -> ReferenceRunner:
    return ReferenceRunner(ReferenceModel(make_reference_folder(tmp_path / "model", "llama")))


async def test_texts_are_tokens_that_follow_the_prompt(runner: ReferenceRunner) -> None:
    """A text is the first token that it adds; names are tokens' texts, and ids beyond the vocabulary for the rest."""
    tokens = await runner.tokenize("tiny", "ab")
    asked = (Target(text="xy"), Target(kind="difference", text="x", minus_text="z"), ASKED[3], ASKED[4])
    found = await resolve_texts(runner, "tiny", "ab", tokens, asked)
    x, z = ord("x") % 40, ord("z") % 40
    assert [(each.token_id, each.minus_token_id) for each in found[:2]] == [(x, 0), (x, z)]
    named = await name_targets(runner, runner.info, found)
    assert [token.id for token in named] == [x, 41, 42, 43]
    assert [token.text for token in named] == [f"t{x}", f"t{x}−t{z}", "direction 2", "feature 2_3"]


async def test_texts_that_change_the_prompts_tokens_are_refused(runner: ReferenceRunner) -> None:
    """Where the prompt's last token would be another with the text behind it, there is no token to explain."""

    async def merging(model: str, text: str) -> tuple[Token, ...]:
        return (Token(1, "a"), Token(2, text[1:]))

    tokens = await runner.tokenize("tiny", "ab")
    runner.tokenize = merging  # type: ignore[method-assign]
    with pytest.raises(InvalidArgumentError, match="follow the prompt"):
        await resolve_texts(runner, "tiny", "ab", tokens, [Target(text="c")])


@pytest.mark.parametrize(
    "target",
    [
        Target(token_id=40),
        Target(kind="difference", token_id=1, minus_token_id=-1),
        Target(kind="difference", token_id=1, minus_token_id=1),
        Target(kind="direction", direction=DIRECTION[:3]),
        Target(kind="direction", direction=(0.0,) * 16),
        Target(kind="direction", direction=(float("nan"),) * 16),
        Target(kind="feature", layer=3, index=0),
        Target(kind="feature", layer=-1, index=0),
        Target(kind="feature", layer=0, index=10**6),
        Target(token_id=1, weight=-1.0),
        Target(token_id=1, weight=float("inf")),
    ],
)
def test_bad_targets_are_refused(tmp_path: Path, runner: ReferenceRunner, target: Target) -> None:
    """What is not there, or no number, is refused by its place in the request."""
    transcoder = reader(build(tmp_path, "llama"))
    check_targets(ASKED, runner.info, transcoder)
    with pytest.raises(InvalidArgumentError, match=r"spec\.targets\[1\]"):
        check_targets([Target(token_id=7), target], runner.info, transcoder)
    with pytest.raises(InvalidArgumentError, match="twice"):
        check_targets([ASKED[2], ASKED[2]], runner.info, transcoder)


@pytest.mark.parametrize(
    "target",
    [*ASKED, Target(text=" Paris", label="the capital", weight=0.5),
     Target(kind="difference", text="a", minus_text="b"), Target(kind="difference", text="a", minus_token_id=0)],
)  # fmt: skip
def test_targets_survive_messages(target: Target) -> None:
    """A target that was asked for is told as it was asked for."""
    assert target_from_proto(target_to_proto(target), 0) == target


def test_targets_that_are_not_whole_are_refused() -> None:
    """An empty target, an empty text and a difference of one token say what is missing."""
    half = targets_pb2.TokenDifference(token_id=3)
    for message in (targets_pb2.Target(), targets_pb2.Target(text=""), targets_pb2.Target(difference=half)):
        with pytest.raises(InvalidArgumentError, match=r"spec\.targets\[7\]"):
            target_from_proto(message, 7)


def test_explained_position_is_a_shorter_prompt(tmp_path: Path) -> None:
    """Nothing that a model does at a position depends on what follows, so that cutting it off explains the position."""
    model = ReferenceModel(make_reference_folder(tmp_path / "model", "gpt2"))
    whole, cut = model.streams(IDS), model.streams(IDS[:4])
    for name, value in cut.items():
        if name != "logits":
            there = whole[name][:, :4, :4] if name.endswith("pattern") else whole[name][:4]
            torch.testing.assert_close(value, there, rtol=1e-10, atol=1e-12)


def test_events_loop_is_not_needed_for_no_texts(runner: ReferenceRunner) -> None:
    """Targets without texts stay as they are."""
    assert asyncio.run(resolve_texts(runner, "tiny", "ab", (), ASKED)) == ASKED
