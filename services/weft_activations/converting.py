"""Between the messages of weft.activations.v1 and the core's own words; the checks that need no model are here."""

import datetime
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from weft.activations.v1 import components_pb2, generation_pb2, messages_pb2, packing_pb2, speech_pb2
from weft.common.v1 import operation_pb2, tensor_pb2
from weft_activations.core.changing import Audio, Change, ChangeKind, Prompt
from weft_activations.core.components import component_at, lens_name
from weft_activations.core.generating import End, Generated, Sampling
from weft_activations.core.harvest_records import HarvestProgress, HarvestSpec, StreamPair
from weft_activations.core.inference import LikelyToken
from weft_activations.core.kinds import ModelKind, kind_of
from weft_activations.core.packing import BY_DOCUMENT, Packing, StartRule
from weft_activations.core.ports import Floats, Freeze, ModelInfo
from weft_activations.core.token_texts import TokenText
from weft_common.errors import Code, InvalidArgumentError
from weft_common.resource_names import parse_name
from weft_common.tensors import tensor_from_proto

__all__ = [
    "changes_from_proto",
    "freeze_from_proto",
    "generated_to_proto",
    "harvest_metadata",
    "harvest_to_proto",
    "likely_to_proto",
    "model_to_proto",
    "prompt_from_proto",
    "sampling_from_proto",
    "spec_from_proto",
    "timestamp",
    "token_to_proto",
]

