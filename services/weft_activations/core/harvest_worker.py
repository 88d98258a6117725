"""
One replica's share of a harvest: take a lease, read it, put its shard, commit it, mark the lease; seal at the end.

Dying between any two of these loses nothing and doubles nothing: a shard counts once its commit is in the catalog, the
first commit of an index wins, and a lease that is not marked is read again. While one lease is put, the next one is
already in the model; where the model has a device of its own, also while one is encoded.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from weft_activations.core.harvest_records import (
    HarvestProgress,
    HarvestRecord,
    HarvestRecords,
    HarvestSpec,
    StreamPair,
)
from weft_activations.core.inference import Inference
from weft_activations.core.lease_rows import Rows
from weft_activations.core.leases import LeaseBoard
from weft_activations.core.left_out import LeftOut
from weft_activations.core.metrics import (
    ANOTHER_WAS_FIRST,
    EXTRACT_INCOMPLETE,
    EXTRACT_TOKENS,
    incomplete_reason,
)
from weft_activations.core.plan import HarvestPlan, Lease
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import CommittedShard, DatasetCatalog, Floats, ModelInfo, Split
from weft_common.errors import AlreadyExistsError, FailedPreconditionError, WeftError
from weft_common.logging import get_logger
from weft_store.port import ObjectStore
from weft_store.shard import Bases, Basis, CodecSpec, EncodedBlocks, basis_key, encode_blocks, learn_basis

__all__ = ["HarvestWorker"]

_LOG = get_logger(__name__)
_ROW_GROUP_TOKENS = 256
# One takes the memory of half as many tokens as d_model has channels.
_KEPT_BASES = 2
# Of one turn on the models' thread: about what a capture may have to wait for.
_TURN_TOKENS = 2048
_NORM_SEQUENCES = 8
_ENCODING_THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")


@dataclass(frozen=True)
class _Coded:
    """
    A lease without its rows.

    Attributes:
        num_tokens: That were kept.
        left_out: Which of those that the packing keeps were left out for their norm, rising.
        shards: By the place of a pair what is to be put, with its key, or what somebody had committed before; each is
            taken out when its turn comes.
    """

    num_tokens: int
    left_out: npt.NDArray[np.intp]
    shards: dict[int, tuple[str, EncodedBlocks] | CommittedShard]


class HarvestWorker:
    """
    Works on harvests until they are done.

    Args:
        store: The bucket.
        catalog: Takes the shards.
        inference: Runs the model.
        planner: Works out which sequences there are.
        owner: Unique to this process.
        lease_s: How long a lease holds without a sign of life.
        poll_s: Wait between looks at leases that others hold.
        patience_s: How long a catalog or bucket that cannot be reached is waited for.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        catalog: DatasetCatalog,
        inference: Inference,
        planner: HarvestPlanner,
        *,
        owner: str,
        lease_s: float = 20.0,
        poll_s: float = 0.5,
        patience_s: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._inference = inference
        self._planner = planner
        self._records = HarvestRecords(store, clock)
        self._owner = owner
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._patience_s = patience_s
        self._clock = clock
        self._bases: dict[str, Basis] = {}

    async def run(self, harvest_id: str, report: Callable[[HarvestProgress], Awaitable[None]]) -> HarvestProgress:
        """
        Take leases until the harvest's dataset is sealed, by this replica or another; none while it is paused.

        Raises:
            FailedPreconditionError: The model or the corpus is no longer what the harvest was planned with.
        """
        record = await self._threaded(lambda: self._records.get(harvest_id))
        board = LeaseBoard(
            self._store, harvest_id, record.num_leases, self._owner, lease_s=self._lease_s, clock=self._clock
        )
        while not record.sealed:
            if record.paused:
                await asyncio.sleep(self._poll_s)
            elif await self._harvest(record, board, report):
                record = await self._seal(record)
                break
            record = await self._threaded(lambda: self._records.get(harvest_id))
        return HarvestProgress.of(record, await self._threaded(board.refresh))

    async def _harvest(
        self, record: HarvestRecord, board: LeaseBoard, report: Callable[[HarvestProgress], Awaitable[None]]
    ) -> bool:
        """Take leases until all are done, True, or somebody pauses the harvest, False; then none is held here."""
        planned = await self._planner.plan(record.spec)
        plan, info = planned.plan, planned.info
        for what, wanted, found in (
            ("model", record.model_revision, info.revision),
            ("corpus", record.corpus_digest, planned.corpus_digest),
            ("plan", record.plan_digest, plan.digest),
        ):
            if wanted != found:
                raise FailedPreconditionError(
                    f"harvests/{record.harvest_id} was planned with {what} {wanted[:16]}, this replica has "
                    f"{found[:16]}; give every replica the same model folder and weft version, or start a new harvest"
                )
        await self._open_datasets(record, info)
        record = await self._with_mean_norms(record, plan, info)
        held: set[int] = set()
        beating = asyncio.create_task(self._beat(board, held))
        storing: asyncio.Task[None] | None = None
        order = plan.order
        room = max((lease.num_rows for lease in plan.leases), default=0)
        # With one place a lease is read once the one before is encoded: both want all processors, and a pass whose
        # operations all of them share waits after each for the one that encodes.
        on_processor = await self._inference.on_model_thread(lambda backend: backend.on_processor)
        spare: asyncio.Queue[Rows] = asyncio.Queue()
        for _ in range(1 if on_processor else 2):
            spare.put_nowait(Rows.with_room(record.spec, info, room))
        try:
            while True:
                rows = await spare.get()
                if storing is not None and storing.done():
                    # What failed is told before another lease is taken.
                    await storing
                    storing = None
                is_paused = (await self._threaded(lambda: self._records.get(record.harvest_id))).paused
                index = None if is_paused else await self._threaded(lambda: board.take(order))
                if index is None:
                    spare.put_nowait(rows)
                    if storing is not None:
                        await storing
                        storing = None
                        continue
                    await report(HarvestProgress.of(record, await self._threaded(board.refresh)))
                    if is_paused or board.all_done():
                        return board.all_done()
                    await asyncio.sleep(self._poll_s)
                    continue
                held.add(index)
                await self._read(record, plan.leases[index], rows)
                if storing is not None:
                    await storing
                storing = asyncio.create_task(
                    self._store_rows(record, plan.leases[index], rows, spare, board, held, report)
                )
        except BaseException as error:
            if held:
                EXTRACT_INCOMPLETE.labels(incomplete_reason(error)).inc(len(held))
            raise
        finally:
            beating.cancel()
            if storing is not None:
                storing.cancel()
            await asyncio.gather(beating, *([storing] if storing else []), return_exceptions=True)
            with suppress(WeftError):
                await asyncio.to_thread(board.give_up, tuple(held))

    async def _open_datasets(self, record: HarvestRecord, info: ModelInfo) -> None:
        """Claim all datasets before one is created, so that a name that is taken leaves nothing behind."""
        for pair in record.spec.pairs:
            claim = partial(self._records.claim_dataset, pair.dataset, record.harvest_id)
            await self._threaded(claim)
        for pair in record.spec.pairs:
            spec = record.spec.dataset_spec(pair, info, record.corpus_digest, record.lineage)
            await self._patiently(partial(self._catalog.create_dataset, pair.dataset, spec))

    async def _beat(self, board: LeaseBoard, held: set[int]) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            try:
                await asyncio.to_thread(board.extend, tuple(held))
            except WeftError as error:
                _LOG.warning("leases could not be extended", error=error.message)

    async def _with_mean_norms(self, record: HarvestRecord, plan: HarvestPlan, info: ModelInfo) -> HarvestRecord:
        """Measure the mean output norms on the first training sequences, unless a replica has done so already."""
        if not record.spec.max_norm_ratio or record.mean_norms is not None:
            return record
        sequences = [sequence for lease in plan.leases if lease.split is Split.TRAIN for sequence in lease.sequences]
        lease = Lease(0, Split.TRAIN, sequences[:_NORM_SEQUENCES])
        rows = Rows.with_room(record.spec, info, lease.num_rows)
        await self._run(record.spec, lease, rows)
        norms_LT = await asyncio.to_thread(rows.output_norms)
        means = tuple(float(mean) for mean in norms_LT.mean(1, dtype=np.float64))
        return await self._threaded(lambda: self._records.set_mean_norms(record.harvest_id, means))

    async def _read(self, record: HarvestRecord, lease: Lease, rows: Rows) -> None:
        await self._run(record.spec, lease, rows)
        if record.mean_norms is not None:
            await asyncio.to_thread(rows.leave_out, record.spec.max_norm_ratio * np.asarray(record.mean_norms))

    async def _run(self, spec: HarvestSpec, lease: Lease, rows: Rows) -> None:
        """Run a lease in turns of some sequences each, so that other calls come in between."""
        rows.num_tokens, rows.left_out = 0, rows.left_out[:0]
        left = lease.turns(_TURN_TOKENS)
        while left:
            start = rows.num_tokens
            rows.num_tokens = lease.num_rows
            into = {hook: rows.kept(hook)[:, start:] for hook in spec.hooks}
            num_run = await self._inference.streams(spec.model, left, into)
            rows.num_tokens = start + sum(len(ids) - 1 for turn in left[:num_run] for ids in turn)
            left = left[num_run:]
        if lease.num_tokens < lease.num_rows:
            kept_T = np.concatenate([sequence.kept() for sequence in lease.sequences])
            await asyncio.to_thread(rows.keep, kept_T)

    async def _store_rows(
        self,
        record: HarvestRecord,
        lease: Lease,
        rows: Rows,
        spare: "asyncio.Queue[Rows]",
        board: LeaseBoard,
        held: set[int],
        report: Callable[[HarvestProgress], Awaitable[None]],
    ) -> None:
        """Have what a lease's rows hold in all datasets, and mark the lease; the rows are spare once encoded."""
        try:
            coded = await self._code(record, lease, rows)
        finally:
            spare.put_nowait(rows)
        first, *others = range(len(record.spec.pairs))
        # The first pair comes last: a token counts once all that is kept of it is committed.
        for place in others:
            await self._commit(record, place, lease, coded)
        committed, is_new = await self._commit(record, first, lease, coded)
        tokens = committed.num_tokens
        if is_new:
            EXTRACT_TOKENS.inc(tokens)
        if coded.num_tokens == tokens:
            await self._threaded(lambda: LeftOut(self._store, record.harvest_id).keep(lease.index, coded.left_out))
        await self._threaded(
            lambda: board.finish(
                lease.index, split=lease.split.value, num_tokens=tokens, num_skipped=lease.num_tokens - tokens
            )
        )
        held.discard(lease.index)
        await report(HarvestProgress.of(record, await self._threaded(board.known)))

    async def _code(self, record: HarvestRecord, lease: Lease, rows: Rows) -> _Coded:
        """Encode what no dataset has of a lease."""
        shards: dict[int, tuple[str, EncodedBlocks] | CommittedShard] = {}
        for place, pair in enumerate(record.spec.pairs):
            target = await self._patiently(partial(self._catalog.begin_shard, pair.dataset, lease.index))
            if target.committed is not None:
                shards[place] = target.committed
                continue
            encode = partial(self._encode, record, pair, lease, rows, target.key)
            shards[place] = target.key, await self._threaded(encode)
        return _Coded(rows.num_tokens, rows.left_out, shards)

    async def _commit(
        self, record: HarvestRecord, place: int, lease: Lease, coded: _Coded
    ) -> tuple[CommittedShard, bool]:
        """Have a pair's shard of a lease in its dataset; whether it is this call's."""
        made = coded.shards.pop(place)
        if isinstance(made, CommittedShard):
            return made, False
        key, blocks = made
        encoded = await self._threaded(blocks.shard)
        del made, blocks
        await self._threaded(lambda: self._put(key, encoded.data))
        shard = CommittedShard(
            index=lease.index,
            key=key,
            sha256=encoded.sha256,
            size_bytes=len(encoded.data),
            num_tokens=coded.num_tokens,
            split=lease.split,
            row_group_tokens=_ROW_GROUP_TOKENS,
            statistics=encoded.statistics,
        )
        dataset = record.spec.pairs[place].dataset
        committed = await self._patiently(lambda: self._catalog.commit_shard(dataset, shard))
        is_new = committed.key == key
        if not is_new:
            EXTRACT_INCOMPLETE.labels(ANOTHER_WAS_FIRST).inc()
        return committed, is_new

    def _encode(self, record: HarvestRecord, pair: StreamPair, lease: Lease, rows: Rows, key: str) -> EncodedBlocks:
        streams = {"input": rows.kept(pair.input_hook), "output": rows.kept(pair.output_hook)}
        return encode_blocks(
            streams,
            CodecSpec(record.spec.codec, record.spec.target_fvu),
            row_group_tokens=_ROW_GROUP_TOKENS,
            attributes={
                "dataset": pair.dataset,
                "harvest": record.harvest_id,
                "input_hook": pair.input_hook,
                "model": record.spec.model,
                "model_revision": record.model_revision,
                "output_hook": pair.output_hook,
                "split": lease.split.value,
            },
            basis=self._basis(key, streams) if record.spec.codec == "klt" else None,
            threads=_ENCODING_THREADS,
        )

    def _basis(self, shard_key: str, streams: Mapping[str, Floats]) -> Basis:
        """
        Take the basis that the dataset has, or learn one from these rows and put it there.

        Two replicas that begin at once may each put their own: shards say which one is theirs.
        """
        folder = basis_key(shard_key, "").removesuffix(".weft")
        if folder in self._bases:
            return self._bases[folder]
        info = next(iter(self._store.list(folder)), None)
        if info is not None:
            bases, sha256 = Bases(self._store), info.key.removeprefix(folder).removesuffix(".weft")
            num_layers, _, d_model = streams["input"].shape
            basis = Basis(np.stack([bases.get(info.key, sha256, (num_layers, d_model), at) for at in range(2)]))
        else:
            basis = learn_basis(streams)
            with suppress(AlreadyExistsError):
                self._store.put(basis_key(shard_key, basis.sha256), basis.data(), if_absent=True)
        self._bases[folder] = basis
        if len(self._bases) > _KEPT_BASES:
            del self._bases[next(iter(self._bases))]
        return basis

    def _put(self, key: str, data: bytes) -> None:
        with suppress(AlreadyExistsError):
            # The key is this upload's own: what is there is what an earlier try of this put wrote, and the catalog
            # compares every byte when the shard is committed.
            self._store.put(key, data, if_absent=True)

    async def _seal(self, record: HarvestRecord) -> HarvestRecord:
        for pair in record.spec.pairs:
            await self._patiently(partial(self._catalog.seal_dataset, pair.dataset, record.num_leases))
        return await self._threaded(
            lambda: self._records.change(record.harvest_id, lambda there: replace(there, sealed=True))
        )

    async def _threaded(self, work: Callable[[], T]) -> T:
        return await self._patiently(lambda: asyncio.to_thread(work))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat what fails for a while: a catalog that is restarted does not end a harvest."""
        until = time.monotonic() + self._patience_s
        delay_s = 0.1
        while True:
            try:
                return await call()
            except WeftError as error:
                if not error.retryable or time.monotonic() + delay_s > until:
                    raise
                _LOG.warning("a harvest waits", error=error.message, delay_s=delay_s)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311
            delay_s = min(5.0, delay_s * 2)
