"""Batches that are made while the one before is used, as for a GPU: the same tokens, in a second buffer."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numbered_tokens import SIZES, NumberedTokens, normalization
from other_device import DEVICE, Elsewhere, other_device

from weft_clt.data import CodedRowGroup, CodedStream, RowGroup, held_out_batches
from weft_clt.loader import LoaderOptions, TokenLoader
from weft_clt.staging import HostStaging, staging_for
from weft_common.errors import DataLossError, FailedPreconditionError

STEP_TOKENS = 12


class Ahead(HostStaging):
    """Fills the next batch early, and tells how many it has filled."""

    ahead = True

    def __init__(self) -> None:
        super().__init__()
        self.released, self.filled = 0, threading.Semaphore(0)

    def release(self) -> None:
        self.released += 1

    @contextmanager
    def filling(self) -> Iterator[None]:
        yield
        self.filled.release()


def _loader(source: NumberedTokens, staging: HostStaging | None = None, passes: int = 1) -> TokenLoader:
    return TokenLoader(
        source, normalization(), step_tokens=STEP_TOKENS, rank=0, world_size=1,
        options=LoaderOptions(num_streams=3), passes=passes, staging=staging,
    )  # fmt: skip


@pytest.mark.parametrize("passes", [1, 3])
def test_batches_ahead_are_those_of_a_loader_that_waits(passes: int) -> None:
    """Token for token; a checkpoint's state is that of what was drawn, not of what was made ahead."""
    ahead, plain = _loader(NumberedTokens(SIZES), Ahead(), passes), _loader(NumberedTokens(SIZES), passes=passes)
    for _ in range(4 * passes):
        assert torch.equal(ahead.draw().inputs_LOD, plain.draw().inputs_LOD)
        assert ahead.state() == plain.state()
        assert ahead.is_finite()
    ahead.close()


def test_batch_stays_whole_while_the_next_is_made() -> None:
    """Both are there at once, and the buffer of a batch is taken again only after its user has drawn the next."""
    staging = Ahead()
    loader = _loader(NumberedTokens(SIZES), staging)
    for draws in range(1, 6):
        batch = loader.draw()
        before = batch.inputs_LOD.clone()
        for _ in range(2 if draws == 1 else 1):
            assert staging.filled.acquire(timeout=60)
        assert torch.equal(batch.inputs_LOD, before)
        assert staging.released == draws + 1
    loader.close()


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("staging", [None, Ahead()], ids=["host", "ahead"])
def test_loader_that_knows_the_end_does_not_look_past_it(staging: HostStaging | None, passes: int) -> None:
    """The steps are those of one without an end; the next epoch, which only the step after them needs, is not begun."""
    sizes = [8] * 6
    source, plain = Watched(sizes), _loader(NumberedTokens(sizes), passes=passes)
    loader = _loader(source, staging, passes)
    loader.end_after(3)
    for _ in range(3 * passes):
        assert torch.equal(loader.draw().inputs_LOD, plain.draw().inputs_LOD)
        assert loader.is_finite()
    assert {epoch for epoch, _ in source.asked} == {epoch for epoch, _ in source.reads} == {0}
    assert loader.state()["epoch"] == 0
    with pytest.raises(FailedPreconditionError, match="All steps"):
        loader.draw()
    loader.close()
    plain.close()


def test_loader_that_resumes_ends_where_the_run_does() -> None:
    """Of the steps that are left, not of all."""
    loader = _loader(Watched([8, 5, 3, 8]))
    state = loader.state()
    loader.draw()
    loader.restore(state)
    loader.end_after(1)
    loader.draw()
    with pytest.raises(FailedPreconditionError, match="All steps"):
        loader.draw()
    loader.close()


def test_loader_that_is_ahead_resumes_where_it_was() -> None:
    """What had been made ahead is forgotten by a restore, and drawn again."""
    loader = _loader(NumberedTokens(SIZES), Ahead())
    loader.draw()
    state = json.loads(json.dumps(loader.state()))
    drawn = [loader.draw().inputs_LOD.clone() for _ in range(3)]
    loader.restore(state)
    for wanted in drawn:
        assert torch.equal(loader.draw().inputs_LOD, wanted)
    loader.close()


class Watched(NumberedTokens):
    """Remembers which epochs' plans were looked at."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sizes)
        self.asked: set[tuple[int, int]] = set()

    def at(self, epoch: int, position: int) -> RowGroup | None:
        self.asked.add((epoch, position))
        return super().at(epoch, position)


class DamagedLater(NumberedTokens):
    """The fourth row group cannot be read."""

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        if row_group.position == 3:
            raise DataLossError("shard 'x' is damaged")
        return super().read(row_group)


def _sound_draws(loader: TokenLoader) -> int:
    """How many draws there are before the one that fails."""
    try:
        for draws in range(100):  # noqa: B007 - the last one is what is asked
            loader.draw()
    except DataLossError:
        return draws
    finally:
        loader.close()
    raise AssertionError("no draw failed")


def test_damage_is_told_by_the_draw_that_needs_it() -> None:
    """Not by the one before, although its batch is made meanwhile."""
    loader, plain = _loader(DamagedLater(SIZES), Ahead()), _loader(DamagedLater(SIZES))
    assert _sound_draws(loader) == _sound_draws(plain)


def test_host_makes_no_batch_ahead() -> None:
    """There it would cost memory and gain nothing."""
    assert not staging_for(torch.device("cpu")).ahead


class Bits(NumberedTokens):
    """Row groups of bfloat16, as their bits."""

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        values = torch.from_numpy(super().read(row_group).inputs.codes_LTD).bfloat16()
        codes = values.view(torch.int16).numpy().view(np.uint16)
        return CodedRowGroup(CodedStream(codes), CodedStream(codes))


@pytest.mark.parametrize("kind", [NumberedTokens, Bits])
def test_batches_are_made_on_the_device(kind: type[NumberedTokens]) -> None:
    """Codes are moved as they are, and multiplied and shifted there; a training batch and held-out ones alike."""
    wanted = _loader(kind(SIZES)).draw().inputs_LOD
    held_out = next(held_out_batches(kind(SIZES), normalization(), batch_tokens=6, most_tokens=6)).inputs_LOD
    with other_device():
        loader = _loader(kind(SIZES), HostStaging(DEVICE))
        drawn = loader.draw().inputs_LOD
        assert loader.is_finite()
        loader.close()
        evaluated = held_out_batches(kind(SIZES), normalization(), batch_tokens=6, most_tokens=6, device=DEVICE)
        there = next(evaluated).inputs_LOD
        assert isinstance(drawn, Elsewhere)
        assert isinstance(there, Elsewhere)
        assert torch.equal(drawn.cpu(), wanted)
        assert torch.equal(there.cpu(), held_out)
