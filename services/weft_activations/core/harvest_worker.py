"""
One replica's share of a harvest: take a lease, read it, put its shard, commit it, mark the lease; seal at the end.

Dying between any two of these loses nothing and doubles nothing: a shard counts once its commit is in the catalog, the
first commit of an index wins, and a lease that is not marked is read again. While one lease is encoded and put, the
next one is already in the model.

Legend: B sequences, P positions, L layers, T tokens, D d_model.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from weft_activations.core.harvest_records import HarvestProgress, HarvestRecord, HarvestRecords
from weft_activations.core.inference import Inference
from weft_activations.core.leases import LeaseBoard
from weft_activations.core.metrics import EXTRACT_INCOMPLETE, EXTRACT_TOKENS
from weft_activations.core.plan import HarvestPlan, Lease
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import CommittedShard, DatasetCatalog, Split
from weft_common.errors import AlreadyExistsError, FailedPreconditionError, WeftError
from weft_common.logging import get_logger
from weft_store.port import ObjectStore
from weft_store.shard import CodecSpec, EncodedShard, encode_shard

__all__ = ["HarvestWorker", "Rows"]

_LOG = get_logger(__name__)
_ROW_GROUP_TOKENS = 256
_BATCH_TOKENS = 1024
_NORM_SEQUENCES = 8

T = TypeVar("T")
Floats = npt.NDArray[np.float32]


class Rows:
    """
    The kept rows of a lease.

    Attributes:
        inputs_LTD: What the transcoder reads.
        outputs_LTD: What it predicts.
        num_skipped: Tokens left out for their norm.
    """

    def __init__(self, inputs_LTD: Floats, outputs_LTD: Floats, num_skipped: int) -> None:
        self.inputs_LTD = inputs_LTD
        self.outputs_LTD = outputs_LTD
        self.num_skipped = num_skipped


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

    async def run(self, harvest_id: str, report: Callable[[HarvestProgress], Awaitable[None]]) -> HarvestProgress:
        """
        Take leases until the harvest's dataset is sealed, by this replica or another.

        Raises:
            FailedPreconditionError: The model or the corpus is no longer what the harvest was planned with.
        """
        record = await self._threaded(lambda: self._records.get(harvest_id))
        board = LeaseBoard(
            self._store, harvest_id, record.num_leases, self._owner, lease_s=self._lease_s, clock=self._clock
        )
        if not record.sealed:
            await self._harvest(record, board, report)
            record = await self._seal(record)
        return HarvestProgress.of(record, await self._threaded(board.refresh))

    async def _harvest(
        self, record: HarvestRecord, board: LeaseBoard, report: Callable[[HarvestProgress], Awaitable[None]]
    ) -> None:
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
        dataset = record.spec.dataset
        await self._threaded(lambda: self._records.claim_dataset(dataset, record.harvest_id))
        dataset_spec = record.spec.dataset_spec(info, record.corpus_digest)
        await self._patiently(lambda: self._catalog.create_dataset(dataset, dataset_spec))
        record = await self._with_mean_norms(record, plan)
        held: set[int] = set()
        beating = asyncio.create_task(self._beat(board, held))
        storing: asyncio.Task[None] | None = None
        try:
            while True:
                index = await self._threaded(board.take)
                if index is None:
                    if storing is not None:
                        await storing
                        storing = None
                        continue
                    await report(HarvestProgress.of(record, await self._threaded(board.refresh)))
                    if board.all_done():
                        return
                    await asyncio.sleep(self._poll_s)
                    continue
                held.add(index)
                rows = await self._read(record, plan.leases[index])
                if storing is not None:
                    await storing
                storing = asyncio.create_task(self._store_rows(record, plan.leases[index], rows, board, held, report))
        except BaseException as error:
            reason = error.reason.lower() if isinstance(error, WeftError) else "interrupted"
            if held:
                EXTRACT_INCOMPLETE.labels(reason).inc(len(held))
            raise
        finally:
            beating.cancel()
            if storing is not None:
                storing.cancel()
            await asyncio.gather(beating, *([storing] if storing else []), return_exceptions=True)
            with suppress(WeftError):
                await asyncio.to_thread(board.give_up, tuple(held))

    async def _beat(self, board: LeaseBoard, held: set[int]) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            try:
                await asyncio.to_thread(board.extend, tuple(held))
            except WeftError as error:
                _LOG.warning("leases could not be extended", error=error.message)

    async def _with_mean_norms(self, record: HarvestRecord, plan: HarvestPlan) -> HarvestRecord:
        """Measure the mean output norms on the first training sequences, unless a replica has done so already."""
        if not record.spec.max_norm_ratio or record.mean_norms is not None:
            return record
        sequences = [sequence for lease in plan.leases if lease.split is Split.TRAIN for sequence in lease.sequences]
        lease = Lease(0, Split.TRAIN, sequences[:_NORM_SEQUENCES])
        _, outputs_LTD = await self._run_sequences(record, lease)
        norms_LT = np.sqrt(np.einsum("ltd,ltd->lt", outputs_LTD, outputs_LTD, dtype=np.float64))
        means = tuple(float(mean) for mean in norms_LT.mean(1))
        return await self._threaded(lambda: self._records.set_mean_norms(record.harvest_id, means))

    async def _read(self, record: HarvestRecord, lease: Lease) -> Rows:
        inputs_LTD, outputs_LTD = await self._run_sequences(record, lease)
        if record.mean_norms is None:
            return Rows(inputs_LTD, outputs_LTD, 0)
        norms_LT = np.sqrt(np.einsum("ltd,ltd->lt", outputs_LTD, outputs_LTD))
        limits_L = record.spec.max_norm_ratio * np.asarray(record.mean_norms)
        kept_T = (norms_LT < limits_L[:, None]).all(0)
        if kept_T.all():
            return Rows(inputs_LTD, outputs_LTD, 0)
        return Rows(inputs_LTD[:, kept_T], outputs_LTD[:, kept_T], int((~kept_T).sum()))

    async def _run_sequences(self, record: HarvestRecord, lease: Lease) -> tuple[Floats, Floats]:
        """Run a lease in batches of equal length, each a pass of its own, so that other calls come in between."""
        spec = record.spec
        starts = np.concatenate([[0], np.cumsum([len(sequence) - 1 for sequence in lease.sequences])])
        by_length: dict[int, list[int]] = {}
        for index, sequence in enumerate(lease.sequences):
            by_length.setdefault(len(sequence), []).append(index)
        found: tuple[Floats, Floats] | None = None
        for length, indices in sorted(by_length.items(), reverse=True):
            batch = max(1, _BATCH_TOKENS // length)
            for first in range(0, len(indices), batch):
                members = indices[first : first + batch]
                tokens_BP = np.stack([lease.sequences[index] for index in members])
                streams = await self._inference.streams(spec.model, tokens_BP, spec.input_hook, spec.output_hook)
                if found is None:
                    num_layers, _, _, d_model = streams[0].shape
                    shape = (num_layers, int(starts[-1]), d_model)
                    found = np.empty(shape, np.float32), np.empty(shape, np.float32)
                for whole_LTD, part_LBPD in zip(found, streams, strict=True):
                    for row, index in enumerate(members):
                        whole_LTD[:, starts[index] : starts[index + 1]] = part_LBPD[:, row, 1:]
        if found is None:
            raise FailedPreconditionError(f"lease {lease.index} of harvests/{record.harvest_id} has no sequences")
        return found

    async def _store_rows(
        self,
        record: HarvestRecord,
        lease: Lease,
        rows: Rows,
        board: LeaseBoard,
        held: set[int],
        report: Callable[[HarvestProgress], Awaitable[None]],
    ) -> None:
        dataset = record.spec.dataset
        target = await self._patiently(lambda: self._catalog.begin_shard(dataset, lease.index))
        committed = target.committed
        if committed is None:
            num_tokens = rows.inputs_LTD.shape[1]
            encoded = await asyncio.to_thread(self._encode, record, lease, rows)
            await self._threaded(lambda: self._put(target.key, encoded))
            shard = CommittedShard(
                index=lease.index,
                key=target.key,
                sha256=encoded.sha256,
                size_bytes=len(encoded.data),
                num_tokens=num_tokens,
                split=lease.split,
                row_group_tokens=_ROW_GROUP_TOKENS,
                statistics=encoded.statistics,
            )
            committed = await self._patiently(lambda: self._catalog.commit_shard(dataset, shard))
            if committed.key == target.key:
                EXTRACT_TOKENS.inc(num_tokens)
            else:
                EXTRACT_INCOMPLETE.labels("another_was_first").inc()
        tokens = committed.num_tokens
        await self._threaded(
            lambda: board.finish(
                lease.index, split=lease.split.value, num_tokens=tokens, num_skipped=lease.num_tokens - tokens
            )
        )
        held.discard(lease.index)
        await report(HarvestProgress.of(record, await self._threaded(board.known)))

    def _encode(self, record: HarvestRecord, lease: Lease, rows: Rows) -> EncodedShard:
        return encode_shard(
            {"input": rows.inputs_LTD, "output": rows.outputs_LTD},
            CodecSpec(record.spec.codec, record.spec.target_fvu),
            row_group_tokens=_ROW_GROUP_TOKENS,
            attributes={
                "dataset": record.spec.dataset,
                "harvest": record.harvest_id,
                "input_hook": record.spec.input_hook,
                "model": record.spec.model,
                "model_revision": record.model_revision,
                "output_hook": record.spec.output_hook,
                "split": lease.split.value,
            },
        )

    def _put(self, key: str, encoded: EncodedShard) -> None:
        with suppress(AlreadyExistsError):
            # The key is this upload's own: what is there is what an earlier try of this put wrote, and the catalog
            # compares every byte when the shard is committed.
            self._store.put(key, encoded.data, if_absent=True)

    async def _seal(self, record: HarvestRecord) -> HarvestRecord:
        await self._patiently(lambda: self._catalog.seal_dataset(record.spec.dataset, record.num_leases))
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
