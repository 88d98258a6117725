"""Generated tokens against transformers' own generation and passes over the whole text."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.changing import Change, ChangeKind, Prompt
from weft_activations.core.generating import End, Generated, Generation, Sampling
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Freeze, Intervention, InterventionKind
from weft_common.errors import InvalidArgumentError, ResourceExhaustedError

IDS = [280, 283, 264, 273, 302, 290, 276]
PROMPT = Prompt(token_ids=tuple(IDS))
# Keys and values of a token of the llama made here, float32: 2 layers, 2 heads of 8.
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4


async def generated(
    generation: Generation, sampling: Sampling, *changes: Change, model: str = "llama"
) -> list[Generated]:
    return [each async for each in generation.generate(model, PROMPT, changes, sampling)]


def ids_of(found: list[Generated]) -> list[int]:
    return [each.likely.token.token_id for each in found]


@pytest.mark.parametrize("family", FAMILIES)
async def test_greedy_tokens_are_transformers_own(inference: Inference, models_dir: Path, family: str) -> None:
    """Without changes, the tokens are those of transformers' generate, past a sliding window too."""
    own = AutoModelForCausalLM.from_pretrained(models_dir / family, attn_implementation="eager").eval()
    with torch.no_grad():
        # Without a cache and token by token: nothing is shared with what is tested.
        expected = list(IDS)
        for _ in range(6):
            expected.append(int(own(torch.tensor([expected]), use_cache=False).logits[0, -1].argmax()))
    found = await generated(Generation(inference, max_bytes=1 << 20), Sampling(6), model=family)
    assert ids_of(found) == expected[len(IDS) :]
    assert [each.end for each in found] == [None] * 5 + [End.LENGTH]
    assert [token.token_id for token in found[0].prompt] == IDS
    assert not found[1].prompt


async def test_steering_goes_on_at_generated_tokens(inference: Inference, backend: TransformersBackend) -> None:
    """Each token is what a pass over the whole text says, changed everywhere, or at the prompt's positions alone."""
    value = np.random.default_rng(0).normal(size=32).astype(np.float32) * 2
    for positions in ((), (1, 3)):
        change = Change("layers.0.resid_post", ChangeKind.ADD, positions, value=value)
        found = await generated(Generation(inference, max_bytes=1 << 20), Sampling(5), change)
        text = list(IDS)
        for each in found:
            made = Intervention(0, "resid_post", InterventionKind.ADD, positions, value)
            logits = backend.forward("llama", text, ["logits"], [made])["logits"]
            assert each.likely.token.token_id == int(logits.argmax())
            assert each.likely.logit == pytest.approx(float(logits.max()), abs=1e-4)
            text.append(each.likely.token.token_id)


async def test_value_for_every_position_stays_at_the_prompt(inference: Inference) -> None:
    """A patch of the whole prompt does not reach into what is generated, whose positions the source does not have."""
    source = Prompt(token_ids=tuple(reversed(IDS)))
    generation = Generation(inference, max_bytes=1 << 20)
    everywhere = await generated(generation, Sampling(4), Change("embed", ChangeKind.PATCH, source=source))
    named = Change("embed", ChangeKind.PATCH, tuple(range(7)), source=source)
    assert ids_of(everywhere) == ids_of(await generated(generation, Sampling(4), named))


async def test_seed_decides_and_draws_follow_the_models_probabilities(inference: Inference) -> None:
    """One seed gives one text; over many seeds tokens come as often as the softmax at that temperature says."""
    generation = Generation(inference, max_bytes=1 << 20)
    sampling = Sampling(3, temperature=0.8, seed=5)
    assert ids_of(await generated(generation, sampling)) == ids_of(await generated(generation, sampling))
    run = await inference.run("llama", PROMPT, (), Freeze(), num_top_tokens=3, asked_token_ids=())
    top = [likely.token.token_id for likely in run.top]
    weights = np.exp(np.array([likely.logit for likely in run.top], dtype=np.float64) / 0.5)
    drawn = [
        ids_of(await generated(generation, Sampling(1, temperature=0.5, top_k=3, seed=seed)))[0] for seed in range(200)
    ]
    assert set(drawn) <= set(top)
    for token_id, share in zip(top, weights / weights.sum(), strict=True):
        # Five standard deviations of a binomial share of 200.
        assert abs(drawn.count(token_id) / 200 - share) <= 5 * np.sqrt(share * (1 - share) / 200)


async def test_generation_ends_at_a_stop_token(inference: Inference) -> None:
    """The stop token is the last one."""
    generation = Generation(inference, max_bytes=1 << 20)
    plain = ids_of(await generated(generation, Sampling(4)))
    found = await generated(generation, Sampling(4, stop_token_ids=(plain[1],)))
    last = plain.index(plain[1])
    assert ids_of(found) == plain[: last + 1]
    assert found[-1].end is End.STOP


async def test_what_all_generations_keep_is_bounded_and_freed(inference: Inference) -> None:
    """A second one that does not fit is refused while the first runs; leaving the first frees its share."""
    generation = Generation(inference, max_bytes=TOKEN_BYTES * 30)
    first: Any = generation.generate("llama", PROMPT, (), Sampling(20))
    async with aclosing(first):
        await anext(first)
        assert generation.kept_bytes == TOKEN_BYTES * 27
        with pytest.raises(ResourceExhaustedError, match=f"keep {TOKEN_BYTES * 8} bytes, and others"):
            await generated(generation, Sampling(1))
    assert generation.kept_bytes == 0
    await generated(generation, Sampling(1))


async def test_cancelled_while_it_waits_for_the_thread_does_not_run(
    inference: Inference, backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits behind other work and is cancelled never reaches the model, and keeps nothing."""
    import threading

    go_on, steps = threading.Event(), []
    plain = backend.decoding

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(backend, "decoding", counted)
    generation = Generation(inference, max_bytes=1 << 20)
    blocking = asyncio.create_task(inference.on_model_thread(lambda _: go_on.wait(30)))
    waiting = asyncio.create_task(generated(generation, Sampling(3)))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    assert await blocking
    await inference.describe("llama")
    assert not steps
    assert generation.kept_bytes == 0


@pytest.mark.parametrize(
    ("sampling", "change", "message"),
    [
        (Sampling(0), None, "ask for 1 at least"),
        (Sampling(1, temperature=-1.0), None, "temperature is -1.0"),
        (Sampling(1, top_k=-1), None, "top_k is -1"),
        (Sampling(122), None, "takes 128 together"),
        (Sampling(1), Change("layers.0.attn.pattern", ChangeKind.SCALE), "cannot be changed while generating"),
        (Sampling(1), Change("layers.0.mlp_out", ChangeKind.ABLATE, (7,)), "no position 7"),
    ],
)
async def test_generations_that_cannot_be_are_refused(
    inference: Inference, sampling: Sampling, change: Change | None, message: str
) -> None:
    """Each message says what was wrong."""
    with pytest.raises(InvalidArgumentError, match=message):
        await generated(Generation(inference, max_bytes=1 << 20), sampling, *([change] if change else []))
