"""Tokens as bytes: who is asked, how often, what is kept, and what a prompt shows of a run."""

import asyncio
from typing import Any

import pytest

from weft_attribution.core import token_pieces
from weft_attribution.core.feature_ports import Window
from weft_attribution.core.interpretation.examples import marked, seeded, shown
from weft_attribution.core.interpretation.lines import line
from weft_attribution.core.interpretation.scorers import draw_fuzzing
from weft_attribution.core.token_pieces import TokenPieces

TOKYO = [b"in", b" \xe6", b"\x9d\xb1", b"\xe4\xba", b"\xac", b"."]


class Runner:
    """Says `t{id}`, one turn of the loop later, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def pieces(self, model: str, token_ids: list[int]) -> tuple[bytes, ...]:
        self.asked.append(list(token_ids))
        await asyncio.sleep(0)
        return tuple(f"t{token}".encode() for token in token_ids)


async def test_each_token_is_asked_for_once_and_in_bounded_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated ones come from memory, in the order that is asked for."""
    monkeypatch.setattr(token_pieces, "_TOKENS_A_CALL", 2)
    runner: Any = Runner()
    pieces = TokenPieces(runner, "m")
    assert await pieces([3, 1, 3, 2]) == (b"t3", b"t1", b"t3", b"t2")
    assert await pieces([2, 4, 1]) == (b"t2", b"t4", b"t1")
    assert await pieces.by_id([4, 4]) == {4: b"t4"}
    assert runner.asked == [[3, 1], [2], [4]]


async def test_bound_on_what_is_kept_takes_nothing_from_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls side by side each has all of its tokens, though what is known was dropped meanwhile."""
    monkeypatch.setattr(token_pieces, "_KEPT_PIECES", 3)
    runner: Any = Runner()
    pieces = TokenPieces(runner, "m")
    await pieces([0, 1])
    found = await asyncio.gather(*(pieces([0, 1, 10 * each, 10 * each + 1]) for each in range(1, 5)))
    assert found == [(b"t0", b"t1", *(f"t{10 * each + more}".encode() for more in (0, 1))) for each in range(1, 5)]
    before = len(runner.asked)
    await pieces([0])
    assert len(runner.asked) == before + 1


async def test_lines_of_prompts_mark_whole_characters() -> None:
    """A window that is cut through characters is one text in a prompt, with marks around what its tokens share."""

    async def pieces(token_ids: list[int]) -> tuple[bytes, ...]:
        return tuple(TOKYO[token] for token in token_ids)

    window = Window(0, 0, tuple(range(6)), (0.0, 0.0, 4.0, 0.0, 0.0, 0.0), 4.0, 2)
    silent = Window(1, 0, tuple(range(6)), (0.0,) * 6, 0.0, -1)
    texts: Any = pieces
    active, quiet = await shown([window, silent], texts)
    assert line(active.texts, marked(window)) == "in<< 東>>京."
    for seed in range(20):
        (drawn,) = draw_fuzzing([active], [quiet], seeded(seed))
        other = drawn.lines[drawn.truth.index(False)]
        assert other.replace("<<", "").replace(">>", "") == "in 東京."
        assert "<<>>" not in other
        assert other.count("<<") == 1
