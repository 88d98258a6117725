"""What a model of speech hears, over HTTP: where tokens look in a recording, and the spectrogram that they look at."""

from __future__ import annotations

import struct

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.activations.v1 import analyses_pb2, messages_pb2, service_pb2, speech_pb2
from weft_common.errors import InvalidArgumentError
from weft_console.api.analyses import activations_of, collected, texts_of
from weft_console.api.requests import path_id, read_bytes
from weft_console.peers import Peers

__all__ = ["ROUTES"]

# Thirty seconds of one channel of 16 bits at 16,000 a second are half of it.
_MAX_AUDIO_BYTES = 2 << 20
# Drawn on a canvas, where a cell costs less than one of a table.
_MAX_CELLS = 400_000
_DIGITS = 5
_FEATURES = "encoder.features"


async def hear(request: Request) -> Response:
    """Cross attention of one head, and the spectrogram as numbers from 0 to 255, a row a mel bin, a column a frame."""
    peers: Peers = request.app.state.peers
    wav = await read_bytes(
        request, "audio/wav", _MAX_AUDIO_BYTES, "send a shorter recording, or one channel of 16 bits"
    )
    said = request.query_params.get("said", "")
    if not said.strip():
        raise InvalidArgumentError("nothing was said so far; write the beginning of a transcript", field="said")
    model, prompt = path_id(request, "models"), messages_pb2.Prompt(text=said, audio=speech_pb2.Audio(wav=wav))
    patterns = activations_of(request).GetAttentionPatterns(
        analyses_pb2.GetAttentionPatternsRequest(
            model=model,
            prompt=prompt,
            kind=analyses_pb2.ATTENTION_KIND_CROSS,
            layers=[_number(request, "layer")],
            heads=[_number(request, "head")],
        ),
        timeout=peers.slow_s,
    )
    first, *rest = await collected(
        patterns,
        lambda header: (header.tokens, len(header.tokens) * header.model.speech.num_frames),
        most_cells=_MAX_CELLS,
    )
    data = b"".join(part.chunk.data for part in rest)
    weights, speech = struct.unpack(f"<{len(data) // 4}f", data), first.header.model.speech
    captured = activations_of(request).Capture(
        service_pb2.CaptureRequest(model=model, prompt=prompt, hooks=[_FEATURES]), timeout=peers.slow_s
    )
    features = b"".join([part.chunk.data async for part in captured if part.HasField("chunk")])
    size = speech.num_frames
    return JSONResponse(
        {
            "tokens": texts_of(first.header.tokens),
            "frame_s": speech.max_samples / speech.sampling_rate / size,
            "pattern": [
                [round(weight, _DIGITS) for weight in weights[at : at + size]] for at in range(0, len(weights), size)
            ],
            "spectrogram": _spectrogram(features, speech),
        }
    )


def _spectrogram(features: bytes, speech: speech_pb2.Speech) -> list[list[int]]:
    """Take the loudest step of each frame, and the quietest and the loudest of all as 0 and 255."""
    values = struct.unpack(f"<{len(features) // 4}f", features)
    bins, steps = speech.num_mel_bins, speech.num_steps // speech.num_frames
    low, high = min(values), max(values)
    scale = 255 / (high - low) if high > low else 0.0
    frame = bins * steps
    return [
        [round((max(values[at + mel : at + frame : bins]) - low) * scale) for at in range(0, len(values), frame)]
        for mel in range(bins)
    ]


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isdecimal() or len(text) > 6:
        raise InvalidArgumentError(f"{name} is {text[:40]!r}; give a number from 0", field=name)
    return int(text)


ROUTES = [Route("/api/models/{id}/hearing", hear, methods=["POST"])]
