"""Prompts of models of speech: a recording, and what was said so far."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weft.activations.v1 import messages_pb2, speech_pb2
from weft_common.tensors import tensor_to_proto

__all__ = ["heard"]


def heard(audio: bytes | Path | npt.NDArray[Any], said: str | Sequence[int]) -> messages_pb2.Prompt:
    """
    Make the prompt of a model of speech.

    Args:
        audio: A WAV file or its bytes, at the model's rate; or log-mel features [num_mel_bins, num_steps].
        said: Text, or token ids that are taken as they are; a model wants one at least.

    >>> heard(np.zeros((80, 3000)), [50258]).audio.WhichOneof("source")
    'features'
    """
    if isinstance(audio, np.ndarray):
        sent = speech_pb2.Audio(features=tensor_to_proto(audio.astype(np.float32)))
    else:
        sent = speech_pb2.Audio(wav=audio.read_bytes() if isinstance(audio, Path) else audio)
    if isinstance(said, str):
        return messages_pb2.Prompt(text=said, audio=sent)
    return messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=said), audio=sent)
