"""
What a model of speech reads: a WAV file, turned into the log-mel spectrogram that the model wants, or that itself.

Legend: T samples, N mel bins, S steps of the spectrogram.
"""

import hashlib
import io
import wave

import numpy as np

from weft_activations.core.changing import Audio, Prompt
from weft_activations.core.ports import Floats, ModelBackend, ModelInfo, Spectrogram, SpeechBackend, SpeechSizes
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError

__all__ = ["check_text_alone", "read_spectrogram", "read_wav", "speech_of"]

_MAX_CHANNELS = 8


def speech_of(backend: ModelBackend) -> SpeechBackend:
    """Return a backend that runs models of speech, or raise UnimplementedError."""
    if not isinstance(backend, SpeechBackend):
        raise UnimplementedError("this backend runs no models of speech; take the transformers backend")
    return backend


def check_text_alone(info: ModelInfo, prompt: Prompt, field: str) -> None:
    """Raise where a model reads speech, or where a model of text is given some."""
    if info.speech is not None:
        raise FailedPreconditionError(
            f"{info.model_id} ({info.architecture}) reads speech, and this call takes models of text alone; take "
            "Capture, Run or GetAttentionPatterns",
            field="model",
        )
    if prompt.audio is not None:
        raise InvalidArgumentError(
            f"{info.model_id} ({info.architecture}) reads no audio; leave it out", field=f"{field}.audio"
        )


def read_spectrogram(backend: ModelBackend, info: ModelInfo, audio: Audio | None, field: str) -> Spectrogram:
    """
    Read the audio of a prompt.

    Raises:
        InvalidArgumentError: There is none, or it cannot be read, or is of another rate, length or shape than the
            model's.
    """
    assert info.speech is not None
    if audio is None or (audio.wav is None and audio.features_NS is None):
        raise InvalidArgumentError(
            f"{info.model_id} reads speech, and there is none; set {field}.wav or {field}.features", field=field
        )
    if audio.wav is not None:
        samples_T = read_wav(audio.wav, info.speech, f"{field}.wav")
        features_NS = speech_of(backend).log_mel(info.model_id, samples_T)
    else:
        assert audio.features_NS is not None
        features_NS = audio.features_NS
        wanted = (info.speech.num_mel_bins, info.speech.num_steps)
        if features_NS.shape != wanted:
            raise InvalidArgumentError(
                f"the features' shape is {list(features_NS.shape)}; {info.model_id} reads float32 {list(wanted)}, mel "
                "bins and steps",
                field=f"{field}.features",
            )
        if not np.isfinite(features_NS).all():
            raise InvalidArgumentError(
                "the features hold NaN or infinity; send finite numbers", field=f"{field}.features"
            )
    features_NS = np.ascontiguousarray(features_NS, dtype=np.float32)
    return Spectrogram(hashlib.sha256(features_NS.tobytes()).hexdigest(), features_NS)


def read_wav(content: bytes, sizes: SpeechSizes, field: str) -> Floats:
    """
    Read a WAV file of integer samples as one channel, float32 from -1 to 1; several channels are averaged.

    Raises:
        InvalidArgumentError: It is no such file, is cut off, empty or too long, or has another rate than the model's.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate, frames = file.getparams()[:4]
            if rate != sizes.sampling_rate:
                raise InvalidArgumentError(
                    f"the WAV file has {rate} samples a second; send {sizes.sampling_rate}", field=field
                )
            if not 1 <= frames <= sizes.max_samples:
                raise InvalidArgumentError(
                    f"the WAV file has {frames} samples; send 1 to {sizes.max_samples}, "
                    f"{sizes.max_samples / sizes.sampling_rate:g} seconds",
                    field=field,
                )
            if not 1 <= channels <= _MAX_CHANNELS:
                raise InvalidArgumentError(
                    f"the WAV file has {channels} channels; send 1 to {_MAX_CHANNELS}", field=field
                )
            data = file.readframes(frames)
    # Its reader of chunks gives up on lengths that cannot be with a bare RuntimeError.
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:
        raise InvalidArgumentError(
            f"this is no WAV file of integer samples ({str(error) or 'it ends too early'}); send PCM of 8 to 32 bits",
            field=field,
        ) from error
    if len(data) != frames * channels * width:
        raise InvalidArgumentError(
            f"the WAV file is cut off: {len(data)} of {frames * channels * width} bytes of samples are there",
            field=field,
        )
    raw_BW = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        wide = raw_BW[:, 0].astype(np.int64) - 128
    else:
        # The highest byte has the sign.
        wide = raw_BW[:, -1].astype(np.int8).astype(np.int64)
        for column in range(width - 2, -1, -1):
            wide = (wide << 8) | raw_BW[:, column]
    samples: Floats = (wide / (1 << (8 * width - 1))).reshape(frames, channels).mean(-1).astype(np.float32)
    return samples
