"""
The same features over the same tokens by delphi's cache, or by CLT-Forge's feature statistics: one run in a process.

    python benchmarks/features/side_peers.py delphi|clt-forge CHECKOUT BUCKET SEQUENCES MODEL TOKENS

Sources: EleutherAI/delphi at 3c2e139, `delphi/latents/cache.py`; LLM-Interp/CLT-Forge at dcf4cc8,
`clt_forge/autointerp/pipeline.py`. Runs in an environment that has what these import. Both get the transcoder's
encoder and thresholds in memory, on all cores. delphi runs the model itself, in float32, over the token ids in
sequences of 256; the time within the model is told by itself. CLT-Forge gets what the MLPs read out of memory, and
keeps as many examples a feature as an index does; it is not asked to write them as text. Prints one JSON object.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from weft_attribution.core.feature_index.datasets import read_dataset, read_rows
from weft_attribution.core.feature_index.settings import IndexSettings
from weft_attribution.core.transcoder import TranscoderReader
from weft_store.opening import open_store
from weft_store.shard import Bases

CONTEXT, BATCH = 256, 32
"""delphi's own defaults."""
FORGE_CONTEXT, FORGE_TOKENS = 128, 4096
"""CLT-Forge's context; its batch is 1,024 tokens by itself, and four times that is faster here."""


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def layer_rows(reader: TranscoderReader, layer: int) -> Rows:
    """Weight [F, D], bias and threshold [F] of a layer's encoder."""
    rows = reader.encoder_rows(layer, 0, reader.encoder_shape(layer)[0])
    weight, bias, threshold = (torch.from_numpy(np.array(each, np.float32)) for each in rows)
    return weight, bias, threshold


def encoder(weight: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor) -> Callable[..., torch.Tensor]:
    """An encoder as delphi takes them."""

    def encode(stream: torch.Tensor) -> torch.Tensor:
        pre = stream @ weight.T + bias
        return torch.where(pre > threshold, pre, 0)

    return encode


def first_ids(sequences: Path, num_tokens: int) -> torch.Tensor:
    """The first token ids of what was harvested."""
    with np.load(sequences) as saved:
        return torch.from_numpy(saved["ids"][:num_tokens].astype(np.int64))


def in_contexts(ids: torch.Tensor) -> torch.Tensor:
    """Token ids in delphi's sequences; what is left over goes."""
    return ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def _encoders(store: Any) -> list[Rows]:
    reader = TranscoderReader(store, "demo")
    return [layer_rows(reader, layer) for layer in range(read_dataset(store, "python", held_out=False).num_layers)]


def delphi(options: argparse.Namespace) -> dict[str, Any]:
    """Its cache: the model, the encoders, what is not zero, and files by feature."""
    sys.path.insert(0, str(options.checkout))
    from delphi.latents.cache import LatentCache
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()

    encoders = {
        f"layers.{layer}.mlp": encoder(*each) for layer, each in enumerate(_encoders(open_store(options.bucket)))
    }
    tokens = in_contexts(first_ids(options.sequences, options.tokens))
    within = 0.0
    # Its own entry uses the model without its head.
    body = model.model
    forward = body.forward

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal within
        begun = time.perf_counter()
        answer = forward(*arguments, **named)
        within += time.perf_counter() - begun
        return answer

    body.forward = timed
    body(tokens[:1])
    within = 0.0
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        cache = LatentCache(body, encoders, batch_size=BATCH, transcode=True)
        cache.run(options.tokens, tokens)
        cache.save_splits(5, Path(folder))
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "model_s": within, "tokens": len(tokens) // BATCH * BATCH * CONTEXT}


def clt_forge(options: argparse.Namespace) -> dict[str, Any]:
    """Its streamed pass: strongest sequences, mean activation."""
    sys.path.insert(0, str(options.checkout / "src"))
    from clt_forge.autointerp.pipeline import AutoInterp
    from clt_forge.config import AutoInterpConfig

    store, settings = open_store(options.bucket), IndexSettings()
    encoders = _encoders(store)
    dataset = read_dataset(store, "python", held_out=False)
    bases = Bases(store)
    inputs = torch.empty(options.tokens, len(encoders), dataset.d_model)
    for layer in range(len(encoders)):
        at = 0
        for shard in dataset.shards:
            for rows in read_rows(store, bases, shard.key, layer, shard.row_group_tokens, shard.num_tokens):
                taken = rows[: options.tokens - at]
                inputs[at : at + len(taken), layer] = torch.from_numpy(taken)
                at += len(taken)
            if at == options.tokens:
                break
    ids = first_ids(options.sequences, options.tokens)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor, None]]:
        for low in range(0, options.tokens, FORGE_TOKENS):
            yield ids[low : low + FORGE_TOKENS], inputs[low : low + FORGE_TOKENS], None

    made = AutoInterp.__new__(AutoInterp)
    made.cfg = AutoInterpConfig(
        device="cpu",
        context_size=FORGE_CONTEXT,
        train_batch_size_tokens=FORGE_TOKENS,
        total_autointerp_tokens=options.tokens,
        topk=settings.num_top + settings.num_sampled,
    )
    made.device, made.ctx = torch.device("cpu"), FORGE_CONTEXT
    made.clt = SimpleNamespace(
        W_enc=torch.stack([weight.T for weight, _, _ in encoders]),
        b_enc=torch.stack([bias for _, bias, _ in encoders]),
        # Its thresholds are above zero by their form, and these are.
        log_threshold=torch.stack([threshold.clamp_min(1e-30).log() for _, _, threshold in encoders]),
        bandwidth=1.0,
    )
    made.activations_store = batches()
    made._prepare_encoder_subset(index_list=list(range(len(encoders[0][1]))), dtype=torch.float32)
    begun = time.perf_counter()
    made._stream_and_build_topk(top_k=made.cfg.topk, run_dtype=torch.float32)
    return {"seconds": time.perf_counter() - begun, "model_s": 0.0, "tokens": options.tokens}


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("delphi", "clt-forge"))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("bucket")
    parser.add_argument("sequences", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=int)
    options = parser.parse_args()
    found = delphi(options) if options.peer == "delphi" else clt_forge(options)
    found["peak_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
