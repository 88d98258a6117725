"""
One index in a process of its own, over a bucket that is a folder, with sequences that were saved before.

    python benchmarks/features/side_index.py BUCKET SEQUENCES REQUEST [--memory-bytes N] [--workers N] [--store-every S]

Prints one JSON object: seconds, and the peak of its memory.
"""

import argparse
import asyncio
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft_attribution.core.feature_index import building
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.sequences import HarvestedSequences
from weft_attribution.core.feature_index.settings import IndexRequest
from weft_store.opening import open_store


class SavedSequences:
    """What a dataset was harvested from, out of a file that `save` wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        with np.load(self._path) as saved:
            starts, ids = saved["starts"], saved["ids"]
            token_ids = [ids[low:high] for low, high in itertools.pairwise(starts)]
            limits = tuple(saved["limits"].tolist())
            skipped = [np.flatnonzero(saved["skipped"][low:high]) for low, high in itertools.pairwise(starts)]
            return HarvestedSequences(str(saved["revision"]), token_ids, skipped, limits)

    @staticmethod
    def save(path: Path, found: HarvestedSequences) -> None:
        """Write sequences down."""
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in found.token_ids])])
        out = np.zeros(int(starts[-1]), bool)
        for start, positions in zip(starts, found.skipped, strict=False):
            out[start + positions] = True
        np.savez(
            path,
            starts=starts,
            ids=np.concatenate(found.token_ids),
            skipped=out,
            limits=np.array(found.norm_limits),
            revision=np.array(found.model_revision),
        )


def main() -> None:
    """Make it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bucket")
    parser.add_argument("sequences", type=Path)
    parser.add_argument("request")
    parser.add_argument("--memory-bytes", type=int, default=1 << 30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--store-every", type=float, default=building.STORE_EVERY_S)
    options = parser.parse_args()
    torch.set_num_threads(1)
    building.STORE_EVERY_S = options.store_every
    runner: Any = None
    indexing = FeatureIndexing(
        open_store(options.bucket),
        runner,
        SavedSequences(options.sequences),
        memory_bytes=options.memory_bytes,
        workers=options.workers,
        # Killed and begun anew, it need not wait long for what it held itself.
        lease_s=1.0,
        poll_s=0.1,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    manifest = asyncio.run(
        indexing.build(IndexRequest.from_json(json.loads(options.request)), lambda done, total: None)
    )
    json.dump(
        {
            "seconds": time.perf_counter() - begun,
            "tokens": manifest["num_tokens"],
            "layers": len(manifest["layers"]),
            "features": manifest["layers"][0]["num_features"],
            "before_kib": before,
            "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
