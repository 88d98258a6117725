"""
Which examples explain a feature and which ones score it.

What a window's sequence begins with alone decides on which side it is, so that a label is never scored on a text that
it was made from: not by another run, not with another index of the same sequences, not where a sequence stands in a
corpus twice, nor where two windows overlap.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weft_attribution.core.feature_ports import Examples, ExampleSource, Window
from weft_attribution.core.interpretation.ports import Texts
from weft_attribution.core.labels import Place
from weft_common.token_texts import run_texts

__all__ = ["MARKED_SHARE", "Shown", "explaining", "held_out", "is_held_out", "marked", "quiet", "seeded", "shown"]

# A token is marked from this share of its window's peak on.
MARKED_SHARE = 0.3


@dataclass(frozen=True)
class Shown:
    """
    A window with its text.

    Args:
        window: The window.
        texts: Text of each of its tokens; of a character that tokens share, see `run_texts`.
    """

    window: Window
    texts: tuple[str, ...]


def is_held_out(window: Window) -> bool:
    """Whether a window scores; about half of all texts do, and the others explain. Without a mark, by its tokens."""
    text = window.sequence_mark or ",".join(map(str, window.token_ids))
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 1


def explaining(examples: Examples, count: int) -> list[Window]:
    """Up to `count` windows to explain with, as many of each quantile as there are, strongest quantile first."""
    return _by_turns([each for each in examples.by_quantile if not is_held_out(each)], count)


def held_out(examples: Examples, count: int) -> list[Window]:
    """The same of those that score."""
    return _by_turns([each for each in examples.by_quantile if is_held_out(each)], count)


def quiet(source: ExampleSource, place: Place, count: int) -> list[Window]:
    """Up to `count` windows in which the feature is silent; nothing is explained with them."""
    return _distinct(source.quiet(place.layer, place.index, count))[:count]


def marked(window: Window) -> list[bool]:
    """Which tokens are active, from a share of the window's peak on."""
    peak = max(window.activations, default=0.0)
    return [value > 0 and value >= MARKED_SHARE * peak for value in window.activations]


def seeded(*parts: object) -> random.Random:
    """Chance that is the same each time for the same parts."""
    text = "/".join(map(str, parts))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))  # noqa: S311


async def shown(windows: Sequence[Window], texts: Texts) -> list[Shown]:
    """Read the windows' text."""
    ids = sorted({token for window in windows for token in window.token_ids})
    piece_of = dict(zip(ids, await texts(ids), strict=True)) if ids else {}
    return [
        Shown(window, run_texts([piece_of[token] for token in window.token_ids], window.activations))
        for window in windows
    ]


def _distinct(windows: Iterable[Window]) -> list[Window]:
    return list({window.token_ids: window for window in windows}.values())


def _by_turns(windows: Sequence[Window], count: int) -> list[Window]:
    """Up to `count` windows, one quantile after the other, strongest first, and the same again."""
    quantiles: dict[int, list[Window]] = defaultdict(list)
    for window in _distinct(windows):
        quantiles[window.quantile].append(window)
    order = sorted(quantiles, reverse=True)
    found: list[Window] = []
    turn = 0
    while len(found) < count and any(turn < len(quantiles[quantile]) for quantile in order):
        found += [quantiles[quantile][turn] for quantile in order if turn < len(quantiles[quantile])]
        turn += 1
    return found[:count]
