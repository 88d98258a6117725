"""The long work behind the RPCs that ask a language model."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import grpc.aio
from google.protobuf.message import Message

from weft.features.v1 import interpretation_pb2
from weft_attribution import converting_interpretation as converting
from weft_attribution.core.feature_ports import ExampleSources
from weft_attribution.core.interpretation.asking import Asker
from weft_attribution.core.interpretation.budget import Budget, BudgetSpentError
from weft_attribution.core.interpretation.explaining import Explainer
from weft_attribution.core.interpretation.journal import Journal
from weft_attribution.core.interpretation.pairing import KeptTests
from weft_attribution.core.interpretation.plans import Plan
from weft_attribution.core.interpretation.results import FeatureResult, Results
from weft_attribution.core.interpretation.score_reports import KindReport
from weft_attribution.core.interpretation.scoring import Scorer
from weft_attribution.core.interpretation.turns import in_turns
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Place, ScoreKind
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.token_pieces import TokenPieces
from weft_attribution.interpretation_requests import Asked, InterpretationRequests, Interpreting
from weft_common.errors import UnavailableError
from weft_common.operations import OperationContext, OperationKind
from weft_common.resource_names import parse_name
from weft_store.port import ObjectStore

__all__ = ["EXPLAIN", "SCORE", "InterpretationWork"]

Context = grpc.aio.ServicerContext[object, object]
EXPLAIN, SCORE = "explain-features", "score-features"
_STAGE = "asking"
_REPORT_EVERY_S = 0.3
_WRITE_EVERY_S = 1.0


class InterpretationWork:
    """
    The long work behind ExplainFeatures and ScoreFeatures.

    Args:
        store: The bucket.
        sources: Examples of features.
        labels: Their labels.
        runner: The base model, for the text of tokens.
        interpreting: Who is asked, and how; None where nobody is.
    """

    def __init__(
        self,
        store: ObjectStore,
        sources: ExampleSources,
        labels: LabelStore,
        runner: ModelRunner,
        interpreting: Interpreting | None,
    ) -> None:
        self._store, self._labels, self._runner = store, labels, runner
        self._interpreting, self._requests = interpreting, InterpretationRequests(store, sources, interpreting)

    @property
    def interpreting(self) -> Interpreting | None:
        """Who is asked, if anybody is."""
        return self._interpreting

    def check(self, request: Asked) -> Plan:
        """Refuse what cannot be done, and say what is to be: as `InterpretationRequests`; blocks."""
        return self._requests.check(request)

    def keep(self, request: Asked, operation_id: str, plan: Plan) -> Plan:
        """Write down what an operation is to do: as `InterpretationRequests`; blocks."""
        return self._requests.keep(request, operation_id, plan)

    def kinds(self) -> dict[str, OperationKind]:
        """One of each at a time in a process: the endpoint is what limits them."""
        return {
            EXPLAIN: OperationKind(self._explain, shared=False, max_running=1),
            SCORE: OperationKind(self._score, shared=False, max_running=1),
        }

    async def _explain(self, context: OperationContext) -> Message:
        request = context.request
        assert isinstance(request, interpretation_pb2.ExplainFeaturesRequest)
        source, plan = await asyncio.to_thread(self._requests.opened, request, context.operation_id)
        settings, begun_s = self._requests.explain_settings(request, plan), _create_s(context)
        explainer = Explainer(source, self._labels, TokenPieces(self._runner, source.model), settings, begun_s)
        asker = self._asker(context, request, source.transcoder)
        await self._run(context, request, asker, plan.places, explainer.explain, lambda: explainer.explained.done)
        spend = asker.budget.spend
        return converting.explained_to_proto(request.parent, explainer.explained, len(plan.places), spend, settings)

    async def _score(self, context: OperationContext) -> Message:
        request = context.request
        assert isinstance(request, interpretation_pb2.ScoreFeaturesRequest)
        source, plan = await asyncio.to_thread(self._requests.opened, request, context.operation_id)
        settings = self._requests.score_settings(request, plan)
        scorer = Scorer(source, self._labels, TokenPieces(self._runner, source.model), settings)
        kept = KeptTests(self._store, source.transcoder, context.operation_id)
        await scorer.read_labels(plan.places, kept)
        asker = self._asker(context, request, source.transcoder)
        await self._run(
            context,
            request,
            asker,
            plan.places,
            scorer.score,
            lambda: scorer.scored.done,
            lambda: scorer.scored.reports,
        )
        return converting.scored_to_proto(request.parent, scorer.scored, len(plan.places), asker.budget.spend)

    def _asker(self, context: OperationContext, request: Asked, transcoder: str) -> Asker:
        asked = self._requests.asked()
        return Asker(
            asked.interpreter,
            Journal(self._store, transcoder, asked.endpoint),
            Budget(request.scope.max_calls, request.scope.max_tokens),
            operation=context.name,
            gate=asked.gate,
            max_attempts=asked.max_attempts,
            observe=asked.observe,
        )

    async def _run(
        self,
        context: OperationContext,
        request: Asked,
        asker: Asker,
        places: Sequence[Place],
        work: Callable[[Place, Asker], Awaitable[FeatureResult]],
        done: Callable[[], int],
        reports: Callable[[], Mapping[ScoreKind, KindReport]] = dict,
    ) -> None:
        """Work on the features in their order until all are through or the budget is spent; tell how far it is."""
        create_s, spent = _create_s(context), asyncio.Event()
        at_once = self._requests.asked().concurrency
        results = Results(self._store, parse_name(request.parent, "transcoders"), context.operation_id)
        written_s = time.monotonic()

        async def report() -> None:
            spend = asker.budget.spend
            metadata = converting.metadata_to_proto(request.parent, _STAGE, create_s, done(), len(places), spend)
            metadata.reports.extend(converting.reports_to_proto(reports()))
            await context.report(metadata)

        async def within_budget(numbered: tuple[int, Place]) -> None:
            # What is under way when the budget is spent comes to its end.
            if not spent.is_set():
                position, place = numbered
                try:
                    results.note(position, await work(place, asker))
                except BudgetSpentError:
                    spent.set()

        assert isinstance(context.metadata, interpretation_pb2.InterpretationMetadata)
        if context.metadata.progress.stage == _STAGE:
            # A process before this one died, or the endpoint was away. What it had answered is looked up on the way.
            asker.budget.recall(converting.spend_from_proto(context.metadata.spend))
        await report()
        task = asyncio.ensure_future(in_turns(enumerate(places), within_budget, at_once))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REPORT_EVERY_S)
                if time.monotonic() - written_s >= _WRITE_EVERY_S:
                    written_s = time.monotonic()
                    # The next one stores it as well.
                    with suppress(UnavailableError):
                        await asyncio.to_thread(results.write)
                await report()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asker.close()
            await report()
            with suppress(UnavailableError):
                await asyncio.to_thread(results.write)
        task.result()
        await asyncio.to_thread(results.write)


def _create_s(context: OperationContext) -> float:
    assert isinstance(context.metadata, interpretation_pb2.InterpretationMetadata)
    return context.metadata.progress.create_time.ToNanoseconds() / 1e9
