"""What figures were measured under, in words, without a date."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["conditions", "environment"]


def environment(threads: int) -> dict[str, str]:
    """Return the environment that all sides have: ours, with as many threads, and with a cache of compiled kernels."""
    cache = os.environ.get("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "weft" / "numba"))
    return os.environ | {"OMP_NUM_THREADS": str(threads), "NUMBA_CACHE_DIR": cache}


def conditions(threads: int, variables: Mapping[str, str] = os.environ) -> str:
    """Name the type of numbers, the processors, the threads and the allocator."""
    allocator = Path(variables.get("LD_PRELOAD", "").split(":", 1)[0]).name or "of the C library"
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unnamed")
    return f"float32, CPU ({model}, {os.cpu_count()} cores), {threads} thread(s), allocator {allocator}"
