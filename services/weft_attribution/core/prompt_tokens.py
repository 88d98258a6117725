"""The tokens of a text, for the model that a transcoder is for."""

from weft_attribution.core.ports import ModelInfo, ModelRunner, Token
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import FailedPreconditionError, InvalidArgumentError

__all__ = ["model_of", "tokens_of"]


async def model_of(runner: ModelRunner, reader: TranscoderReader) -> ModelInfo:
    """
    Describe the model that a transcoder is for.

    Raises:
        FailedPreconditionError: What runs under its name is another revision.
    """
    manifest, info = reader.manifest, await runner.model(reader.manifest.model)
    if manifest.model_revision and info.revision != manifest.model_revision:
        raise FailedPreconditionError(
            f"transcoders/{manifest.transcoder} is for revision {manifest.model_revision[:16]} of models/"
            f"{manifest.model}, the activations service runs {info.revision[:16] or 'unknown'}"
        )
    return info


async def tokens_of(runner: ModelRunner, model: str, prompt: str, max_prompt_tokens: int) -> tuple[Token, ...]:
    """Turn a prompt into tokens. InvalidArgumentError where they are too few or too many."""
    if not prompt:
        raise InvalidArgumentError("prompt is empty; give a text", field="prompt")
    tokens = await runner.tokenize(model, prompt)
    if not 2 <= len(tokens) <= max_prompt_tokens:
        raise InvalidArgumentError(
            f"prompt has {len(tokens)} tokens; give 2 to {max_prompt_tokens}, the first has no features", field="prompt"
        )
    return tokens
