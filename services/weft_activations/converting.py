"""Between the messages of weft.activations.v1 and the core's own words; the checks that need no model are here."""

import datetime
from collections.abc import Sequence

import numpy as np
from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from weft.activations.v1 import messages_pb2, packing_pb2
from weft.common.v1 import operation_pb2, tensor_pb2
from weft_activations.core.harvest_records import HarvestProgress, HarvestSpec
from weft_activations.core.hooks import hook_patterns
from weft_activations.core.inference import Change, LikelyToken, Prompt, TokenText
from weft_activations.core.packing import BY_DOCUMENT, Packing, StartRule
from weft_activations.core.ports import Freeze, InterventionKind, ModelInfo
from weft_common.errors import Code, InvalidArgumentError
from weft_common.resource_names import parse_name
from weft_common.tensors import tensor_from_proto

__all__ = [
    "changes_from_proto",
    "freeze_from_proto",
    "harvest_metadata",
    "harvest_to_proto",
    "likely_to_proto",
    "model_to_proto",
    "prompt_from_proto",
    "spec_from_proto",
    "timestamp",
    "token_to_proto",
]

_DATA_TYPES = {"float32": tensor_pb2.DATA_TYPE_FLOAT32, "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16}
_KINDS = {
    messages_pb2.INTERVENTION_KIND_ADD: InterventionKind.ADD,
    messages_pb2.INTERVENTION_KIND_SET: InterventionKind.SET,
    messages_pb2.INTERVENTION_KIND_SCALE: InterventionKind.SCALE,
    messages_pb2.INTERVENTION_KIND_ABLATE: InterventionKind.ABLATE,
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
        hooks=hook_patterns(),
    )


def token_to_proto(token: TokenText) -> messages_pb2.Token:
    """Turn a token into its message."""
    return messages_pb2.Token(id=token.token_id, text=token.text)


def likely_to_proto(likely: LikelyToken) -> messages_pb2.TokenProbability:
    """Turn a next token into its message."""
    return messages_pb2.TokenProbability(
        token=token_to_proto(likely.token), probability=likely.probability, logit=likely.logit
    )


def prompt_from_proto(prompt: messages_pb2.Prompt) -> Prompt:
    """Read a prompt."""
    kind = prompt.WhichOneof("content")
    if kind == "token_ids":
        return Prompt(token_ids=tuple(prompt.token_ids.ids))
    return Prompt(text=prompt.text) if kind == "text" else Prompt()


def changes_from_proto(interventions: Sequence[messages_pb2.Intervention]) -> list[Change]:
    """Read interventions, as far as can be done without the model."""
    changes = []
    for index, each in enumerate(interventions):
        field = f"interventions[{index}]"
        if each.kind not in _KINDS:
            raise InvalidArgumentError(
                f"the kind of intervention {index} is not set; give ADD, SET, SCALE or ABLATE", field=f"{field}.kind"
            )
        value = None
        if each.HasField("value"):
            value = tensor_from_proto(each.value, max_bytes=_MAX_VALUE_BYTES, field=f"{field}.value").astype(np.float32)
        changes.append(Change(each.hook, _KINDS[each.kind], tuple(each.positions), value, each.factor))
    return changes


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
