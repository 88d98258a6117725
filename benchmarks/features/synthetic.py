"""An index of a million features, made up: a summary of all of them, labels of many, and the text of one layer."""

import json
from typing import Any

import numpy as np

from weft_attribution.core.feature_index.gathering import NUM_BINS
from weft_attribution.core.feature_index.settings import IndexRequest, IndexSettings
from weft_attribution.core.feature_index.tables import LAYER_ROWS, SUMMARY_ROWS, Bytes, write_table
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Origin, Place, Score, ScoreKind
from weft_store.documents import encode_json
from weft_store.port import ObjectStore

__all__ = ["WORDS", "make_index", "make_labels"]

WORDS = ("bracket", "digit", "comma", "name", "verb", "plural", "French", "code", "date", "quote", "negation", "place")
_VOCABULARY = 49_152


def make_labels(store: ObjectStore, *, num_layers: int, num_features: int, num_labels: int) -> None:
    """
    Label features of `made-up` at even distances, with a score each; one in a hundred is a person's.

    Label `n` of them ends in its number `n`. What is there already is left.
    """
    rng, step = np.random.default_rng(1), num_layers * num_features // num_labels
    words = rng.integers(0, len(WORDS), (num_labels, 3)).tolist()
    labels = [
        Label(
            Place(*divmod(number * step, num_features)),
            f"{WORDS[a]} after a {WORDS[b]} or {WORDS[c]} {number}",
            Origin.MODEL if number % 100 else Origin.HUMAN,
            explainer="made up" if number % 100 else "",
            prompt_sha256="0" * 64 if number % 100 else "",
            scores={ScoreKind.DETECTION: Score(value, 0.0, 1.0, 100, 0, "made up", "detection", "0" * 64)},
        )
        for number, ((a, b, c), value) in enumerate(zip(words, rng.random(num_labels).tolist(), strict=True))
    ]
    LabelStore(store).add_many("made-up", labels)


def make_index(store: ObjectStore, *, num_layers: int, num_features: int, d_model: int = 576) -> None:
    """Write an index `made-up` of the transcoder `made-up`; only layer 0 has text."""
    rng = np.random.default_rng(0)
    store.put("transcoders/made-up/manifest.json", encode_json({"model": "models/made-up"}))
    settings = IndexSettings()
    request = IndexRequest("made-up", "made-up", "made-up", held_out=False, max_tokens=0, settings=settings)
    keys, num_tokens, sequence = request.keys, 10_000_000, 128
    store.put(keys.text("tokens.bin"), rng.integers(0, _VOCABULARY, num_tokens).astype("<u4").tobytes())
    starts = np.arange(0, num_tokens + 1, sequence).astype("<i8")
    store.put(keys.text("starts.bin"), starts.tobytes())
    num = num_layers * num_features
    columns = {
        "layer": np.repeat(np.arange(num_layers, dtype=np.int32), num_features),
        "index": np.tile(np.arange(num_features, dtype=np.int32), num_layers),
        "num_active": (num_tokens * 10 ** rng.uniform(-7, -1, num)).astype(np.int64),
        "mean": rng.exponential(1, num),
        "largest": rng.exponential(5, num).astype(np.float32),
        "norm": rng.exponential(1, num),
        "first_layer": np.repeat(np.arange(num_layers, dtype=np.int32), num_features),
        "last_layer": np.full(num, num_layers - 1, np.int32),
    }
    store.put(keys.summary, _cut(columns, SUMMARY_ROWS))
    pairs = 5 * num
    triggers = {
        "token": np.sort(rng.integers(0, _VOCABULARY, pairs)).astype(np.int32),
        "layer": rng.integers(0, num_layers, pairs).astype(np.int32),
        "index": rng.integers(0, num_features, pairs).astype(np.int32),
        "count": rng.integers(1, 20, pairs).astype(np.int32),
    }
    store.put(keys.triggers, _cut(triggers, SUMMARY_ROWS))
    store.put(keys.layer(0), write_table(_layer(rng, settings, columns, num_layers, num_features, d_model, num_tokens)))
    document = {
        "create_s": 1.0,
        "request": request.to_json(),
        "transcoder_mark": _mark(store),
        "model": "made-up",
        "d_model": d_model,
        "layers": [{"layer": layer, "num_features": num_features} for layer in range(num_layers)],
        "num_tokens": num_tokens,
        "num_sequences": len(starts) - 1,
        "num_dead": 0,
        "num_dense": 0,
        "coactivation_tokens": 4096,
    }
    store.put(keys.manifest, json.dumps(document).encode())


def _mark(store: ObjectStore) -> str:
    import hashlib

    return hashlib.sha256(store.get("transcoders/made-up/manifest.json")).hexdigest()


def _cut(columns: dict[str, Any], rows: int) -> bytes:
    count = len(columns["layer"])
    return write_table({name: each[at : at + rows] for name, each in columns.items()} for at in range(0, count, rows))


def _layer(
    rng: Any,
    settings: IndexSettings,
    columns: dict[str, Any],
    num_layers: int,
    num_features: int,
    d_model: int,
    num_tokens: int,
) -> Any:
    for low in range(0, num_features, LAYER_ROWS):
        rows = slice(low, min(low + LAYER_ROWS, num_features))
        count = rows.stop - rows.start

        def lists(kept: int, count: int = count) -> dict[str, Any]:
            width = settings.window_tokens
            windows = rng.random((count, kept * width)) * (rng.random((count, kept * width)) < 0.2)
            return {
                "positions": rng.integers(0, num_tokens, (count, kept)),
                "peaks": rng.exponential(5, (count, kept)).astype(np.float32),
                "windows": windows.astype(np.float16),
            }

        yield {
            **{name: columns[name][rows] for name in columns if name != "layer"},
            "histogram": rng.integers(0, 1000, (count, NUM_BINS)),
            "decoder_norms": rng.random((count, num_layers)).astype(np.float32),
            "encoder_bias": rng.random(count).astype(np.float32),
            "threshold": rng.random(count).astype(np.float32),
            "direction": Bytes(rng.standard_normal((count, d_model)).astype(np.float16)),
            "neighbours": rng.integers(0, num_features, (count, 10)).astype(np.int32),
            "neighbour_cosines": rng.random((count, 10)).astype(np.float32),
            "partners": rng.integers(0, num_features, (count, 10)).astype(np.int32),
            "partner_counts": rng.integers(1, 99, (count, 10)).astype(np.int32),
            "partner_shares": rng.random((count, 10)).astype(np.float32),
            **{f"top_{name}": each for name, each in lists(settings.num_top).items()},
            **{f"sample_{name}": each for name, each in lists(settings.num_sampled).items()},
            "fired": Bytes(rng.integers(0, 256, (count, settings.pool_windows // 8)).astype(np.uint8)),
        }
