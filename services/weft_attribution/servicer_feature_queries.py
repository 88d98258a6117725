# ruff: noqa: N802  gRPC names the methods
"""The RPCs of FeatureService that find features: by figures, words, tokens, a text, a graph, another transcoder."""

import asyncio
import re

import grpc.aio
from google.protobuf import field_mask_pb2

from weft.features.v1 import graphs_pb2, queries_pb2, service_pb2, service_pb2_grpc
from weft_attribution import converting_features as converting
from weft_attribution.core.feature_graphs import FeatureGraphs
from weft_attribution.core.feature_index.matching import FeatureMatching
from weft_attribution.core.feature_index.on_prompt import PromptActivations, PromptQuestion
from weft_attribution.core.feature_index.queries import FeatureQueries, FoundFeatures, Question
from weft_attribution.core.graph_features import graph_features
from weft_attribution.core.open_graphs import OpenGraphs
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.question_turns import Turns
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.waited_threads import in_thread
from weft_attribution.label_trailers import tell_passed_over
from weft_attribution.naming import graph_id_of
from weft_attribution.timestamps import timestamp
from weft_common.errors import InvalidArgumentError
from weft_common.pages import paginate
from weft_common.resource_names import parse_name
from weft_store.port import ObjectStore

__all__ = ["QueryRpcs"]

Context = grpc.aio.ServicerContext[object, object]
_MAX_TOKEN_TEXT = 100
_PLACE = re.compile(r"[0-9]{1,9}")


