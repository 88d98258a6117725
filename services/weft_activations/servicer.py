"""weft.activations.v1.ActivationService: from messages to the core and back."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

import grpc.aio
from google.longrunning import operations_pb2

from weft.activations.v1 import corpora_pb2, generation_pb2, messages_pb2, service_pb2, service_pb2_grpc
from weft_activations import converting
from weft_activations.core.generating import Generation
from weft_activations.core.harvest_records import HarvestProgress, HarvestRecord
from weft_activations.core.harvest_worker import HarvestWorker
from weft_activations.core.harvests import Harvests
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Split
from weft_activations.core.replacing_limits import CallBudget, CallLimits
from weft_activations.corpus_calls import CorpusCalls
from weft_activations.replacing_dialogue import replace_mlps
from weft_activations.servicer_analyses import AnalysisMethods
from weft_common.errors import FailedPreconditionError, NotFoundError
from weft_common.operations import OperationContext, OperationKind, OperationManager
from weft_common.pages import newest_first, paginate
from weft_common.resource_names import parse_name
from weft_common.tensors import encode_chunks, tensor_to_proto

__all__ = ["HARVEST_KIND", "ActivationServicer", "harvest_kind"]

HARVEST_KIND = "harvest"
_PAGE_SIZE = 100
# A forward pass that has begun is not cut off; who cancels hears of the end where it comes soon.
_CANCEL_S = 10.0
_GOING: Mapping[int, str] = {messages_pb2.HARVEST_STATE_RUNNING: "running", messages_pb2.HARVEST_STATE_PAUSED: "paused"}
_STOPPED: Mapping[int, str] = {
    messages_pb2.HARVEST_STATE_PAUSED: "paused",
    messages_pb2.HARVEST_STATE_FAILED: "failed",
    messages_pb2.HARVEST_STATE_CANCELLED: "cancelled",
}
Context = grpc.aio.ServicerContext[object, object]


def harvest_kind(worker: HarvestWorker, service: str) -> OperationKind:
    """Return the work of a harvest, which every replica does its share of."""

    async def work(context: OperationContext) -> messages_pb2.Harvest:
        assert isinstance(context.request, service_pb2.GetHarvestRequest)
        harvest_id = parse_name(context.request.name, "harvests")

        async def report(progress: HarvestProgress) -> None:
            await context.report(converting.harvest_metadata(progress, time.time()))

        progress = await worker.run(harvest_id, report)
        return converting.harvest_to_proto(progress, None, f"operations/{service}-{context.operation_id}")

    return OperationKind(work, shared=True)


class ActivationServicer(AnalysisMethods, service_pb2_grpc.ActivationServiceServicer):
    """Answers the RPCs."""

    def __init__(
        self,
        inference: Inference,
        generation: Generation,
        harvests: Harvests,
        operations: OperationManager,
        corpora: CorpusCalls,
        *,
        replace_limits: CallLimits,
    ) -> None:
        super().__init__(inference)
        self._generation = generation
        self._harvests = harvests
        self._operations = operations
        self._corpora = corpora
        self._replace_limits = replace_limits

    async def GetModel(self, request: service_pb2.GetModelRequest, context: Context) -> messages_pb2.Model:
        return converting.model_to_proto(await self._inference.describe(parse_name(request.name, "models")))

    async def ListModels(
        self, request: service_pb2.ListModelsRequest, context: Context
    ) -> service_pb2.ListModelsResponse:
        ids = await self._inference.runnable_ids()
        page, token = paginate(ids, request.page_size, request.page_token, default_size=_PAGE_SIZE)
        models = [converting.model_to_proto(await self._inference.describe(model_id)) for model_id in page]
        return service_pb2.ListModelsResponse(models=models, next_page_token=token)

    async def Tokenize(self, request: service_pb2.TokenizeRequest, context: Context) -> service_pb2.TokenizeResponse:
        tokens = await self._inference.tokenize(
            _model_id(request.model), request.text, special_tokens=not request.without_special_tokens
        )
        return service_pb2.TokenizeResponse(tokens=map(converting.token_to_proto, tokens))

    async def Detokenize(
        self, request: service_pb2.DetokenizeRequest, context: Context
    ) -> service_pb2.DetokenizeResponse:
        tokens = await self._inference.detokenize(_model_id(request.model), request.token_ids)
        return service_pb2.DetokenizeResponse(tokens=map(converting.token_to_proto, tokens))

    async def Capture(  # type: ignore[override]  # it writes by itself, which gRPC takes as well
        self, request: service_pb2.CaptureRequest, context: Context
    ) -> None:
        capturing = self._inference.capturing(
            _model_id(request.model),
            converting.prompt_from_proto(request.prompt),
            request.hooks,
            converting.changes_from_proto(request.interventions),
            converting.freeze_from_proto(request.freeze),
        )
        # Written here and not yielded: a caller that goes away ends this, and what it holds, at once.
        async with capturing as passed:
            header = service_pb2.CaptureHeader(
                model=converting.model_to_proto(passed.info),
                tokens=map(converting.token_to_proto, passed.tokens),
                tensor_names=passed.captures,
            )
            await context.write(service_pb2.CaptureResponse(header=header))
            for name, array in passed.captures.items():
                for encoded in encode_chunks(service_pb2.CaptureResponse.CHUNK_FIELD_NUMBER, name, array):
                    await context.write(encoded)

    async def Run(self, request: service_pb2.RunRequest, context: Context) -> service_pb2.RunResponse:
        predicted = await self._inference.run(
            _model_id(request.model),
            converting.prompt_from_proto(request.prompt),
            converting.changes_from_proto(request.interventions),
            converting.freeze_from_proto(request.freeze),
            num_top_tokens=request.num_top_tokens,
            asked_token_ids=request.logit_token_ids,
            position=request.position if request.HasField("position") else None,
        )
        return service_pb2.RunResponse(
            tokens=map(converting.token_to_proto, predicted.tokens),
            top_tokens=map(converting.likely_to_proto, predicted.top),
            asked_tokens=map(converting.likely_to_proto, predicted.asked),
            logits=tensor_to_proto(predicted.logits) if request.return_logits else None,
            mean_logit=predicted.mean_logit,
        )

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        tokens = self._generation.generate(
            _model_id(request.model),
            converting.prompt_from_proto(request.prompt),
            converting.changes_from_proto(request.interventions),
            converting.sampling_from_proto(request),
        )
        async with aclosing(tokens):
            async for generated in tokens:
                yield converting.generated_to_proto(generated)

    async def ReadSequences(
        self, request: service_pb2.ReadSequencesRequest, context: Context
    ) -> AsyncIterator[service_pb2.ReadSequencesResponse]:
        dataset = parse_name(request.dataset, "datasets", field="dataset")
        found = await self._harvests.sequences(
            dataset,
            Split.HELD_OUT if request.held_out else Split.TRAIN,
            request.max_tokens,
        )
        header = service_pb2.SequencesHeader(
            model=f"models/{found.record.spec.model}",
            model_revision=found.record.model_revision,
            input_hook=found.record.spec.pair_of(dataset).input_hook,
            output_norm_limits=found.output_norm_limits,
            tells_left_out=found.left_out is not None,
        )
        yield service_pb2.ReadSequencesResponse(header=header)
        for at, sequence in enumerate(found.sequences):
            yield service_pb2.ReadSequencesResponse(
                sequence=messages_pb2.TokenIds(ids=sequence.ids.tolist()),
                skipped_positions=sequence.skipped.tolist(),
                left_out_positions=found.left_out[at].tolist() if found.left_out is not None else (),
            )

    async def ReplaceMlps(  # type: ignore[override]  # it writes by itself, which gRPC takes as well
        self, request_iterator: AsyncIterator[service_pb2.ReplaceMlpsRequest], context: Context
    ) -> None:
        budget = CallBudget(self._replace_limits)
        answers = replace_mlps(aiter(request_iterator), self._inference, budget)
        # Written here and not yielded: the time that a caller takes to receive counts too.
        async with aclosing(answers), budget.within_time():
            async for response in answers:
                await context.write(response)

    async def UploadCorpus(
        self, request_iterator: AsyncIterator[service_pb2.UploadCorpusRequest], context: Context
    ) -> service_pb2.Corpus:
        return await self._corpora.upload(aiter(request_iterator))

    async def UploadCorpusFile(
        self, request_iterator: AsyncIterator[corpora_pb2.UploadCorpusFileRequest], context: Context
    ) -> corpora_pb2.UploadCorpusFileResponse:
        return await self._corpora.upload_file(aiter(request_iterator))

    async def ImportCorpus(
        self, request: corpora_pb2.ImportCorpusRequest, context: Context
    ) -> operations_pb2.Operation:
        return await self._corpora.import_files(request)

    async def GetCorpus(self, request: service_pb2.GetCorpusRequest, context: Context) -> service_pb2.Corpus:
        return await self._corpora.get(request.name)

    async def ListCorpora(
        self, request: service_pb2.ListCorporaRequest, context: Context
    ) -> service_pb2.ListCorporaResponse:
        return await self._corpora.list(request.page_size, request.page_token)

    async def CreateHarvest(
        self, request: service_pb2.CreateHarvestRequest, context: Context
    ) -> operations_pb2.Operation:
        spec = converting.spec_from_proto(request.spec)
        if request.validate_only:
            await self._harvests.check(request.harvest_id, spec)
            return operations_pb2.Operation(done=True)
        record = await self._harvests.create(request.harvest_id, spec, request.request_id)
        return await self._started(record)

    async def PauseHarvest(self, request: service_pb2.PauseHarvestRequest, context: Context) -> messages_pb2.Harvest:
        found = await self._in_state(request.name, "pause", _GOING)
        await self._harvests.set_paused(parse_name(found.name, "harvests"), True)
        return await self._described(parse_name(found.name, "harvests"))

    async def ResumeHarvest(self, request: service_pb2.ResumeHarvestRequest, context: Context) -> messages_pb2.Harvest:
        found = await self._in_state(request.name, "resume", _STOPPED)
        harvest_id = parse_name(found.name, "harvests")
        await self._harvests.set_paused(harvest_id, False)
        if found.state != messages_pb2.HARVEST_STATE_PAUSED:
            await self._started((await self._harvests.get(harvest_id)).record)
        return await self._described(harvest_id)

    async def CancelHarvest(self, request: service_pb2.CancelHarvestRequest, context: Context) -> messages_pb2.Harvest:
        found = await self._in_state(request.name, "cancel", _GOING)
        await self._operations.cancel(found.operation)
        await self._operations.wait(found.operation, _CANCEL_S)
        return await self._described(parse_name(found.name, "harvests"))

    async def GetHarvest(self, request: service_pb2.GetHarvestRequest, context: Context) -> messages_pb2.Harvest:
        return await self._described(parse_name(request.name, "harvests"))

    async def ListHarvests(
        self, request: service_pb2.ListHarvestsRequest, context: Context
    ) -> service_pb2.ListHarvestsResponse:
        records = await self._harvests.list()
        page, token = paginate(
            records,
            request.page_size,
            request.page_token,
            lambda record: newest_first(record.create_s, record.harvest_id),
            default_size=_PAGE_SIZE,
        )
        harvests = [await self._described(record.harvest_id) for record in page]
        return service_pb2.ListHarvestsResponse(harvests=harvests, next_page_token=token)

    async def _started(self, record: HarvestRecord) -> operations_pb2.Operation:
        """Find the operation that does the work, or begin another one where the last ended without success."""
        if not record.sealed:
            last = await self._operation(self._operations.name(record.operation_id))
            if last is not None and last.done and last.HasField("error"):
                record = await self._harvests.next_attempt(record)
        progress = await self._harvests.get(record.harvest_id)
        return await self._operations.start(
            HARVEST_KIND,
            progress.record.operation_id,
            service_pb2.GetHarvestRequest(name=f"harvests/{record.harvest_id}"),
            converting.harvest_metadata(progress, time.time()),
        )

    async def _in_state(self, name: str, what: str, states: Mapping[int, str]) -> messages_pb2.Harvest:
        """Describe a harvest whose state is one of those from which something can be done with it."""
        found = await self._described(parse_name(name, "harvests"))
        if found.state not in states:
            state = messages_pb2.HarvestState.Name(found.state).removeprefix("HARVEST_STATE_").lower()
            raise FailedPreconditionError(
                f"{found.name} is {state}; {what} one that is {' or '.join(states.values())}", field="name"
            )
        return found

    async def _described(self, harvest_id: str) -> messages_pb2.Harvest:
        progress = await self._harvests.get(harvest_id)
        name = self._operations.name(progress.record.operation_id)
        return converting.harvest_to_proto(progress, await self._operation(name), name)

    async def _operation(self, name: str) -> operations_pb2.Operation | None:
        try:
            return await self._operations.get(name)
        except NotFoundError:
            return None


def _model_id(name: str) -> str:
    return parse_name(name, "models", field="model")
