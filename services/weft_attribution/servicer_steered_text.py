# ruff: noqa: N802  gRPC names the methods
"""The RPC of FeatureService that changes features on a text."""

from collections.abc import Sequence

import grpc.aio

from weft.features.v1 import service_pb2_grpc, steering_pb2
from weft_attribution import converting_features as converting
from weft_attribution.core.feature_index.queries import FeatureQueries
from weft_attribution.core.ports import LikelyToken
from weft_attribution.core.question_turns import Turns
from weft_attribution.core.steered_text import ChangeKind, SteeredText, TextChange, TextPlan
from weft_attribution.label_trailers import tell_passed_over
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import parse_name

__all__ = ["SteeredTextRpcs"]

Context = grpc.aio.ServicerContext[object, object]


class SteeredTextRpcs(service_pb2_grpc.FeatureServiceServicer):
    """Answers by the domains that are put into it."""

    queries: FeatureQueries
    steered: SteeredText
    steering_turns: Turns

    async def SteerOnPrompt(
        self, request: steering_pb2.SteerOnPromptRequest, context: Context
    ) -> steering_pb2.SteerOnPromptResponse:
        transcoder = parse_name(request.transcoder, "transcoders", field="transcoder")
        plan = TextPlan(
            transcoder,
            request.prompt,
            tuple(_change(transcoder, change, place) for place, change in enumerate(request.changes)),
            request.max_new_tokens,
            request.num_top_tokens,
        )
        found = await self.steering_turns.take(lambda: self.steered.steer(plan))
        labels = await self.queries.labels.labels(transcoder)
        tell_passed_over(context, labels)
        response = steering_pb2.SteerOnPromptResponse(
            tokens=[token.text for token in found.tokens],
            token_ids=[token.id for token in found.tokens],
            next_tokens=[
                steering_pb2.NextToken(
                    token_id=each.token.id,
                    text=each.token.text,
                    probability_before=each.probability_before,
                    probability_after=each.probability_after,
                    logit_change=each.logit_change,
                )
                for each in found.next_tokens
            ],
            kl_divergence=found.kl_divergence,
            undisturbed=_continued(found.undisturbed),
            changed=_continued(found.changed),
        )
        for feature in found.features:
            told = response.features.add(
                feature=f"transcoders/{transcoder}/features/{feature.layer}-{feature.index}",
                positions=feature.positions,
                before=feature.before,
                after=feature.after,
                added_after=feature.added_after,
            )
            if (feature.layer, feature.index) in labels:
                told.label.CopyFrom(converting.label_to_proto(labels[feature.layer, feature.index]))
        return response


def _change(transcoder: str, change: steering_pb2.PromptChange, place: int) -> TextChange:
    field = f"changes[{place}]"
    its_transcoder, layer, index = converting.feature_place(change.feature, f"{field}.feature")
    if its_transcoder != transcoder:
        raise InvalidArgumentError(
            f"{field}.feature is not of transcoders/{transcoder}; ask for each transcoder by itself",
            field=f"{field}.feature",
        )
    kind = change.WhichOneof("change")
    if kind is None:
        raise InvalidArgumentError(f"{field} says nothing to do; give factor, value or add", field=field)
    return TextChange(
        layer, index, ChangeKind(kind), float(getattr(change, kind)), tuple(sorted(set(change.positions)))
    )


def _continued(tokens: Sequence[LikelyToken]) -> list[steering_pb2.ContinuedToken]:
    return [
        steering_pb2.ContinuedToken(token_id=each.token.id, text=each.token.text, probability=each.probability)
        for each in tokens
    ]
