"""The base model behind the activations service."""

from collections.abc import Sequence

import grpc
import numpy as np

from weft.activations.v1 import generation_pb2, messages_pb2, service_pb2, service_pb2_grpc
from weft_attribution.core.ports import Addition, Capture, LikelyToken, ModelInfo, SteeredLogits, Token
from weft_common.client import error_from_rpc
from weft_common.errors import DataLossError
from weft_common.tensors import TensorAssembler, tensor_to_proto

__all__ = ["GrpcModelRunner"]


class GrpcModelRunner:
    """
    Speaks to ActivationService.

    Args:
        channel: A channel to it, with its token.
        max_capture_bytes: Largest tensor accepted from a capture.
        timeout_s: Deadline of one call.
    """

    def __init__(self, channel: grpc.aio.Channel, *, max_capture_bytes: int, timeout_s: float) -> None:
        self._stub = service_pb2_grpc.ActivationServiceStub(channel)
        self._max_capture_bytes = max_capture_bytes
        self._timeout_s = timeout_s

    async def model(self, name: str) -> ModelInfo:
        request = service_pb2.GetModelRequest(name=f"models/{name}")
        try:
            return _info(await self._stub.GetModel(request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        request = service_pb2.TokenizeRequest(model=f"models/{model}", text=text)
        try:
            response = await self._stub.Tokenize(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return _tokens(response.tokens)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(token.text for token in await self._detokenize(model, token_ids))

    async def pieces(self, model: str, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        # A service of before this field says texts alone.
        return tuple(token.piece or token.text.encode() for token in await self._detokenize(model, token_ids))

    async def _detokenize(self, model: str, token_ids: Sequence[int]) -> Sequence[messages_pb2.Token]:
        request = service_pb2.DetokenizeRequest(model=f"models/{model}", token_ids=token_ids)
        try:
            response = await self._stub.Detokenize(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return response.tokens

    async def capture(self, model: str, token_ids: Sequence[int], hooks: Sequence[str]) -> Capture:
        return await self._capture(
            service_pb2.CaptureRequest(model=f"models/{model}", prompt=_prompt(token_ids), hooks=hooks)
        )

    async def steer(
        self,
        model: str,
        token_ids: Sequence[int],
        additions: Sequence[Addition],
        *,
        held_layers: Sequence[int],
        freeze_attention: bool,
        hooks: Sequence[str],
    ) -> Capture:
        # What is held is what a pass over the same prompt without changes has there.
        held = [
            messages_pb2.Intervention(
                hook=f"layers.{layer}.mlp_out",
                kind=messages_pb2.INTERVENTION_KIND_PATCH,
                source=_prompt(token_ids),
            )
            for layer in held_layers
        ]
        return await self._capture(
            service_pb2.CaptureRequest(
                model=f"models/{model}",
                prompt=_prompt(token_ids),
                hooks=hooks,
                interventions=[*held, *map(_added, additions)],
                freeze=messages_pb2.Freeze(attention_patterns=freeze_attention, norm_scales=freeze_attention),
            )
        )

    async def _capture(self, request: service_pb2.CaptureRequest) -> Capture:
        assembler = TensorAssembler(self._max_capture_bytes)
        header: service_pb2.CaptureHeader | None = None
        tensors = {}
        try:
            async for response in self._stub.Capture(request, timeout=self._timeout_s):
                if response.WhichOneof("part") == "header":
                    header = response.header
                elif (whole := assembler.add(response.chunk)) is not None:
                    tensors[whole[0]] = np.asarray(whole[1], dtype=np.float32)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        assembler.finish()
        if header is None or set(tensors) != set(header.tensor_names):
            raise DataLossError("the activations service ended a capture early; ask for the graph again")
        return Capture(_info(header.model), _tokens(header.tokens), tensors)

    async def run(
        self,
        model: str,
        token_ids: Sequence[int],
        additions: Sequence[Addition],
        *,
        frozen: bool,
        logits_of: Sequence[int],
    ) -> SteeredLogits:
        request = service_pb2.RunRequest(
            model=f"models/{model}",
            prompt=_prompt(token_ids),
            interventions=[_added(addition) for addition in additions],
            freeze=messages_pb2.Freeze(attention_patterns=frozen, norm_scales=frozen, mlp_outputs=frozen),
            num_top_tokens=1,
            logit_token_ids=logits_of,
        )
        try:
            response = await self._stub.Run(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return SteeredLogits(
            logits=tuple(asked.logit for asked in response.asked_tokens),
            probabilities=tuple(asked.probability for asked in response.asked_tokens),
            mean_logit=response.mean_logit,
        )

    async def generate(
        self, model: str, token_ids: Sequence[int], additions: Sequence[Addition], *, max_new_tokens: int
    ) -> tuple[LikelyToken, ...]:
        request = generation_pb2.GenerateRequest(
            model=f"models/{model}",
            prompt=_prompt(token_ids),
            interventions=[_added(addition) for addition in additions],
            max_new_tokens=max_new_tokens,
        )
        found = []
        try:
            async for response in self._stub.Generate(request, timeout=self._timeout_s):
                token = response.token.token
                found.append(LikelyToken(Token(token.id, token.text), response.token.probability))
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        return tuple(found)


def _added(addition: Addition) -> messages_pb2.Intervention:
    return messages_pb2.Intervention(
        hook=f"layers.{addition.layer}.mlp_out",
        kind=messages_pb2.INTERVENTION_KIND_ADD,
        positions=addition.positions,
        value=tensor_to_proto(addition.value_PD),
    )


def _prompt(token_ids: Sequence[int]) -> messages_pb2.Prompt:
    return messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=token_ids))


def _tokens(tokens: Sequence[messages_pb2.Token]) -> tuple[Token, ...]:
    return tuple(Token(token.id, token.text) for token in tokens)


def _info(model: messages_pb2.Model) -> ModelInfo:
    return ModelInfo(
        name=model.name.removeprefix("models/"),
        architecture=model.architecture,
        num_layers=model.num_layers,
        d_model=model.d_model,
        vocab_size=model.vocab_size,
        max_tokens=model.max_tokens,
        revision=model.revision,
    )
