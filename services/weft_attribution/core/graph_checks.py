"""Whether a graph can be made as it is asked for."""

import asyncio

from weft_attribution.core.ports import ModelInfo, ModelRunner, Token
from weft_attribution.core.records import GraphSettings
from weft_attribution.core.targets import Target, check_targets, resolve_texts
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_store.port import ObjectStore

__all__ = ["check_settings"]


async def check_settings(
    store: ObjectStore, runner: ModelRunner, settings: GraphSettings, max_prompt_tokens: int
) -> tuple[ModelInfo, tuple[Token, ...], tuple[Target, ...]]:
    """
    Check a request against what there is.

    Returns:
        The model, the prompt's tokens up to the position explained, and the targets asked for.

    Raises:
        InvalidArgumentError, NotFoundError, FailedPreconditionError: What is wrong, and what to do.
    """
    settings.check()
    info = await runner.model(settings.model)
    transcoder = await asyncio.to_thread(TranscoderReader, store, settings.transcoder)
    manifest = transcoder.manifest
    if manifest.model != settings.model or (manifest.model_revision and manifest.model_revision != info.revision):
        raise FailedPreconditionError(
            f"transcoders/{settings.transcoder} was made for models/{manifest.model} at revision "
            f"{manifest.model_revision or 'unknown'}, "
            f"the request is for models/{settings.model} at {info.revision}; "
            "use a transcoder of that very model",
            field="spec.transcoder",
        )
    tokens = await runner.tokenize(settings.model, settings.prompt)
    longest = min(info.max_tokens, max_prompt_tokens)
    if len(tokens) > longest:
        raise InvalidArgumentError(
            f"spec.prompt has {len(tokens)} tokens; at most {longest} are explained here, shorten it",
            field="spec.prompt",
        )
    if settings.position >= len(tokens):
        raise InvalidArgumentError(
            f"spec.position is {settings.position}; the prompt's tokens are 0 to {len(tokens) - 1}",
            field="spec.position",
        )
    targets = await resolve_texts(runner, settings.model, settings.prompt, tokens, settings.explained)
    if settings.position >= 0:
        tokens = tokens[: settings.position + 1]
    if len(tokens) < 2:
        raise InvalidArgumentError(
            "one token is explained, and position 0 has no features; give a prompt of two tokens or more, "
            "or a later position",
            field="spec.prompt",
        )
    await asyncio.to_thread(check_targets, targets, info, transcoder)
    return info, tokens, targets