class QueryRpcs(service_pb2_grpc.FeatureServiceServicer):
    """Answers questions, by the domains that are put into it."""

    queries: FeatureQueries
    matching: FeatureMatching
    on_prompt: PromptActivations
    opened: OpenGraphs
    graphs: FeatureGraphs
    store: ObjectStore
    runner: ModelRunner
    turns: Turns

    async def ListFeatures(
        self, request: queries_pb2.ListFeaturesRequest, context: Context
    ) -> service_pb2.ListFeaturesResponse:
        question = _question(request)
        await self.queries.labels.ready(question.transcoder)
        found = await asyncio.to_thread(self.queries.list, question)
        tell_passed_over(context, found.labels.labels)
        return service_pb2.ListFeaturesResponse(
            features=_features(found, request.read_mask), next_page_token=found.next_token, total_size=found.total
        )

    async def SearchFeatures(
        self, request: queries_pb2.SearchFeaturesRequest, context: Context
    ) -> service_pb2.SearchFeaturesResponse:
        question, kind = _question(request), request.WhichOneof("query")
        await self.queries.labels.ready(question.transcoder)
        token_ids: list[int] = []
        if kind == "label":
            found = await asyncio.to_thread(self.queries.by_label, question, request.label)
        elif kind == "token_id":
            token_ids = [request.token_id]
            found = await asyncio.to_thread(self.queries.by_token, question, token_ids)
        elif kind == "token":
            token_ids = await self._tokens(question.transcoder, request.token)
            found = await asyncio.to_thread(self.queries.by_token, question, token_ids)
        else:
            raise InvalidArgumentError("there is no query; give label, token or token_id", field="query")
        tell_passed_over(context, found.labels.labels)
        counts = found.counts.tolist() or [0] * len(found.numbers)
        return service_pb2.SearchFeaturesResponse(
            features=[
                service_pb2.FoundFeature(feature=feature, num_stretches=count)
                for feature, count in zip(_features(found, request.read_mask), counts, strict=True)
            ],
            next_page_token=found.next_token,
            total_size=found.total,
            token_ids=token_ids,
        )

    async def _tokens(self, transcoder: str, text: str) -> list[int]:
        """The token that a text is, by itself or after a space."""
        if not 1 <= len(text) <= _MAX_TOKEN_TEXT:
            raise InvalidArgumentError(f"token has {len(text)} characters; give 1 to {_MAX_TOKEN_TEXT}", field="token")
        model = (await asyncio.to_thread(self.queries.indexes.open, transcoder)).model
        bare, spaced, twice = [
            [token.id for token in await self.runner.tokenize(model, each)] for each in (text, f" {text}", text + text)
        ]
        # What all three begin with is the model's own start token, if it has one.
        start = next(
            (n for n, same in enumerate(zip(bare, spaced, twice, strict=False)) if len(set(same)) > 1), len(bare) - 1
        )
        found = {ids[start] for ids in (bare, spaced) if len(ids) == start + 1}
        if not found:
            raise InvalidArgumentError(
                f"{text!r} is {len(bare) - start} tokens for models/{model}; give a text that is one, or token_id",
                field="token",
            )
        return sorted(found)

    async def GetActivationsOnPrompt(
        self, request: queries_pb2.GetActivationsOnPromptRequest, context: Context
    ) -> queries_pb2.GetActivationsOnPromptResponse:
        kind = queries_pb2.PromptFeature.DESCRIPTOR
        wanted = converting.wanted_fields(request.read_mask, list(kind.fields_by_name), kind)
        transcoder = parse_name(request.transcoder, "transcoders", field="transcoder")
        places = [converting.feature_place(name, "features") for name in request.features]
        if any(place[0] != transcoder for place in places):
            raise InvalidArgumentError(
                f"features has one that is not of transcoders/{transcoder}; ask for each transcoder by itself",
                field="features",
            )
        question = PromptQuestion(
            transcoder,
            request.prompt,
            tuple(sorted(set(request.layers))),
            tuple(sorted({(layer, index) for _, layer, index in places})),
            request.max_features,
            request.page_size,
            request.page_token,
        )
        answer = await self.turns.take(lambda: self.on_prompt.find(question))
        labels = None
        if "label" in wanted:
            labels = await self.queries.labels.labels(transcoder)
            tell_passed_over(context, labels)
        response = queries_pb2.GetActivationsOnPromptResponse(
            tokens=[token.text for token in answer.tokens],
            token_ids=[token.id for token in answer.tokens],
            num_active_features=answer.num_active,
            next_page_token=answer.next_token,
        )
        for each in answer.features:
            shown = queries_pb2.PromptFeature(
                name=f"transcoders/{transcoder}/features/{each.layer}-{each.index}",
                layer=each.layer,
                index=each.index,
                positions=each.positions,
                activations=each.activations,
                relative_max=each.relative_max,
            )
            if labels is not None and (each.layer, each.index) in labels:
                shown.label.CopyFrom(converting.label_to_proto(labels[each.layer, each.index]))
            response.features.append(converting.masked(shown, request.read_mask))
        return response

    async def ListGraphFeatures(
        self, request: queries_pb2.ListGraphFeaturesRequest, context: Context
    ) -> service_pb2.ListGraphFeaturesResponse:
        converting.wanted_fields(request.read_mask, converting.LISTED)
        transcoder, features = await asyncio.to_thread(graph_features, self.opened, graph_id_of(request.graph, "graph"))
        page, next_token = paginate(
            list(enumerate(features)), request.page_size, request.page_token, key=lambda item: f"{item[0]:012d}"
        )
        index = await asyncio.to_thread(self.queries.indexes.find, transcoder)
        labels = await self.queries.labels.labels(transcoder)
        tell_passed_over(context, labels)
        return service_pb2.ListGraphFeaturesResponse(
            features=[
                service_pb2.GraphFeature(
                    feature=converting.masked(
                        converting.summary_to_proto(
                            transcoder, each.layer, each.index, index, labels.get((each.layer, each.index))
                        ),
                        request.read_mask,
                    ),
                    positions=each.positions,
                    activations=each.activations,
                    influence=each.influence,
                )
                for _, each in page
            ],
            next_page_token=next_token,
            total_size=len(features),
        )

    async def ListFeatureGraphs(
        self, request: graphs_pb2.ListFeatureGraphsRequest, context: Context
    ) -> graphs_pb2.ListFeatureGraphsResponse:
        transcoder, layer, index = converting.feature_place(request.parent, "parent")
        await asyncio.to_thread(TranscoderReader, self.store, transcoder)
        found = await asyncio.to_thread(
            self.graphs.find, transcoder, layer, index, request.page_size, request.page_token
        )
        return graphs_pb2.ListFeatureGraphsResponse(
            graphs=[
                graphs_pb2.FeatureGraph(
                    graph=f"graphs/{each.request.graph_id}",
                    prompt=each.request.settings.prompt,
                    positions=each.positions,
                    activations=each.activations,
                    create_time=timestamp(each.request.create_s),
                )
                for each in found.graphs
            ],
            next_page_token=found.next_token,
            num_read=found.num_read,
        )

    async def MatchFeatures(
        self, request: queries_pb2.MatchFeaturesRequest, context: Context
    ) -> queries_pb2.MatchFeaturesResponse:
        transcoder = parse_name(request.transcoder, "transcoders", field="transcoder")
        other = parse_name(request.other, "transcoders", field="other")
        if request.page_token and not _PLACE.fullmatch(request.page_token):
            raise InvalidArgumentError(
                "page_token is not one that a list call returned; leave it empty to begin at the first page",
                field="page_token",
            )
        matches, following = await self.turns.take(
            lambda: in_thread(
                lambda: self.matching.page(
                    transcoder,
                    other,
                    request.layer,
                    min_cosine=request.min_cosine,
                    page_size=request.page_size,
                    first=int(request.page_token or 0),
                )
            )
        )
        return queries_pb2.MatchFeaturesResponse(
            matches=[
                queries_pb2.FeatureMatch(
                    index=each.index, other_index=each.other, cosine=each.cosine, is_mutual=each.is_mutual
                )
                for each in matches
            ],
            next_page_token=str(following) if following else "",
        )


def _question(request: queries_pb2.ListFeaturesRequest | queries_pb2.SearchFeaturesRequest) -> Question:
    converting.wanted_fields(request.read_mask, converting.LISTED)
    return Question(
        parse_name(request.parent, "transcoders", field="parent"),
        converting.filter_from_proto(request.filter),
        request.order_by,
        request.page_size,
        request.page_token,
        request.skip,
    )


def _features(found: FoundFeatures, mask: field_mask_pb2.FieldMask) -> list[service_pb2.Feature]:
    index, shown = found.index, []
    for number in found.numbers.tolist():
        layer, feature = int(index.layer_N[number]), int(index.index_N[number])
        label = found.labels.label(layer, feature)
        shown.append(
            converting.masked(converting.summary_to_proto(index.transcoder, layer, feature, index, label), mask)
        )
    return shown
