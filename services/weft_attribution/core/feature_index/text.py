"""
The text that an index goes over: sequences of tokens, what of them a dataset holds, and where windows lie in it.

All sequences stand one after the other; a position counts tokens from the first one on. A dataset's rows are the kept
positions in order. Sequences are cut into tiles of W tokens, of which a feature gets one candidate each, so that its
examples are not all of one sentence.

Legend: P positions, N sequences, W tokens of a window.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.hashing import draw
from weft_common.errors import FailedPreconditionError

__all__ = ["Block", "Span", "Text", "align", "draw_positions", "draw_tiles", "window_starts"]

Array = npt.NDArray[Any]
_POOL = 0x71
_PAIRS = 0x72
_BLOCK_POSITIONS = 1024
_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Span:
    """A shard and the sequences that are read of it: the first `num_rows` of its rows are theirs."""

    key: str
    first_sequence: int
    last_sequence: int
    num_rows: int
    row_group_tokens: int


@dataclass(frozen=True)
class Block:
    """Whole sequences that are worked on together: rows of a span, and positions `low` to `high`."""

    first_row: int
    last_row: int
    low: int
    high: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True)
class Text:
    """
    Sequences as they were harvested.

    Args:
        token_id_P: All tokens.
        start_N: Where each sequence begins; the last entry, of N + 1, is P.
        kept_P: Whether the dataset holds the token.
    """

    token_id_P: Array
    start_N: Array
    kept_P: Array

    @property
    def num_tokens(self) -> int:
        """Tokens that the dataset holds."""
        return int(self.kept_P.sum())

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.start_N) - 1

    def tile_bases(self, window_tokens: int) -> Array:
        """Number of the first tile of each sequence, and of all tiles at the end: [N + 1]."""
        return np.concatenate([[0], np.cumsum(-(-np.diff(self.start_N) // window_tokens))])

    def blocks(self, span: Span) -> Iterator[Block]:
        """Cut a span into blocks: whole sequences, about a thousand positions, the same every time."""
        row, first = 0, span.first_sequence
        while first < span.last_sequence:
            last = first + 1
            while last < span.last_sequence and self.start_N[last + 1] - self.start_N[first] <= _BLOCK_POSITIONS:
                last += 1
            low, high = int(self.start_N[first]), int(self.start_N[last])
            end = row + int(self.kept_P[low:high].sum())
            yield Block(row, end, low, high, first, last)
            row, first = end, last


def window_starts(start_N: Array, position_C: Array, window_tokens: int) -> Array:
    """
    Where the window around each position begins: three quarters before it, all within its sequence.

    >>> window_starts(np.array([0, 100, 104]), np.array([3, 50, 99, 102]), 8).tolist()
    [0, 44, 92, 100]
    """
    sequence_C = np.searchsorted(start_N, position_C, side="right") - 1
    low_C, high_C = start_N[sequence_C], start_N[sequence_C + 1]
    wanted_C = position_C - window_tokens * 3 // 4
    return np.asarray(np.maximum(low_C, np.minimum(wanted_C, high_C - window_tokens)))


def draw_tiles(text: Text, window_tokens: int, count: int, seed: int) -> Array:
    """Tiles for the pool of quiet windows, rising; all their tokens are kept, but for a sequence's first."""
    bases_N = text.tile_bases(window_tokens)
    tiles = np.arange(int(bases_N[-1]))
    sequence = np.searchsorted(bases_N, tiles, side="right") - 1
    low = text.start_N[sequence] + (tiles - bases_N[sequence]) * window_tokens
    high = np.minimum(low + window_tokens, text.start_N[sequence + 1])
    # Tiles lie side by side, so that each ends where the next one begins.
    kept = np.add.reduceat(text.kept_P, low, dtype=np.int32) if len(low) else low
    whole = (kept >= high - low - (tiles == bases_N[sequence])) & (high - low == window_tokens)
    candidates = tiles[whole] if whole.any() else tiles
    order = np.argsort(draw(seed, _POOL, candidates), kind="stable")
    return np.sort(candidates[order[:count]])


def draw_positions(text: Text, count: int, seed: int) -> Array:
    """Kept positions, rising, on which it is counted what is active together."""
    return np.sort(_smallest(count, (np.flatnonzero(kept) + low for low, kept in _pieces(text.kept_P)), seed, _PAIRS))


def _pieces(flags_P: Array) -> Iterator[tuple[int, Array]]:
    for low in range(0, len(flags_P), _DRAWN_AT_ONCE):
        yield low, flags_P[low : low + _DRAWN_AT_ONCE]


def _smallest(count: int, pieces: Iterable[Array], seed: int, what: int) -> Array:
    """Of all numbers those whose draws are the smallest, of equals the first; a piece in memory at a time."""
    kept, drawn = np.zeros(0, np.int64), draw(seed, what, np.zeros(0, np.int64))
    for numbers in pieces:
        kept, drawn = np.concatenate([kept, numbers]), np.concatenate([drawn, draw(seed, what, numbers)])
        order = np.argsort(drawn, kind="stable")[:count]
        # In the order of numbers, so that among equals of the next round the first still comes first.
        order.sort()
        kept, drawn = kept[order], drawn[order]
    return kept


def align(
    sequences: Sequence[Array], skipped: Sequence[Array], shards: Sequence[tuple[str, int, int]], *, cut: bool
) -> tuple[Text, tuple[Span, ...]]:
    """
    Match sequences with the shards that hold them.

    Args:
        sequences: Token ids of each, in the order of the split.
        skipped: Positions of each that are not kept; 0 among them.
        shards: Key, tokens, and tokens of a row group, in order.
        cut: Whether the sequences may end before the shards do.

    Raises:
        FailedPreconditionError: They do not fit each other.
    """
    start_N = np.concatenate([[0], np.cumsum([len(ids) for ids in sequences])]).astype(np.int64)
    kept_P = np.ones(int(start_N[-1]), bool)
    for start, positions in zip(start_N, skipped, strict=False):
        kept_P[start + np.asarray(positions, np.int64)] = False
    token_id_P = np.concatenate(sequences).astype(np.uint32) if len(sequences) else np.zeros(0, np.uint32)
    rows_N = np.concatenate([[0], np.cumsum(kept_P)])[start_N]
    spans, row, sequence = [], 0, 0
    for key, num_tokens, row_group_tokens in shards:
        if sequence == len(sequences):
            break
        wanted = row + num_tokens
        last = int(np.searchsorted(rows_N, wanted, side="right")) - 1
        ends_early = last == len(sequences) and rows_N[last] < wanted
        if (rows_N[last] != wanted and not (cut and ends_early)) or (last == sequence and num_tokens):
            raise FailedPreconditionError(
                f"shard {key} has {num_tokens} tokens, which is no whole number of the sequences that the activations "
                "service says it was harvested from; harvest the dataset again"
            )
        if last > sequence:
            spans.append(Span(key, sequence, last, int(rows_N[last] - row), row_group_tokens))
        row, sequence = wanted, last
    if sequence < len(sequences):
        raise FailedPreconditionError(
            f"the dataset has {row} tokens, the sequences it was harvested from {int(rows_N[-1])}; harvest it again"
        )
    return Text(token_id_P, start_N, kept_P), tuple(spans)
