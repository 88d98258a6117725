"""What may be asked of a language model about features, and by which settings."""

import asyncio
from dataclasses import dataclass, field

from weft.features.v1 import interpretation_pb2
from weft_attribution import converting_interpretation as converting
from weft_attribution.core.feature_ports import ExampleSource, ExampleSources
from weft_attribution.core.interpretation.answers import EXPLAIN_TOKENS, SCORE_TOKENS
from weft_attribution.core.interpretation.budget import Budget
from weft_attribution.core.interpretation.explaining import MIN_EXAMPLES, ExplainSettings
from weft_attribution.core.interpretation.plans import Plan, keep_plan, read_plan
from weft_attribution.core.interpretation.ports import Interpreter, Observer
from weft_attribution.core.interpretation.prompts import load_prompt
from weft_attribution.core.interpretation.scope import features_of_graph, in_order
from weft_attribution.core.interpretation.scoring import ScoreSettings
from weft_attribution.core.labels import Place, ScoreKind
from weft_attribution.label_names import feature_of
from weft_attribution.naming import graph_id_of
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_common.resource_names import parse_name
from weft_store.port import ObjectStore

__all__ = ["Asked", "InterpretationRequests", "Interpreting"]

_MAX_GRAPHS, _MAX_FEATURES, _MAX_CALLS = 100, 100_000, 10_000_000
_EXPLAIN = "explain"
_EXPLAIN_EXAMPLES, _SCORE_EXAMPLES, _MAX_EXAMPLES = 40, 20, 100

Asked = interpretation_pb2.ExplainFeaturesRequest | interpretation_pb2.ScoreFeaturesRequest


@dataclass(frozen=True)
class Interpreting:
    """
    Who is asked, and how.

    Args:
        interpreter: Who is asked.
        endpoint: Its base URL, with neither credentials nor query.
        model: Its model.
        embedding_model: Its model that embeds; empty where it has none.
        structured: Whether it holds answers to a JSON schema.
        concurrency: Calls under way at once.
        max_attempts: How often a question may be sent.
        observe: Counts for metrics.
        explain_tokens: Longest answer that explains.
        score_tokens: Longest answer that scores.
        is_greedy: Whether questions are put at temperature 0.
    """

    interpreter: Interpreter
    endpoint: str
    model: str
    embedding_model: str
    structured: bool
    concurrency: int
    max_attempts: int
    observe: Observer
    explain_tokens: int = EXPLAIN_TOKENS
    score_tokens: int = SCORE_TOKENS
    is_greedy: bool = True
    gate: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate", asyncio.Semaphore(self.concurrency))