_DATA_TYPES = {"float32": tensor_pb2.DATA_TYPE_FLOAT32, "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16}
_KINDS = {
    messages_pb2.INTERVENTION_KIND_ADD: ChangeKind.ADD,
    messages_pb2.INTERVENTION_KIND_SET: ChangeKind.SET,
    messages_pb2.INTERVENTION_KIND_SCALE: ChangeKind.SCALE,
    messages_pb2.INTERVENTION_KIND_ABLATE: ChangeKind.ABLATE,
    messages_pb2.INTERVENTION_KIND_MEAN: ChangeKind.MEAN,
    messages_pb2.INTERVENTION_KIND_PATCH: ChangeKind.PATCH,
    messages_pb2.INTERVENTION_KIND_RESAMPLE: ChangeKind.RESAMPLE,
}
_ENDS = {End.LENGTH: generation_pb2.GENERATION_END_LENGTH, End.STOP: generation_pb2.GENERATION_END_STOP}
_MODEL_KINDS = {
    ModelKind.DECODER: components_pb2.MODEL_KIND_DECODER,
    ModelKind.ENCODER: components_pb2.MODEL_KIND_ENCODER,
    ModelKind.SPEECH: components_pb2.MODEL_KIND_SPEECH,
}
_DIMS = {
    "P": components_pb2.DIM_POSITION,
    "D": components_pb2.DIM_MODEL,
    "H": components_pb2.DIM_HEAD,
    "K": components_pb2.DIM_KV_HEAD,
    "E": components_pb2.DIM_HEAD_WIDTH,
    "M": components_pb2.DIM_MLP,
    "V": components_pb2.DIM_VOCABULARY,
    "F": components_pb2.DIM_FRAME,
    "S": components_pb2.DIM_STEP,
    "N": components_pb2.DIM_MEL_BIN,
}
_START_RULES = {
    packing_pb2.START_RULE_UNSPECIFIED: StartRule.MODEL,
    packing_pb2.START_RULE_SEQUENCE: StartRule.SEQUENCE,
    packing_pb2.START_RULE_DOCUMENT: StartRule.DOCUMENT,
    packing_pb2.START_RULE_NONE: StartRule.NONE,
}
_MAX_VALUE_BYTES = 256 << 20


def timestamp(seconds: float) -> Timestamp:
    """Turn seconds since 1970 into a timestamp."""
    made = Timestamp()
    made.FromDatetime(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    return made


def model_to_proto(info: ModelInfo) -> messages_pb2.Model:
    """Describe a model."""
    return messages_pb2.Model(
        name=f"models/{info.model_id}",
        architecture=info.architecture,
        num_layers=info.num_layers,
        d_model=info.d_model,
        num_heads=info.num_heads,
        num_kv_heads=info.num_kv_heads,
        vocab_size=info.vocab_size,
        max_tokens=info.max_tokens,
        revision=info.revision,
        data_type=_DATA_TYPES[info.data_type],
        bos_token_id=info.bos_token_id,
        hooks=info.components,
        d_head=info.d_head,
        d_mlp=info.d_mlp,
        components=[_component_to_proto(pattern, info) for pattern in info.components],
        kind=_MODEL_KINDS[kind_of(info)],
        speech=None if info.speech is None else speech_pb2.Speech(**asdict(info.speech)),
    )


def _component_to_proto(pattern: str, info: ModelInfo) -> components_pb2.Component:
    component = component_at(pattern)
    return components_pb2.Component(
        name=pattern, dims=[_DIMS[dim] for dim in component.dims], lens_name=lens_name(pattern, info.components)
    )


def token_to_proto(token: TokenText) -> messages_pb2.Token:
    """Turn a token into its message."""
    return messages_pb2.Token(id=token.token_id, text=token.text, piece=token.piece)


def likely_to_proto(likely: LikelyToken) -> messages_pb2.TokenProbability:
    """Turn a next token into its message."""
    return messages_pb2.TokenProbability(
        token=token_to_proto(likely.token), probability=likely.probability, logit=likely.logit
    )


def prompt_from_proto(prompt: messages_pb2.Prompt) -> Prompt:
    """Read a prompt."""
    kind = prompt.WhichOneof("content")
    audio = _audio_from_proto(prompt.audio) if prompt.HasField("audio") else None
    if kind == "token_ids":
        return Prompt(token_ids=tuple(prompt.token_ids.ids), audio=audio)
    return Prompt(text=prompt.text if kind == "text" else None, audio=audio)


def _audio_from_proto(audio: speech_pb2.Audio) -> Audio:
    kind = audio.WhichOneof("source")
    if kind == "features":
        return Audio(features_NS=_array(audio.features, "audio.features"))
    return Audio(wav=audio.wav if kind == "wav" else None)


def changes_from_proto(interventions: Sequence[messages_pb2.Intervention]) -> list[Change]:
    """Read interventions, as far as can be done without the model."""
    changes = []
    for index, each in enumerate(interventions):
        field = f"interventions[{index}]"
        if each.kind not in _KINDS:
            raise InvalidArgumentError(
                f"the kind of intervention {index} is not set; give one of "
                f"{', '.join(kind.name for kind in ChangeKind)}",
                field=f"{field}.kind",
            )
        changes.append(
            Change(
                hook=each.hook,
                kind=_KINDS[each.kind],
                positions=tuple(each.positions),
                heads=tuple(each.heads),
                neurons=tuple(each.neurons),
                value=_array(each.value, f"{field}.value") if each.HasField("value") else None,
                factor=each.factor,
                direction=_array(each.direction, f"{field}.direction") if each.HasField("direction") else None,
                source=prompt_from_proto(each.source) if each.HasField("source") else None,
                source_positions=tuple(each.source_positions),
                seed=each.seed,
            )
        )
    return changes


def _array(tensor: tensor_pb2.Tensor, field: str) -> Floats:
    return tensor_from_proto(tensor, max_bytes=_MAX_VALUE_BYTES, field=field).astype(np.float32)


def sampling_from_proto(request: generation_pb2.GenerateRequest) -> Sampling:
    """Read how tokens are chosen."""
    return Sampling(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        seed=request.seed,
        stop_token_ids=tuple(request.stop_token_ids),
    )


def generated_to_proto(generated: Generated) -> generation_pb2.GenerateResponse:
    """Turn a generated token into its message."""
    return generation_pb2.GenerateResponse(
        token=likely_to_proto(generated.likely),
        end=generation_pb2.GENERATION_END_UNSPECIFIED if generated.end is None else _ENDS[generated.end],
        prompt_tokens=map(token_to_proto, generated.prompt),
    )


def freeze_from_proto(freeze: messages_pb2.Freeze) -> Freeze:
    """Read what is held."""
    return Freeze(freeze.attention_patterns, freeze.norm_scales, freeze.mlp_outputs)


def spec_from_proto(spec: messages_pb2.HarvestSpec) -> HarvestSpec:
    """Read a harvest's spec."""
    return HarvestSpec(
        model=parse_name(spec.model, "models", field="spec.model"),
        dataset=parse_name(spec.dataset, "datasets", field="spec.dataset"),
        corpus=parse_name(spec.corpus, "corpora", field="spec.corpus"),
        num_tokens=spec.num_tokens,
        held_out_share=spec.held_out_share,
        sequence_tokens=spec.sequence_tokens,
        input_hook=spec.streams.input_hook,
        output_hook=spec.streams.output_hook,
        codec=spec.codec.kind,
        target_fvu=spec.codec.target_fvu,
        max_norm_ratio=spec.max_norm_ratio,
        lease_sequences=spec.lease_sequences,
        packing=_packing_from_proto(spec.packing),
        also=tuple(
            StreamPair(
                parse_name(pair.dataset, "datasets", field=f"spec.also[{index}].dataset"),
                pair.streams.input_hook,
                pair.streams.output_hook,
            )
            for index, pair in enumerate(spec.also)
        ),
    )


def _packing_from_proto(packing: packing_pb2.Packing) -> Packing:
    if packing.start_rule not in _START_RULES:
        raise InvalidArgumentError(
            f"start_rule is {packing.start_rule}, which this service does not know; give SEQUENCE, DOCUMENT or NONE",
            field="spec.packing.start_rule",
        )
    return Packing(
        cross_documents=packing.cross_documents,
        start_rule=_START_RULES[packing.start_rule],
        separator_token_id=packing.separator_token_id if packing.HasField("separator_token_id") else None,
        max_document_tokens=packing.max_document_tokens,
        skipped_token_ids=tuple(sorted(set(packing.skipped_token_ids))),
    )


def _packing_to_proto(packing: Packing) -> packing_pb2.Packing | None:
    if packing == BY_DOCUMENT:
        return None
    rules = {rule: number for number, rule in _START_RULES.items()}
    return packing_pb2.Packing(
        cross_documents=packing.cross_documents,
        start_rule=rules[packing.start_rule],
        separator_token_id=packing.separator_token_id,
        max_document_tokens=packing.max_document_tokens,
        skipped_token_ids=packing.skipped_token_ids,
    )


def harvest_to_proto(
    progress: HarvestProgress, operation: operations_pb2.Operation | None, name: str
) -> messages_pb2.Harvest:
    """
    Describe a harvest.

    Args:
        progress: What is committed.
        operation: The work of its present attempt; None where it is not there (any more).
        name: The operation's name.
    """
    record = progress.record
    spec = record.spec
    state, message = messages_pb2.HARVEST_STATE_RUNNING, ""
    if record.sealed:
        state = messages_pb2.HARVEST_STATE_SUCCEEDED
    elif operation is not None and operation.done and operation.HasField("error"):
        cancelled = operation.error.code == Code.CANCELLED
        state = messages_pb2.HARVEST_STATE_CANCELLED if cancelled else messages_pb2.HARVEST_STATE_FAILED
        message = operation.error.message
    elif record.paused:
        state = messages_pb2.HARVEST_STATE_PAUSED
    return messages_pb2.Harvest(
        name=f"harvests/{record.harvest_id}",
        spec=messages_pb2.HarvestSpec(
            model=f"models/{spec.model}",
            dataset=f"datasets/{spec.dataset}",
            corpus=f"corpora/{spec.corpus}",
            num_tokens=spec.num_tokens,
            held_out_share=spec.held_out_share,
            sequence_tokens=spec.sequence_tokens,
            streams=messages_pb2.Streams(input_hook=spec.input_hook, output_hook=spec.output_hook),
            codec=messages_pb2.Codec(kind=spec.codec, target_fvu=spec.target_fvu),
            max_norm_ratio=spec.max_norm_ratio,
            lease_sequences=spec.lease_sequences,
            packing=_packing_to_proto(spec.packing),
            also=[
                messages_pb2.AlsoKept(
                    dataset=f"datasets/{pair.dataset}",
                    streams=messages_pb2.Streams(input_hook=pair.input_hook, output_hook=pair.output_hook),
                )
                for pair in spec.also
            ],
        ),
        state=state,
        tokens_committed=progress.tokens_committed,
        tokens_held_out=progress.tokens_held_out,
        tokens_skipped=progress.tokens_skipped,
        num_leases=record.num_leases,
        num_leases_done=progress.num_leases_done,
        tokens_per_s=progress.tokens_per_s,
        create_time=timestamp(record.create_s),
        error_message=message,
        operation=name,
        corpus_broken_records=record.corpus_broken_records,
    )


def harvest_metadata(progress: HarvestProgress, now_s: float) -> messages_pb2.HarvestMetadata:
    """Say how far a harvest is, in tokens."""
    record = progress.record
    return messages_pb2.HarvestMetadata(
        harvest=f"harvests/{record.harvest_id}",
        progress=operation_pb2.Progress(
            stage="harvesting" if progress.num_leases_done < record.num_leases else "sealing",
            completed=progress.tokens_committed + progress.tokens_skipped,
            total=record.num_tokens,
            unit="tokens",
            create_time=timestamp(record.create_s),
            update_time=timestamp(now_s),
        ),
    )
