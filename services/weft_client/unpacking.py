"""Results and metadata of operations, out of their envelopes."""

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from weft.activations.v1 import corpora_pb2
from weft.activations.v1 import messages_pb2 as activations
from weft.activations.v1 import service_pb2 as activations_service
from weft.attribution.v1 import batches_pb2, steering_pb2
from weft.attribution.v1 import messages_pb2 as attribution
from weft.cache.v1 import retention_pb2, service_pb2
from weft.features.v1 import export_pb2, index_pb2, interpretation_pb2
from weft.training.v1 import messages_pb2 as training
from weft_common.errors import DataLossError

KINDS: dict[str, type[Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        activations.Harvest,
        activations.HarvestMetadata,
        activations_service.Corpus,
        attribution.Graph,
        attribution.GraphMetadata,
        batches_pb2.GraphBatch,
        batches_pb2.GraphBatchMetadata,
        corpora_pb2.CorpusImportMetadata,
        export_pb2.FeatureExport,
        export_pb2.FeatureExportMetadata,
        interpretation_pb2.ExplainFeaturesResponse,
        interpretation_pb2.InterpretationMetadata,
        interpretation_pb2.ScoreFeaturesResponse,
        index_pb2.FeatureIndex,
        index_pb2.FeatureIndexMetadata,
        retention_pb2.CatalogWorkMetadata,
        retention_pb2.CollectGarbageResponse,
        service_pb2.VerifyDatasetResponse,
        steering_pb2.Faithfulness,
        training.Evaluation,
        training.Run,
        training.RunMetadata,
        training.Transcoder,
        training.TranscoderFiles,
        training.TranscoderMetadata,
    )
}


def unpack(envelope: AnyMessage) -> Message:
    """
    The message inside.

    Raises:
        DataLossError: it is of a kind that this client does not know, or does not decode.
    """
    kind = KINDS.get(envelope.TypeName())
    if kind is None:
        raise DataLossError(
            f"the service sent a {envelope.TypeName() or 'message without a type'}, which this client does not know; "
            "bring client and service to the same version"
        )
    message = kind()
    try:
        message.ParseFromString(envelope.value)
    except DecodeError as error:
        raise DataLossError(f"the service sent a {envelope.TypeName()} that does not decode; ask again") from error
    return message
