"""Tokens as text: who is asked, how often, and what is kept."""

import asyncio
from typing import Any

import pytest

from weft_attribution.core import token_texts
from weft_attribution.core.token_texts import TokenTexts


class Runner:
    """Says `t{id}`, one turn of the loop later, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def detokenize(self, model: str, token_ids: list[int]) -> tuple[str, ...]:
        self.asked.append(list(token_ids))
        await asyncio.sleep(0)
        return tuple(f"t{token}" for token in token_ids)


async def test_each_token_is_asked_for_once_and_in_bounded_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated ones come from memory, in the order that is asked for."""
    monkeypatch.setattr(token_texts, "_TOKENS_A_CALL", 2)
    runner: Any = Runner()
    texts = TokenTexts(runner, "m")
    assert await texts([3, 1, 3, 2]) == ("t3", "t1", "t3", "t2")
    assert await texts([2, 4, 1]) == ("t2", "t4", "t1")
    assert await texts.by_id([4, 4]) == {4: "t4"}
    assert runner.asked == [[3, 1], [2], [4]]


async def test_bound_on_what_is_kept_takes_no_text_from_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls side by side each has all of its texts, though what is known was dropped meanwhile."""
    monkeypatch.setattr(token_texts, "_KEPT_TEXTS", 3)
    runner: Any = Runner()
    texts = TokenTexts(runner, "m")
    await texts([0, 1])
    found = await asyncio.gather(*(texts([0, 1, 10 * each, 10 * each + 1]) for each in range(1, 5)))
    assert found == [("t0", "t1", f"t{10 * each}", f"t{10 * each + 1}") for each in range(1, 5)]
    before = len(runner.asked)
    await texts([0])
    assert len(runner.asked) == before + 1
