"""Batches out of row groups: everything once an epoch, mixed, and resumable at the very token."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from weft_clt.data import RowGroup, TokenPool, held_out_batches
from weft_clt.normalization import Moments, Normalization
from weft_common.errors import FailedPreconditionError

SIZES = [8, 5, 0, 8, 3, 8]


@dataclass
class NumberedTokens:
    """A source whose tokens carry their number: row r of group g has the value 100 g + r in every place."""

    sizes: list[int]
    reads: list[tuple[int, int]] = field(default_factory=list)

    def at(self, epoch: int, position: int) -> RowGroup | None:
        if position >= len(self.sizes):
            return None
        return RowGroup(epoch, position, self.sizes[position], seed=50 * epoch + position, where=position)

    def read(self, row_group: RowGroup) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.reads.append((row_group.epoch, row_group.position))
        numbers = 100 * row_group.position + np.arange(row_group.num_tokens, dtype=np.float32)
        values = np.broadcast_to(numbers[None, :, None], (2, numbers.size, 4)).copy()
        return values, -values


def _normalization() -> Normalization:
    moments = [Moments(2.0, np.zeros(4)), Moments(1.0, np.zeros(4))]
    return Normalization.from_moments(moments, moments)


def _pool(source: NumberedTokens, rank: int = 0) -> TokenPool:
    return TokenPool(source, _normalization(), batch_tokens=4, seed=9, rank=rank, num_row_groups=3)


def _draw(pool: TokenPool) -> list[int]:
    batch = pool.draw()
    assert (batch.targets_LOD == -batch.inputs_LOD).all()
    assert (batch.inputs_LOD[1] == 2 * batch.inputs_LOD[0]).all()  # sqrt(4) / 2 and sqrt(4) / 1
    return [int(value) for value in batch.inputs_LOD[0, :, 0]]


def test_pool_gives_every_token_once_an_epoch() -> None:
    """Two epochs of 32 tokens give each token twice, whatever the sizes of row groups."""
    pool = _pool(NumberedTokens(SIZES))
    drawn = sorted(number for _ in range(16) for number in _draw(pool))
    rest = {100 * position + row for position, size in enumerate(SIZES) for row in range(size)}
    assert set(drawn) == rest
    counts = np.unique(drawn, return_counts=True)[1]
    assert counts.sum() == 64
    assert counts.min() >= 1
    assert counts.max() <= 3


def test_pool_mixes_row_groups() -> None:
    """Batches come from several row groups, not in the order of storage."""
    pool = _pool(NumberedTokens([8, 8, 8, 8]))
    batches = [_draw(pool) for _ in range(6)]
    assert any(len({number // 100 for number in batch}) > 1 for batch in batches)
    assert any(batch != sorted(batch) for batch in batches)
    assert batches != [_draw(other) for other in [_pool(NumberedTokens([8, 8, 8, 8]), rank=1)] for _ in range(6)]


@pytest.mark.parametrize("draws", range(0, 19, 3))
def test_pool_resumes_at_the_very_token(draws: int) -> None:
    """A pool made from a saved state, through JSON, draws what the other one would have drawn."""
    pool = _pool(NumberedTokens(SIZES))
    for _ in range(draws):
        pool.draw()
    resumed = _pool(NumberedTokens(SIZES))
    resumed.restore(json.loads(json.dumps(pool.state())))
    assert [_draw(resumed) for _ in range(8)] == [_draw(pool) for _ in range(8)]


def test_pool_refuses_a_state_of_another_plan() -> None:
    """A row group that is not in the plan is no place to resume from."""
    pool = _pool(NumberedTokens(SIZES))
    pool.draw()
    with pytest.raises(FailedPreconditionError, match="row group 1"):
        _pool(NumberedTokens([8])).restore(pool.state())


def test_pool_refuses_an_empty_share() -> None:
    """A rank without tokens says so instead of waiting for ever."""
    with pytest.raises(FailedPreconditionError, match="no tokens"):
        _pool(NumberedTokens([])).draw()
    with pytest.raises(FailedPreconditionError, match="no tokens"):
        _pool(NumberedTokens([0, 0])).draw()


@pytest.mark.parametrize("most_tokens", [1, 4, 7, 32])
def test_held_out_batches_give_the_first_tokens_once(most_tokens: int) -> None:
    """Tokens come in order up to the limit; then batches are empty."""
    batches = held_out_batches(NumberedTokens(SIZES), _normalization(), batch_tokens=4, most_tokens=most_tokens)
    numbers: list[int] = []
    for _ in range(-(-most_tokens // 4)):
        batch = next(batches)
        numbers += [int(value) for value in batch.inputs_LOD[0, : batch.num_valid, 0]]
    everything = [100 * position + row for position, size in enumerate(SIZES) for row in range(size)]
    assert numbers == everything[:most_tokens]
    assert next(batches).num_valid == 0


def test_normalization_refuses_a_stream_of_zeros() -> None:
    """Nothing can be learnt from it, and nothing may be divided by it."""
    with pytest.raises(FailedPreconditionError, match="layer 1"):
        Normalization.from_moments([Moments(1.0, np.zeros(4)), Moments(0.0, np.zeros(4))], [])
