"""
What transformers tells of a model of speech, and its own way from audio to a log-mel spectrogram.

Legend: T samples, N mel bins, S steps of the spectrogram.
"""

from pathlib import Path
from typing import Any

import numpy as np

from weft_activations.core.ports import Floats, SpeechSizes
from weft_common.errors import FailedPreconditionError

__all__ = ["extractor_of", "log_mel", "speech_sizes"]


def extractor_of(folder: Path, config: Any) -> Any:
    """
    Return the feature extractor of a model's folder.

    Raises:
        FailedPreconditionError: There is none, or it makes another spectrogram than the model reads.
    """
    from transformers import WhisperFeatureExtractor

    try:
        extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(
            f"the feature extractor of the model {folder.name!r} cannot be read "
            f"({' '.join(str(error).split())[:200]}); put its preprocessor_config.json into the model's folder"
        ) from error
    made, wanted = (
        (extractor.feature_size, extractor.nb_max_frames),
        (
            config.num_mel_bins,
            2 * config.max_source_positions,
        ),
    )
    if made != wanted:
        raise FailedPreconditionError(
            f"preprocessor_config.json of the model {folder.name!r} makes a spectrogram of {list(made)}, its "
            f"config.json wants {list(wanted)}; put files of one model there"
        )
    return extractor


def speech_sizes(config: Any, extractor: Any) -> SpeechSizes:
    """Return the sizes of a Whisper's encoder and of what it reads."""
    return SpeechSizes(
        num_layers=int(config.encoder_layers),
        num_heads=int(config.encoder_attention_heads),
        d_mlp=int(config.encoder_ffn_dim),
        num_frames=int(config.max_source_positions),
        num_steps=2 * int(config.max_source_positions),
        num_mel_bins=int(config.num_mel_bins),
        sampling_rate=int(extractor.sampling_rate),
        max_samples=int(extractor.n_samples),
        end_token_id=int(config.eos_token_id),
    )


def log_mel(extractor: Any, samples_T: Floats) -> Floats:
    """Turn audio into log-mel features [N, S], with silence up to the model's length."""
    made = extractor(samples_T, sampling_rate=extractor.sampling_rate, return_tensors="np")
    return np.asarray(made.input_features[0], dtype=np.float32)