class InterpretationRequests:
    """
    Reads requests.

    Args:
        store: The bucket.
        sources: Examples of features.
        interpreting: Who is asked, and how; None where nobody is.
    """

    def __init__(self, store: ObjectStore, sources: ExampleSources, interpreting: Interpreting | None) -> None:
        self._store, self._sources, self._interpreting = store, sources, interpreting

    def asked(self) -> Interpreting:
        """Who is asked, and how. FailedPreconditionError where nobody is."""
        if self._interpreting is None:
            raise FailedPreconditionError(
                "no interpreter is set up: set WEFT_ATTRIBUTION_INTERPRETER_URL and WEFT_ATTRIBUTION_INTERPRETER_MODEL "
                "to an endpoint that speaks OpenAI's protocol"
            )
        return self._interpreting

    def check(self, request: Asked) -> Plan:
        """
        Refuse what cannot be done, and say what is to be; blocks.

        Raises:
            InvalidArgumentError: The request is wrong.
            NotFoundError: A transcoder or graph is not there.
            FailedPreconditionError: No endpoint is set up, or there is no index.
        """
        self.asked()
        if not 1 <= request.scope.max_calls <= _MAX_CALLS:
            raise InvalidArgumentError(
                f"scope.max_calls is {request.scope.max_calls}; say how many calls may be paid for, 1 to {_MAX_CALLS}",
                field="scope.max_calls",
            )
        Budget(request.scope.max_calls, request.scope.max_tokens)
        if request.num_examples and not MIN_EXAMPLES <= request.num_examples <= _MAX_EXAMPLES:
            raise InvalidArgumentError(
                f"num_examples is {request.num_examples}; give {MIN_EXAMPLES} to {_MAX_EXAMPLES}, or 0 for the default",
                field="num_examples",
            )
        if isinstance(request, interpretation_pb2.ExplainFeaturesRequest):
            prompts = {_EXPLAIN: self.explain_settings(request).prompt.name}
        else:
            prompts = {kind.value: prompt.name for kind, prompt in self.score_settings(request).prompts.items()}
        transcoder = parse_name(request.parent, "transcoders", field="parent")
        index_id = self._sources.open(transcoder).index_id
        return Plan(tuple(self._places(transcoder, request)), index_id, prompts)

    def keep(self, request: Asked, operation_id: str, plan: Plan) -> Plan:
        """Write down what an operation is to do; what was written before stays and is returned. Blocks."""
        return keep_plan(self._store, parse_name(request.parent, "transcoders"), operation_id, plan)

    def opened(self, request: Asked, operation_id: str) -> tuple[ExampleSource, Plan]:
        """Examples, and what was written down to be done; blocks."""
        transcoder = parse_name(request.parent, "transcoders", field="parent")
        plan = read_plan(self._store, transcoder, operation_id)
        if plan is None:
            # Asked for under a release that wrote none.
            plan = self.keep(request, operation_id, self.check(request))
        return self._sources.open(transcoder, plan.index_id), plan

    def explain_settings(
        self, request: interpretation_pb2.ExplainFeaturesRequest, plan: Plan | None = None
    ) -> ExplainSettings:
        """How features are explained; with a plan, by its prompt."""
        asked = self.asked()
        prompt = load_prompt(_EXPLAIN, request.prompt if plan is None else plan.prompts[_EXPLAIN])
        return ExplainSettings(
            asked.model,
            prompt,
            request.num_examples or _EXPLAIN_EXAMPLES,
            asked.structured,
            asked.explain_tokens,
            asked.is_greedy,
        )

    def score_settings(
        self, request: interpretation_pb2.ScoreFeaturesRequest, plan: Plan | None = None
    ) -> ScoreSettings:
        """
        How labels are scored; with a plan, by its prompts.

        Raises:
            FailedPreconditionError: A kind needs embeddings and there are none.
        """
        named = {} if plan is None else plan.prompts
        asked, kinds = self.asked(), converting.kinds_from_proto(list(request.kinds))
        if ScoreKind.EMBEDDING in kinds and not asked.embedding_model:
            raise FailedPreconditionError(
                "no embeddings are set up: set WEFT_ATTRIBUTION_INTERPRETER_EMBEDDING_MODEL, or leave the kind out"
            )
        return ScoreSettings(
            kinds,
            asked.model,
            asked.embedding_model,
            {
                kind: load_prompt(kind.value, named.get(kind.value, ""))
                for kind in kinds
                if kind is not ScoreKind.EMBEDDING
            },
            request.num_examples or _SCORE_EXAMPLES,
            asked.structured,
            request.control,
            asked.score_tokens,
            asked.is_greedy,
        )

    def _places(self, transcoder: str, request: Asked) -> list[Place]:
        scope = request.scope
        if not scope.graphs and not scope.features:
            raise InvalidArgumentError("scope names neither graphs nor features; name some", field="scope")
        for name, count, most in (
            ("graphs", len(scope.graphs), _MAX_GRAPHS),
            ("features", len(scope.features), _MAX_FEATURES),
        ):
            if count > most:
                raise InvalidArgumentError(
                    f"scope.{name} has {count} names; give {most} at most", field=f"scope.{name}"
                )
        if scope.max_features < 0:
            raise InvalidArgumentError("scope.max_features is negative; give 0 for all", field="scope.max_features")
        named = []
        for name in scope.features:
            owner, place = feature_of(name, "scope.features")
            if owner != transcoder:
                raise InvalidArgumentError(
                    f"{name[:200]} is of another transcoder than {request.parent}", field="scope.features"
                )
            named.append(place)
        graphs = [graph_id_of(name, "scope.graphs") for name in scope.graphs]
        first = [features_of_graph(self._store, graph, transcoder) for graph in graphs]
        return in_order(first, named, scope.max_features)
