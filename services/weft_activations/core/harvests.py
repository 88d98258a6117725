"""Asks for harvests, and tells how they stand."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from weft_activations.core.harvest_records import (
    HarvestProgress,
    HarvestRecord,
    HarvestRecords,
    HarvestSpec,
    StreamPair,
)
from weft_activations.core.hooks import INPUT_HOOKS, OUTPUT_HOOKS
from weft_activations.core.inference import Inference
from weft_activations.core.leases import LeaseBoard
from weft_activations.core.left_out import LeftOut
from weft_activations.core.packing import check_packing
from weft_activations.core.plan import Lease
from weft_activations.core.planning import HarvestPlanner, Planned
from weft_activations.core.ports import DatasetCatalog, DatasetSpec, ModelInfo, Split
from weft_activations.core.sequences import Sequences, harvested_sequences
from weft_common.errors import AlreadyExistsError, InvalidArgumentError
from weft_common.resource_names import check_id
from weft_store.port import ObjectStore
from weft_store.shard import CodecSpec

__all__ = ["Harvests"]

_MAX_HELD_OUT_SHARE = 0.5
_MAX_PAIRS = 8


class Harvests:
    """
    Creates and describes harvests.

    Args:
        store: The bucket.
        catalog: Where datasets are created.
        inference: Describes models.
        planner: Says what a harvest would read.
        max_lease_bytes: Most memory that the activations of one lease may take.
        versions: Of weft and what it runs models with, for lineage.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        catalog: DatasetCatalog,
        inference: Inference,
        planner: HarvestPlanner,
        *,
        max_lease_bytes: int = 1 << 30,
        versions: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._inference = inference
        self._planner = planner
        self._max_lease_bytes = max_lease_bytes
        self._versions = dict(versions or {})
        self._clock = clock
        self._records = HarvestRecords(store, clock)
        self._boards: dict[str, LeaseBoard] = {}

    async def check(self, harvest_id: str, spec: HarvestSpec) -> Planned:
        """
        Check everything about a request and change nothing.

        Raises:
            InvalidArgumentError: A value is out of range, or there is no such hook.
            NotFoundError: No such model or corpus.
            AlreadyExistsError: The harvest or the dataset is there, and is another one.
            FailedPreconditionError: The corpus is too small.
        """
        check_id(harvest_id, field="harvest_id")
        for number, pair in enumerate(spec.pairs):
            check_id(pair.dataset, field=_pair_field(number, "dataset"))
        info = await self._inference.describe(spec.model)
        _check_spec(spec, info, self._max_lease_bytes)
        planned = await self._planner.plan(spec)
        there = await asyncio.to_thread(self._records.find, harvest_id)
        if there is not None and there.spec != spec:
            raise _other_harvest(harvest_id)
        if there is None:
            for number, pair in enumerate(spec.pairs):
                await asyncio.to_thread(self._records.check_claim, pair.dataset, harvest_id)
                found = await self._catalog.find_dataset(pair.dataset)
                if found is not None:
                    is_alike = _is_alike(found[0], spec, pair, planned)
                    how = "is there already" if is_alike else "is there already with another spec"
                    raise AlreadyExistsError(
                        f"datasets/{pair.dataset} {how}; choose another dataset id or delete it first",
                        field=_pair_field(number, "dataset"),
                    )
        return planned

    async def create(self, harvest_id: str, spec: HarvestSpec, request_id: str) -> HarvestRecord:
        """
        Write a harvest down; the same request again finds the one that is there.

        Raises:
            WeftError: As `check`.
        """
        planned = await self.check(harvest_id, spec)
        record = HarvestRecord(
            harvest_id=harvest_id,
            spec=spec,
            request_id=request_id,
            create_s=self._clock(),
            attempt=1,
            model_revision=planned.info.revision,
            corpus_digest=planned.corpus_digest,
            plan_digest=planned.plan.digest,
            num_leases=len(planned.plan.leases),
            num_tokens=sum(lease.num_tokens for lease in planned.plan.leases),
            corpus_broken_records=planned.num_broken,
            versions=self._versions,
        )
        there = await asyncio.to_thread(self._records.create, record)
        if there.spec != spec:
            raise _other_harvest(harvest_id)
        return there

    async def next_attempt(self, record: HarvestRecord) -> HarvestRecord:
        """Begin another attempt at a harvest whose last one ended without success."""

        def change(there: HarvestRecord) -> HarvestRecord:
            if there.attempt != record.attempt:
                return there
            return replace(there, attempt=record.attempt + 1, paused=False)

        return await asyncio.to_thread(self._records.change, record.harvest_id, change)

    async def set_paused(self, harvest_id: str, paused: bool) -> None:
        """Have all replicas take no more leases of a harvest, or take them again."""
        await asyncio.to_thread(self._records.change, harvest_id, lambda there: replace(there, paused=paused))

    async def get(self, harvest_id: str) -> HarvestProgress:
        """Tell how a harvest stands. NotFoundError."""
        check_id(harvest_id, field="name")
        return await asyncio.to_thread(self._progress, harvest_id)

    async def sequences(self, dataset: str, split: Split, max_tokens: int) -> Sequences:
        """
        Work out again what a dataset was harvested from; see `harvested_sequences`.

        Raises:
            NotFoundError: No harvest wrote the dataset.
            FailedPreconditionError: The model or the corpus is no longer what was harvested.
            InvalidArgumentError: `max_tokens` is below 0.
        """
        if max_tokens < 0:
            raise InvalidArgumentError(f"max_tokens is {max_tokens}; give 0 for all, or more", field="max_tokens")
        record = await asyncio.to_thread(self._records.writer_of, dataset)
        planned = await self._planner.plan(record.spec)
        return await asyncio.to_thread(self._sequences, record, planned, split, max_tokens)

    def _sequences(self, record: HarvestRecord, planned: Planned, split: Split, max_tokens: int) -> Sequences:
        kept = LeftOut(self._store, record.harvest_id)
        done = {lease.index: lease for lease in self._board(record).refresh()} if record.mean_norms else {}

        def left_out(lease: Lease) -> Seq[npt.NDArray[np.int64]] | None:
            if not record.spec.max_norm_ratio:
                return kept.positions(lease, 0)
            return kept.positions(lease, done[lease.index].num_skipped) if lease.index in done else None

        return harvested_sequences(record, planned, split, max_tokens, left_out)

    async def list(self) -> list[HarvestRecord]:
        """List all harvests."""
        return await asyncio.to_thread(lambda: [self._records.get(harvest_id) for harvest_id in self._records.ids()])

    def _progress(self, harvest_id: str) -> HarvestProgress:
        record = self._records.get(harvest_id)
        return HarvestProgress.of(record, self._board(record).refresh())

    def _board(self, record: HarvestRecord) -> LeaseBoard:
        # Leases that are done stay so; a board remembers them, so that only the others are read again.
        there = self._boards.get(record.harvest_id)
        made = there or LeaseBoard(self._store, record.harvest_id, record.num_leases, "")
        return self._boards.setdefault(record.harvest_id, made)


