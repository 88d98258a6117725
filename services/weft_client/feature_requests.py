"""Requests about features, which the asyncio client and the blocking one put alike."""

from collections.abc import Sequence

from google.protobuf import field_mask_pb2

from weft.features.v1 import queries_pb2
from weft_client.names import feature_name, full_name


def on_prompt_request(
    transcoder: str,
    prompt: str,
    layers: Sequence[int],
    features: Sequence[tuple[int, int]],
    max_features: int,
    fields: Sequence[str],
    page_size: int = 0,
) -> queries_pb2.GetActivationsOnPromptRequest:
    """Ask what fires on a prompt; see `AsyncFeatures.on_prompt`, and `on_prompt_pages` for `page_size`."""
    return queries_pb2.GetActivationsOnPromptRequest(
        transcoder=full_name("transcoders", transcoder),
        prompt=prompt,
        layers=layers,
        features=[feature_name(transcoder, layer, index) for layer, index in features],
        max_features=max_features,
        page_size=page_size,
        read_mask=fields_mask(fields),
    )


def fields_mask(fields: Sequence[str]) -> field_mask_pb2.FieldMask:
    """Name fields of an answer; none means the usual ones."""
    return field_mask_pb2.FieldMask(paths=fields)
