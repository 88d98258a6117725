"""
Features as circuit-tracer's page reads them beside a graph: one file a layer, and where each feature begins in it.

Source: circuit-tracer at 4bb8c0e, `feature_models.py`, `init-feature-examples.js` and `util.js`. A feature is four
bytes of length, lowest first, and that many bytes of zlib; the index has the first byte of each, and of the end.
Deviations: a feature that never fires has no examples; a character that tokens share stands whole at one of them, where
theirs has U+FFFD for each.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from weft_attribution.core.feature_cards import TokenWeights
from weft_attribution.core.feature_export.describing import Described, Group
from weft_attribution.core.feature_export.rounding import rounded
from weft_attribution.core.feature_index.settings import IndexSettings
from weft_common.token_texts import run_texts

__all__ = ["INDEX_FILE", "index_file", "layer_file", "lengths", "packed"]

INDEX_FILE = "index.json.gz"
_BARS = 40
_PERCENTILES = 99
_LENGTH = struct.Struct("<I")
# As their page shows them in graphs.
_SHOWN = str.maketrans({"\n": "⏎", "\t": "→", "\r": "↵"})
Json = dict[str, Any]


def layer_file(layer: int) -> str:
    """Name of the file of a layer."""
    return f"layer_{layer}.bin"


def packed(
    transcoder: str, settings: IndexSettings, described: Sequence[Described], piece_of: Mapping[int, bytes]
) -> bytes:
    """Some neighbouring features, one after the other."""
    pieces = []
    for each in described:
        document = _feature(transcoder, settings, each, piece_of)
        data = zlib.compress(json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())
        pieces += [_LENGTH.pack(len(data)), data]
    return b"".join(pieces)


def lengths(data: bytes) -> list[int]:
    """
    How many bytes each feature of what `packed` made takes.

    >>> lengths(_LENGTH.pack(2) + b"ab" + _LENGTH.pack(0))
    [6, 4]
    """
    found, at = [], 0
    while at < len(data):
        found.append(_LENGTH.size + _LENGTH.unpack_from(data, at)[0])
        at += found[-1]
    return found


def index_file(lengths_of: Mapping[int, Sequence[int]]) -> bytes:
    """The index, from how many bytes each feature of each layer takes."""
    document = {
        str(layer): {"filename": layer_file(layer), "offsets": list(accumulate(each, initial=0))}
        for layer, each in sorted(lengths_of.items())
    }
    return gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0)


def _feature(transcoder: str, settings: IndexSettings, each: Described, piece_of: Mapping[int, bytes]) -> Json:
    _, heights = each.activations.bars(_BARS)
    percents = range(1, _PERCENTILES + 1) if each.activations.total else ()
    seen: set[tuple[int, int]] = set()
    return {
        "transcoder_id": transcoder,
        "index": each.index,
        "examples_quantiles": [
            {
                "quantile_name": _name(group, settings.num_quantiles),
                "examples": _examples(group, seen, piece_of),
            }
            for group in each.groups
        ],
        "top_logits": _texts(each.top, piece_of),
        "bottom_logits": _texts(each.bottom, piece_of),
        "act_min": 0,
        "act_max": rounded([each.activations.largest])[0],
        "quantile_values": rounded(each.activations.percentile(percent / 100) for percent in percents),
        "histogram": rounded(heights.tolist()),
        "activation_frequency": each.density,
    }


def _name(group: Group, num_quantiles: int) -> str:
    return "Top activations" if group.quantile < 0 else f"Quantile {group.quantile + 1} of {num_quantiles}"


def _examples(group: Group, seen: set[tuple[int, int]], piece_of: Mapping[int, bytes]) -> list[Json]:
    """Examples of a group; one around the same token as one before it is marked, and shown paler."""
    found = []
    for window in group.windows:
        place = window.sequence, window.start + window.peak_at
        texts = run_texts([piece_of[token] for token in window.token_ids], window.activations)
        found.append({
            "tokens_acts_list": rounded(window.activations),
            "train_token_ind": window.peak_at,
            "is_repeated_datapoint": place in seen,
            "tokens": [text.translate(_SHOWN) for text in texts],
        })  # fmt: skip
        seen.add(place)
    return found


def _texts(weights: TokenWeights, piece_of: Mapping[int, bytes]) -> list[str]:
    return [piece_of[token.id].decode(errors="replace").translate(_SHOWN) for token, _ in weights]