def _is_alike(there: DatasetSpec, spec: HarvestSpec, pair: StreamPair, planned: Planned) -> bool:
    """Whether a dataset is of the same things; which harvest made it, and with what versions, is not asked."""
    return there == spec.dataset_spec(pair, planned.info, planned.corpus_digest, there.lineage)


def _pair_field(number: int, name: str) -> str:
    """
    Say where in a request something of a pair stands.

    >>> _pair_field(0, "dataset"), _pair_field(2, "dataset")
    ('spec.dataset', 'spec.also[1].dataset')
    """
    return f"spec.{name}" if number == 0 else f"spec.also[{number - 1}].{name}"


def _other_harvest(harvest_id: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"harvests/{harvest_id} is there and was asked for otherwise; choose another id", field="harvest_id"
    )


def _check_pairs(spec: HarvestSpec, info: ModelInfo) -> None:
    if len(spec.pairs) > _MAX_PAIRS:
        raise InvalidArgumentError(
            f"{len(spec.also)} further pairs of streams were given; give {_MAX_PAIRS - 1} at most", field="spec.also"
        )
    for number, pair in enumerate(spec.pairs):
        for name, hook, among in (
            ("streams.input_hook", pair.input_hook, INPUT_HOOKS),
            ("streams.output_hook", pair.output_hook, OUTPUT_HOOKS),
        ):
            field = _pair_field(number, name)
            if hook not in among:
                raise InvalidArgumentError(
                    f"there is no hook {hook!r} here; expected {' or '.join(among)}", field=field
                )
            if f"layers.*.{hook}" not in info.components:
                raise InvalidArgumentError(
                    f"{info.model_id} has no {hook}: its attention and MLP read the same stream; take another hook",
                    field=field,
                )
        if any(pair.dataset == other.dataset for other in spec.pairs[:number]):
            raise InvalidArgumentError(
                f"datasets/{pair.dataset} is named twice; every pair of streams goes to a dataset of its own",
                field=_pair_field(number, "dataset"),
            )


def _check_spec(spec: HarvestSpec, info: ModelInfo, max_lease_bytes: int) -> None:
    CodecSpec(spec.codec, spec.target_fvu)
    _check_pairs(spec, info)
    if spec.num_tokens < 1:
        raise InvalidArgumentError(
            f"num_tokens is {spec.num_tokens}; a harvest reads 1 token at least", field="spec.num_tokens"
        )
    if not 0 <= spec.held_out_share <= _MAX_HELD_OUT_SHARE:
        raise InvalidArgumentError(
            f"held_out_share is {spec.held_out_share}; give 0 to {_MAX_HELD_OUT_SHARE}", field="spec.held_out_share"
        )
    if not 2 <= spec.sequence_tokens <= info.max_tokens:
        raise InvalidArgumentError(
            f"sequence_tokens is {spec.sequence_tokens}; give 2 to {info.max_tokens}, "
            f"the most that {info.model_id} takes",
            field="spec.sequence_tokens",
        )
    check_packing(spec.packing, info)
    if info.bos_token_id is not None and spec.sequence_tokens < 3:
        raise InvalidArgumentError(
            f"sequence_tokens is {spec.sequence_tokens}; {info.model_id} has a start token, so give 3 at least",
            field="spec.sequence_tokens",
        )
    if not math.isfinite(spec.max_norm_ratio) or (spec.max_norm_ratio != 0 and spec.max_norm_ratio <= 1):
        raise InvalidArgumentError(
            f"max_norm_ratio is {spec.max_norm_ratio}; give more than 1, or 0 to keep every token",
            field="spec.max_norm_ratio",
        )
    sequence_bytes = len(spec.hooks) * 4 * info.num_layers * info.d_model * (spec.sequence_tokens - 1)
    most = max(1, max_lease_bytes // sequence_bytes)
    if not 1 <= spec.lease_sequences <= most:
        raise InvalidArgumentError(
            f"lease_sequences is {spec.lease_sequences}; give 1 to {most}, so that one lease of {info.model_id} fits "
            f"into {max_lease_bytes} bytes",
            field="spec.lease_sequences",
        )
