"""Analyses of single forward passes: what comes back are arrays whose dims have names."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np

from weft.activations.v1 import analyses_pb2, service_pb2_grpc
from weft_client.aio.calls import stream, unary
from weft_client.aio.connection import AsyncConnection
from weft_client.aio.models import MAX_CAPTURE_BYTES, Prompt, to_prompt
from weft_client.analysis import Analysis, along, texts, token_array
from weft_client.names import full_name
from weft_client.patterns import ATTENTION_KINDS, patterns_of
from weft_common.errors import DataLossError, InvalidArgumentError
from weft_common.tensors import TensorAssembler, tensor_from_proto

MAX_BLOCK_BYTES = 64 << 20
MEASURE_S = 600.0
"""Deadline of a call that runs the model several times before it answers."""
Progress = Callable[[int, int], None]
"""Takes cells done and cells in all."""


class AsyncAnalyses:
    """What goes on inside a model, by the activations service."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> "service_pb2_grpc.ActivationServiceAsyncStub":
        return service_pb2_grpc.ActivationServiceStub(self._connection.channel("activations"))

    async def logit_lens(
        self,
        model: str,
        prompt: Prompt,
        *,
        depths: Sequence[int] = (),
        positions: Sequence[int] = (),
        num_top_tokens: int = 5,
        target_token_id: int | None = None,
    ) -> Analysis:
        """
        What the model would predict if it ended at each depth.

        Args:
            model: `models/{model}` or its id.
            prompt: Text or token ids.
            depths: `l` is the stream before layer l, the number of layers what the model ends with; none means all.
            positions: None means all.
            num_top_tokens: 1 to 20.
            target_token_id: A token that is followed through the depths.

        Returns:
            `top_token_id`, `top_token`, `top_probability` and `top_logit` by depth, position and rank; `kl` in nats by
            depth and position; with a target `target_logit`, `target_probability` and `target_rank`.
        """
        request = analyses_pb2.LogitLensRequest(
            model=full_name("models", model),
            prompt=to_prompt(prompt),
            depths=depths,
            positions=positions,
            num_top_tokens=num_top_tokens,
            target_token_id=target_token_id,
        )
        header = analyses_pb2.LogitLensHeader()
        blocks: dict[str, list[Any]] = {}
        async for part in stream(self._stub.LogitLens, request, analyses_pb2.LogitLensResponse):
            if part.HasField("header"):
                header = part.header
                continue
            shape = (len(header.depths), part.block.num_positions, header.num_top_tokens)
            ids, words = token_array(part.block.top_tokens, shape)
            blocks.setdefault("top_token_id", []).append(ids)
            blocks.setdefault("top_token", []).append(words)
            block: Any = part.block
            for name, field in _LENS_FIELDS.items():
                if block.HasField(field):
                    tensor = tensor_from_proto(getattr(block, field), max_bytes=MAX_BLOCK_BYTES)
                    blocks.setdefault(name, []).append(tensor)
        whole = {name: np.concatenate(pieces, axis=1) for name, pieces in blocks.items()}
        if not whole or whole["kl"].shape[1] != len(header.positions):
            raise DataLossError("the lens ended before its last position; ask for it again")
        dims = ("depth", "position", "rank")
        return Analysis(
            header.model,
            header.tokens,
            {name: (dims[: array.ndim], array) for name, array in whole.items()},
            {
                "depth": ("depth", list(header.depths)),
                **along(header.tokens, header.positions),
                "rank": ("rank", list(range(header.num_top_tokens))),
            },
            {"target": header.target.text} if header.HasField("target") else {},
        )

    async def attribute_logits(
        self,
        model: str,
        prompt: Prompt,
        *,
        token_ids: Sequence[int],
        position: int | None = None,
        level: str = "layer",
        num_neurons: int = 50,
    ) -> Analysis:
        """
        Logits as sums of what each part of the model wrote.

        Args:
            model: `models/{model}` or its id.
            prompt: Text or token ids.
            token_ids: The logits, 1 to 32.
            position: None means the last.
            level: `layer`, `head` or `neuron`.
            num_neurons: Of `neuron`, how many are told one by one, 1 to 1000.

        Returns:
            `contribution` by part and target, which adds up over the parts to the logit before a soft cap; `logit` by
            target.
        """
        if level not in _LEVELS:
            raise InvalidArgumentError(f"there is no level {level!r}; give {', '.join(_LEVELS)}", field="level")
        request = analyses_pb2.AttributeLogitsRequest(
            model=full_name("models", model),
            prompt=to_prompt(prompt),
            token_ids=token_ids,
            position=position,
            level=_LEVELS[level],
            num_neurons=num_neurons,
        )
        found = await unary(self._stub.AttributeLogits, request, timeout_s=MEASURE_S)
        return Analysis(
            found.model,
            found.tokens,
            {
                "contribution": (
                    ("part", "target"),
                    tensor_from_proto(found.contributions, max_bytes=MAX_BLOCK_BYTES),
                ),
                "logit": (("target",), tensor_from_proto(found.logits, max_bytes=MAX_BLOCK_BYTES)),
            },
            {"part": ("part", list(found.parts)), "target": ("target", texts(found.targets))},
            {"position": found.position},
        )

    async def attention_patterns(
        self,
        model: str,
        prompt: Prompt,
        *,
        kind: str = "tokens",
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
        positions: Sequence[int] = (),
        max_bytes: int = MAX_CAPTURE_BYTES,
    ) -> Analysis:
        """
        Attention patterns.

        Args:
            model: `models/{model}` or its id.
            prompt: Text or token ids; for a model of speech what `weft_client.speech.heard` makes.
            kind: `tokens` at tokens; of a model of speech also `frames` at frames, or `cross`, tokens at frames.
            layers: None means all.
            heads: None means all.
            positions: Positions, or frames, that attend; none means all.
            max_bytes: Most that is taken.

        Returns:
            `pattern` by layer, head, position and source, which it adds up to one over; frames are `frame` and
            `source_frame`, with their seconds beside them.
        """
        if kind not in ATTENTION_KINDS:
            raise InvalidArgumentError(f"there is no kind {kind!r}; give {', '.join(ATTENTION_KINDS)}", field="kind")
        request = analyses_pb2.GetAttentionPatternsRequest(
            model=full_name("models", model),
            prompt=to_prompt(prompt),
            kind=ATTENTION_KINDS[kind],
            layers=layers,
            heads=heads,
            positions=positions,
        )
        header = analyses_pb2.AttentionPatternsHeader()
        assembler = TensorAssembler(max_bytes)
        found = []
        async for part in stream(self._stub.GetAttentionPatterns, request, analyses_pb2.GetAttentionPatternsResponse):
            if part.HasField("header"):
                header = part.header
            elif (done := assembler.add(part.chunk)) is not None:
                found.append(done[1])
        assembler.finish()
        if len(found) != len(header.layers) or not found:
            raise DataLossError("the patterns ended before their last layer; ask for them again")
        return patterns_of(header, np.stack(found))

    async def score_heads(self, model: str, *, num_tokens: int = 50, num_sequences: int = 4, seed: int = 0) -> Analysis:
        """
        How much each head does three known things, over random tokens that repeat.

        Args:
            model: `models/{model}` or its id.
            num_tokens: Random tokens of a sequence before they are repeated.
            num_sequences: Sequences to average over.
            seed: The same one gives the same scores.

        Returns:
            `induction`, `previous_token` and `duplicate_token` by layer and head, 0 to 1.
        """
        request = analyses_pb2.ScoreHeadsRequest(
            model=full_name("models", model), num_tokens=num_tokens, num_sequences=num_sequences, seed=seed
        )
        found = await unary(self._stub.ScoreHeads, request, timeout_s=MEASURE_S)
        scores = {
            name: (("layer", "head"), tensor_from_proto(getattr(found, name), max_bytes=MAX_BLOCK_BYTES))
            for name in ("induction", "previous_token", "duplicate_token")
        }
        return Analysis(
            found.model,
            [],
            scores,
            {
                "layer": ("layer", list(range(found.model.num_layers))),
                "head": ("head", list(range(found.model.num_heads))),
            },
            {"num_tokens": found.num_tokens, "num_sequences": found.num_sequences, "seed": seed},
        )

    async def sweep_patches(
        self,
        model: str,
        *,
        clean: Prompt,
        corrupted: Prompt,
        metric: analyses_pb2.PatchMetric,
        components: Sequence[str] = (),
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
        positions: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> Analysis:
        """
        Activation patching: the corrupted prompt with one place at a time as it was on the clean one.

        Args:
            model: `models/{model}` or its id.
            clean: The prompt that values come from.
            corrupted: The prompt that runs; as many tokens.
            metric: `weft_client.metrics` makes one.
            components: `resid_pre`, `attn_out`, `mlp_out`, none means all; or `attn.z` alone, head by head.
            layers: None means all.
            heads: Of `attn.z`; none means all.
            positions: None means all.
            progress: Told of cells as they are done.

        Returns:
            `metric` by component, layer, head where there are any, and position, and `restored`: 0 where nothing
            changed, 1 where the clean prompt's metric came back.
        """
        request = analyses_pb2.SweepPatchesRequest(
            model=full_name("models", model),
            clean=to_prompt(clean),
            corrupted=to_prompt(corrupted),
            metric=metric,
            components=components,
            layers=layers,
            heads=heads,
            positions=positions,
        )
        parts = stream(self._stub.SweepPatches, request, analyses_pb2.SweepResponse)
        return await _swept(parts, "component", progress)

    async def sweep_paths(
        self,
        model: str,
        *,
        clean: Prompt,
        corrupted: Prompt,
        metric: analyses_pb2.PatchMetric,
        receiver: str,
        senders: Sequence[str] = (),
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
        positions: Sequence[int] = (),
        receiver_heads: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> Analysis:
        """
        Path patching: one receiver alone reads what a sender wrote on the clean prompt.

        Args:
            model: `models/{model}` or its id.
            clean: The prompt that senders' values come from.
            corrupted: The prompt that runs; as many tokens.
            metric: `weft_client.metrics` makes one.
            receiver: `logits`, `layers.{l}.attn_out` or `layers.{l}.mlp_out`; or by head `layers.{l}.X` with X one of
                `attn.q`, `attn.k`, `attn.v` and `attn.z`, which reads by all three.
            senders: `attn_out`, `mlp_out`, none means both; or `attn.result` alone, head by head.
            layers: Of the senders, below the receiver's; none means all of these.
            heads: Of `attn.result`; none means all.
            positions: None means all.
            receiver_heads: Of a receiver by head; none means all.
            progress: Told of cells as they are done.

        Returns:
            `metric` and `restored` by sender, layer and position, as of `sweep_patches`.
        """
        request = analyses_pb2.SweepPathsRequest(
            model=full_name("models", model),
            clean=to_prompt(clean),
            corrupted=to_prompt(corrupted),
            metric=metric,
            receiver=receiver,
            senders=senders,
            layers=layers,
            heads=heads,
            positions=positions,
            receiver_heads=receiver_heads,
        )
        parts = stream(self._stub.SweepPaths, request, analyses_pb2.SweepResponse)
        return await _swept(parts, "sender", progress)


_LEVELS = {
    "layer": analyses_pb2.ATTRIBUTION_LEVEL_LAYER,
    "head": analyses_pb2.ATTRIBUTION_LEVEL_HEAD,
    "neuron": analyses_pb2.ATTRIBUTION_LEVEL_NEURON,
}
_LENS_FIELDS = {
    "top_probability": "top_probabilities",
    "top_logit": "top_logits",
    "kl": "kl",
    "target_logit": "target_logits",
    "target_probability": "target_probabilities",
    "target_rank": "target_ranks",
}


async def _swept(parts: AsyncIterator[analyses_pb2.SweepResponse], what: str, progress: Progress | None) -> Analysis:
    header = analyses_pb2.SweepHeader()
    values: list[float] = []
    async for part in parts:
        if part.HasField("header"):
            header = part.header
            continue
        if part.cells.first != len(values):
            raise DataLossError(f"cell {part.cells.first} came where {len(values)} comes next; ask again")
        values += part.cells.values
        if progress is not None:
            progress(len(values), header.num_cells)
    if len(values) != header.num_cells:
        raise DataLossError(f"the sweep ended after {len(values)} of {header.num_cells} cells; ask again")
    heads = [len(header.heads)] if header.heads else []
    grid = np.reshape(values, (len(header.components), len(header.layers), *heads, len(header.positions)))
    with np.errstate(divide="ignore", invalid="ignore"):
        restored = (grid - header.corrupted_metric) / np.float64(header.clean_metric - header.corrupted_metric)
    dims = (what, "layer", "head", "position") if heads else (what, "layer", "position")
    return Analysis(
        header.model,
        header.corrupted_tokens,
        {"metric": (dims, grid), "restored": (dims, restored)},
        {
            what: (what, list(header.components)),
            "layer": ("layer", list(header.layers)),
            **({"head": ("head", list(header.heads))} if heads else {}),
            **along(header.corrupted_tokens, header.positions),
            "clean_token": ("position", [header.clean_tokens[at].text for at in header.positions]),
        },
        {"clean_metric": header.clean_metric, "corrupted_metric": header.corrupted_metric},
    )
