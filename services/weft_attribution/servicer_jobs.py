# ruff: noqa: N802  gRPC names the methods
"""weft.features.v1.FeatureJobService: what long work on features there is, how far it is, and what came of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice

import grpc.aio
from google.longrunning import operations_pb2

from weft.features.v1 import interpretation_pb2, jobs_pb2, jobs_pb2_grpc
from weft_attribution import converting_jobs as converting
from weft_attribution.core.interpretation.prompts import prompt_names
from weft_attribution.core.interpretation.results import read_results
from weft_attribution.interpretation_requests import Asked
from weft_attribution.interpretation_work import EXPLAIN, SCORE, InterpretationWork
from weft_attribution.servicer_feature_index import INDEX
from weft_attribution.timestamps import timestamp
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_common.operation_store import Record
from weft_common.operations import OperationManager
from weft_common.pages import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, newest_first, paginate
from weft_common.resource_names import parse_name
from weft_store.port import ObjectStore

__all__ = ["FeatureJobServicer"]

Context = grpc.aio.ServicerContext[object, object]
_WATCH_S = 0.5
_READ_AT_ONCE = 8
_MAX_KEPT = 2_000
_INTERPRETATIONS = (f"{EXPLAIN}.", f"{SCORE}.")


class FeatureJobServicer(jobs_pb2_grpc.FeatureJobServiceServicer):
    """
    Answers from what is stored of operations.

    Args:
        store: The bucket.
        work: Where long work is kept.
        interpretation: The work behind ExplainFeatures and ScoreFeatures.
        start: Checks and starts a request for it.
    """

    def __init__(
        self,
        store: ObjectStore,
        work: OperationManager,
        interpretation: InterpretationWork,
        start: Callable[[str, Asked], Awaitable[operations_pb2.Operation]],
    ) -> None:
        self._store, self._work, self._interpretation, self._start = store, work, interpretation, start
        # What has ended stays as it is, and may be large to read: it may name a hundred thousand features.
        self._ended: dict[str, jobs_pb2.Interpretation] = {}

    async def GetInterpreter(self, request: jobs_pb2.GetInterpreterRequest, context: Context) -> jobs_pb2.Interpreter:
        asked = self._interpretation.interpreting
        return jobs_pb2.Interpreter(
            is_set_up=asked is not None,
            model="" if asked is None else asked.model,
            embedding_model="" if asked is None else asked.embedding_model,
            explain_prompts=reversed(prompt_names("explain")),
        )

    async def ListInterpretations(
        self, request: jobs_pb2.ListInterpretationsRequest, context: Context
    ) -> jobs_pb2.ListInterpretationsResponse:
        if request.parent:
            parse_name(request.parent, "transcoders", field="parent")
        while True:
            found = await self._interpretations()
            page, next_token = paginate(
                (each for each in found if request.parent in ("", each.parent)),
                request.page_size,
                request.page_token,
                key=_newest_first,
            )
            if await self._are_kept(page):
                break
        return jobs_pb2.ListInterpretationsResponse(interpretations=page, next_page_token=next_token)

    async def GetInterpretation(
        self, request: jobs_pb2.GetInterpretationRequest, context: Context
    ) -> jobs_pb2.Interpretation:
        return converting.interpretation_to_proto(request.operation, await self._record(request.operation))

    async def WatchInterpretation(
        self, request: jobs_pb2.WatchInterpretationRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.WatchInterpretationResponse]:
        shown = None
        while True:
            record = await self._record(request.operation)
            now = converting.interpretation_to_proto(request.operation, record)
            if now != shown:
                shown = now
                yield jobs_pb2.WatchInterpretationResponse(interpretation=now)
            if record.done:
                return
            await asyncio.sleep(_WATCH_S)

    async def ListInterpretedFeatures(
        self, request: jobs_pb2.ListInterpretedFeaturesRequest, context: Context
    ) -> jobs_pb2.ListInterpretedFeaturesResponse:
        if request.page_size < 0 or request.first_position < 0:
            raise InvalidArgumentError("page_size or first_position is negative; give 0 or more", field="page_size")
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        first = max(request.first_position, _position(request.page_token))
        endings = converting.endings_from_proto(request.outcomes)
        name, record = request.operation, await self._record(request.operation)
        parent = converting.asked_for(name, record).parent

        def read() -> list[jobs_pb2.InterpretedFeature]:
            results = read_results(
                self._store,
                parse_name(parent, "transcoders"),
                self._work.operation_id(name),
                first=first,
                endings=endings,
            )
            return [converting.result_to_proto(parent, *each) for each in islice(results, size + 1)]

        found = await asyncio.to_thread(read)
        return jobs_pb2.ListInterpretedFeaturesResponse(
            features=found[:size], next_page_token=str(found[size].position) if len(found) > size else ""
        )

    async def ResumeInterpretation(
        self, request: jobs_pb2.ResumeInterpretationRequest, context: Context
    ) -> operations_pb2.Operation:
        name, record = request.operation, await self._record(request.operation)
        if not record.done:
            raise FailedPreconditionError(f"{name} has not ended yet; cancel it, or wait for its end")
        asked = converting.asked_for(name, record)
        asked.request_id, asked.validate_only = request.request_id, False
        asked.scope.max_calls = request.max_calls or asked.scope.max_calls
        asked.scope.max_tokens = request.max_tokens or asked.scope.max_tokens
        is_explaining = isinstance(asked, interpretation_pb2.ExplainFeaturesRequest)
        return await self._start(EXPLAIN if is_explaining else SCORE, asked)

    async def ListIndexJobs(
        self, request: jobs_pb2.ListIndexJobsRequest, context: Context
    ) -> jobs_pb2.ListIndexJobsResponse:
        parse_name(request.parent, "transcoders", field="parent")
        prefix = self._work.name("index-")
        found = []
        for name, record in await self._records([name for name in await self._work.names() if name.startswith(prefix)]):
            job = converting.index_job_to_proto(name, record) if record.kind == INDEX else None
            if job is not None and job.index.startswith(f"{request.parent}/indexes/"):
                found.append(job)
        page, next_token = paginate(
            found,
            request.page_size,
            request.page_token,
            key=_newest_first,
        )
        return jobs_pb2.ListIndexJobsResponse(jobs=page, next_page_token=next_token)

    async def _interpretations(self) -> list[jobs_pb2.Interpretation]:
        names = {name for name in await self._work.names() if self._is_interpretation(name)}
        self._ended = {name: kept for name, kept in self._ended.items() if name in names}
        found = list(self._ended.values())
        for name, record in await self._records(sorted(names - self._ended.keys())):
            if record.kind not in (EXPLAIN, SCORE):
                continue
            found.append(converting.interpretation_to_proto(name, record))
            if record.done and len(self._ended) < _MAX_KEPT:
                self._ended[name] = found[-1]
        return found

    async def _are_kept(self, shown: Sequence[jobs_pb2.Interpretation]) -> bool:
        """Whether what was kept of some work is still what is stored; what is not is kept no longer."""
        kept = {each.operation: each for each in shown if self._ended.get(each.operation) is each}
        there = dict(await self._records(list(kept)))
        replaced = [
            name
            for name, each in kept.items()
            # Deleted, and perhaps begun anew with the same id.
            if name not in there or timestamp(there[name].create_s) != each.create_time
        ]
        for name in replaced:
            self._ended.pop(name, None)
        return not replaced

    def _is_interpretation(self, name: str) -> bool:
        return name.startswith(tuple(self._work.name(each) for each in _INTERPRETATIONS))

    async def _record(self, name: str) -> Record:
        record = await self._work.record(name)
        if record.kind not in (EXPLAIN, SCORE):
            raise NotFoundError(f"{name!r:.120} is no interpretation; ListInterpretations has them")
        return record

    async def _records(self, names: Sequence[str]) -> list[tuple[str, Record]]:
        gate = asyncio.Semaphore(_READ_AT_ONCE)

        async def read(name: str) -> tuple[str, Record] | None:
            async with gate:
                try:
                    return name, await self._work.record(name)
                except NotFoundError:
                    # Deleted meanwhile.
                    return None

        return [found for found in await asyncio.gather(*map(read, names)) if found is not None]


def _newest_first(job: jobs_pb2.Interpretation | jobs_pb2.IndexJob) -> str:
    return newest_first(job.create_time.ToMicroseconds() / 1e6, job.operation)


def _position(token: str) -> int:
    if token and not (token.isascii() and token.isdecimal() and len(token) < 10):
        raise InvalidArgumentError(
            "page_token is not one that a list call returned; leave it empty to begin at the first page",
            field="page_token",
        )
    return int(token or 0)
