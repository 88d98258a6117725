"""
Logit lens: what the model would predict if it ended at each depth.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". The stream goes through the final norm, with its own
scale, and the unembedding. Depth l is the stream before layer l; depth L is what the model ends with.

Legend: N depths, P positions of a block, D d_model, V vocabulary, K tokens kept. No more than a block's [P, V] is held.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np

from weft_activations.core.analyses.choosing import check_token, choose
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference, read_prompt
from weft_activations.core.kinds import check_logits
from weft_activations.core.ports import Array, Doubles, Floats, ModelBackend, ModelInfo
from weft_activations.core.token_texts import TokenText, tokens_alone, tokens_of_run
from weft_common.errors import InvalidArgumentError

__all__ = ["LensBlock", "LensStart", "TargetFound", "logit_lens"]

_DEFAULT_TOP_TOKENS = 5
_MAX_TOP_TOKENS = 20
# Of float64 logits: two such blocks are there at once, the model's own and one depth's.
_BLOCK_BYTES = 32 << 20
# Of one block, so that its message stays small.
_BLOCK_TOKENS = 20_000


@dataclass(frozen=True)
class LensStart:
    """What is read, in order."""

    info: ModelInfo
    tokens: list[TokenText]
    depths: tuple[int, ...]
    positions: tuple[int, ...]
    num_top_tokens: int
    target: TokenText | None


@dataclass(frozen=True)
class TargetFound:
    """The asked token at [N, P]; a rank counts the tokens that are more likely."""

    logits_NP: Floats
    probabilities_NP: Floats
    ranks_NP: Array


@dataclass(frozen=True)
class LensBlock:
    """Some positions; `first` is the index of the first among the positions read."""

    first: int
    num_positions: int
    top_tokens: list[TokenText]
    top_probabilities_NPK: Floats
    top_logits_NPK: Floats
    kl_NP: Floats
    target: TargetFound | None


async def logit_lens(
    inference: Inference,
    model_id: str,
    prompt: Prompt,
    *,
    depths: Sequence[int] = (),
    positions: Sequence[int] = (),
    num_top_tokens: int = 0,
    target_token_id: int | None = None,
) -> AsyncGenerator[LensStart | LensBlock, None]:
    """
    Read a prompt's streams through the last step of the model; first what is read, then blocks of positions.

    Raises:
        InvalidArgumentError: There is no such depth, position or token, or too many top tokens are asked for.
        FailedPreconditionError: The model has no head.
        ResourceExhaustedError: The streams of these depths are more than a pass may hold.
    """
    if not 0 <= num_top_tokens <= _MAX_TOP_TOKENS:
        raise InvalidArgumentError(
            f"num_top_tokens is {num_top_tokens}; give 1 to {_MAX_TOP_TOKENS}, or 0 for {_DEFAULT_TOP_TOKENS}",
            field="num_top_tokens",
        )

    def open_streams(backend: ModelBackend) -> tuple[LensStart, Floats]:
        info, token_ids = read_prompt(backend, model_id, prompt)
        check_logits(info)
        targets = [] if target_token_id is None else [target_token_id]
        for token_id in targets:
            check_token(token_id, info, "target_token_id")
        start = LensStart(
            info,
            tokens_of_run(backend, model_id, token_ids),
            choose(depths, info.num_layers + 1, "depth", "depths"),
            choose(positions, len(token_ids), "position", "positions"),
            min(num_top_tokens or _DEFAULT_TOP_TOKENS, info.vocab_size),
            next(iter(tokens_alone(backend, model_id, targets)), None),
        )
        hooks = [_hook(depth, info) for depth in (*start.depths, info.num_layers)]
        inference.check_size(hooks, info, len(token_ids))
        found = backend.forward(model_id, token_ids, list(dict.fromkeys(hooks)))
        return start, np.stack([found[hook][list(start.positions)] for hook in hooks])

    start, streams_NPD = await inference.on_model_thread(open_streams)
    yield start
    rows = max(1, min(_BLOCK_BYTES // (8 * start.info.vocab_size), _block_positions(start)))
    for first in range(0, len(start.positions), rows):
        block_NPD = streams_NPD[:, first : first + rows]

        def read(backend: ModelBackend, block_NPD: Floats = block_NPD, first: int = first) -> LensBlock:
            return _read_block(backend, start, first, block_NPD)

        yield await inference.on_model_thread(read)


def _block_positions(start: LensStart) -> int:
    return _BLOCK_TOKENS // (len(start.depths) * start.num_top_tokens)


def _hook(depth: int, info: ModelInfo) -> str:
    return "resid_final" if depth == info.num_layers else f"layers.{depth}.resid_pre"


def _read_block(backend: ModelBackend, start: LensStart, first: int, streams_NPD: Floats) -> LensBlock:
    """Read a block; the last of the streams is the model's own."""
    model_id = start.info.model_id
    num_positions, num_top = streams_NPD.shape[1], start.num_top_tokens
    own_log_PV = _log_probabilities(backend.unembed(model_id, streams_NPD[-1]))
    own_PV = np.exp(own_log_PV)
    shape = (len(start.depths), num_positions)
    ids_NPK = np.zeros((*shape, num_top), np.int64)
    top_logits_NPK, top_log_NPK = np.zeros((*shape, num_top)), np.zeros((*shape, num_top))
    kl_NP, target_log_NP, target_logits_NP = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    ranks_NP = np.zeros(shape, np.int32)
    for index in range(len(start.depths)):
        logits_PV = backend.unembed(model_id, streams_NPD[index])
        log_PV = _log_probabilities(logits_PV)
        kl_NP[index] = (own_PV * (own_log_PV - log_PV)).sum(-1)
        ids_NPK[index] = _best(logits_PV, num_top)
        top_logits_NPK[index] = np.take_along_axis(logits_PV, ids_NPK[index], -1)
        top_log_NPK[index] = np.take_along_axis(log_PV, ids_NPK[index], -1)
        if start.target is not None:
            target_V = start.target.token_id
            target_logits_NP[index], target_log_NP[index] = logits_PV[:, target_V], log_PV[:, target_V]
            ranks_NP[index] = (logits_PV > logits_PV[:, target_V, None]).sum(-1)
    target = None
    if start.target is not None:
        target = TargetFound(_narrow(target_logits_NP), _narrow(np.exp(target_log_NP)), ranks_NP)
    return LensBlock(
        first,
        num_positions,
        tokens_alone(backend, model_id, ids_NPK.ravel().tolist()),
        _narrow(np.exp(top_log_NPK)),
        _narrow(top_logits_NPK),
        # A divergence is never below zero; rounding may be.
        _narrow(np.maximum(kl_NP, 0)),
        target,
    )


def _log_probabilities(logits_PV: Floats) -> Doubles:
    wide_PV = logits_PV.astype(np.float64)
    wide_PV -= wide_PV.max(-1, keepdims=True)
    wide_PV -= np.log(np.exp(wide_PV).sum(-1, keepdims=True))
    return wide_PV


def _best(logits_PV: Floats, count: int) -> Array:
    """Return the ids of the highest logits, best first."""
    some_PK = np.argpartition(-logits_PV, count - 1, axis=-1)[:, :count]
    order_PK = np.argsort(-np.take_along_axis(logits_PV, some_PK, -1), axis=-1, kind="stable")
    best_PK: Array = np.take_along_axis(some_PK, order_PK, -1)
    return best_PK


def _narrow(values: Doubles) -> Floats:
    return values.astype(np.float32)
