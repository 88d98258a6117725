# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Models: what they are, what one forward pass does."""

from collections.abc import Iterator, Sequence

from weft.activations.v1 import generation_pb2, messages_pb2, service_pb2, service_pb2_grpc
from weft_client.capture import Capture
from weft_client.names import full_name
from weft_client.sync.calls import pages, stream, unary
from weft_client.sync.connection import Connection
from weft_common.tensors import TensorAssembler

Prompt = str | Sequence[int] | messages_pb2.Prompt
"""Text, token ids that are taken as they are, or what `weft_client.speech.heard` makes of a recording."""
MAX_CAPTURE_BYTES = 8 << 30


class Models:
    """Models that the activations service runs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.ActivationServiceStub":
        return service_pb2_grpc.ActivationServiceStub(self._connection.channel("activations"))

    def get(self, name: str) -> messages_pb2.Model:
        """Describe one model."""
        return unary(self._stub.GetModel, service_pb2.GetModelRequest(name=full_name("models", name)))

    def list(self) -> Iterator[messages_pb2.Model]:
        """All models, in order of name."""
        return pages(self._stub.ListModels, service_pb2.ListModelsRequest(), lambda page: page.models)

    def tokenize(self, model: str, text: str, *, without_special_tokens: bool = False) -> Sequence[messages_pb2.Token]:
        """Turn text into tokens."""
        request = service_pb2.TokenizeRequest(
            model=full_name("models", model), text=text, without_special_tokens=without_special_tokens
        )
        return (unary(self._stub.Tokenize, request)).tokens

    def detokenize(self, model: str, token_ids: Sequence[int]) -> Sequence[messages_pb2.Token]:
        """Turn token ids into text, one by one."""
        request = service_pb2.DetokenizeRequest(model=full_name("models", model), token_ids=token_ids)
        return (unary(self._stub.Detokenize, request)).tokens

    def capture(
        self,
        model: str,
        prompt: Prompt,
        *,
        hooks: Sequence[str],
        interventions: Sequence[messages_pb2.Intervention] = (),
        freeze: messages_pb2.Freeze | None = None,
        max_bytes: int = MAX_CAPTURE_BYTES,
    ) -> Capture:
        """
        Run a prompt once and take what stands at hooks.

        Args:
            model: `models/{model}` or its id.
            prompt: Text or token ids.
            hooks: For example `layers.*.mlp_in`, `logits`.
            interventions: Changes, see `weft_client.interventions`.
            freeze: What is held at its value without the changes.
            max_bytes: Most that is taken.
        """
        request = service_pb2.CaptureRequest(
            model=full_name("models", model),
            prompt=to_prompt(prompt),
            hooks=hooks,
            interventions=interventions,
            freeze=freeze,
        )
        header = service_pb2.CaptureHeader()
        assembler = TensorAssembler(max_bytes)
        arrays = {}
        for part in stream(self._stub.Capture, request, service_pb2.CaptureResponse):
            if part.HasField("header"):
                header = part.header
            elif (done := assembler.add(part.chunk)) is not None:
                arrays[done[0]] = done[1]
        assembler.finish()
        return Capture(header.model, header.tokens, arrays)

    def generate(
        self,
        model: str,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        interventions: Sequence[messages_pb2.Intervention] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        stop_token_ids: Sequence[int] = (),
    ) -> Iterator[generation_pb2.GenerateResponse]:
        """
        Generate tokens after a prompt; leaving the loop early frees what the service keeps of them.

        Args:
            model: `models/{model}` or its id.
            prompt: Text or token ids.
            max_new_tokens: Most tokens.
            interventions: Changes; those without positions are made at every generated token too.
            temperature: Divides logits before a token is drawn; 0 takes the most likely one.
            top_k: Draws among so many; 0 means all.
            seed: Decides what is drawn.
            stop_token_ids: Ends after one of these.
        """
        request = generation_pb2.GenerateRequest(
            model=full_name("models", model),
            prompt=to_prompt(prompt),
            interventions=interventions,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            stop_token_ids=stop_token_ids,
        )
        yield from stream(self._stub.Generate, request, generation_pb2.GenerateResponse)

    def run(
        self,
        model: str,
        prompt: Prompt,
        *,
        interventions: Sequence[messages_pb2.Intervention] = (),
        freeze: messages_pb2.Freeze | None = None,
        num_top_tokens: int = 10,
        logit_token_ids: Sequence[int] = (),
        return_logits: bool = False,
        position: int | None = None,
    ) -> service_pb2.RunResponse:
        """Run a prompt with interventions; probabilities of the next token, or of those of a position, come back."""
        request = service_pb2.RunRequest(
            model=full_name("models", model),
            prompt=to_prompt(prompt),
            interventions=interventions,
            freeze=freeze,
            num_top_tokens=num_top_tokens,
            logit_token_ids=logit_token_ids,
            return_logits=return_logits,
            position=position,
        )
        return unary(self._stub.Run, request)


def to_prompt(prompt: Prompt) -> messages_pb2.Prompt:
    """What a model reads, as its message."""
    if isinstance(prompt, messages_pb2.Prompt):
        return prompt
    if isinstance(prompt, str):
        return messages_pb2.Prompt(text=prompt)
    return messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=prompt))
