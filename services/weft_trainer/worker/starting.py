"""What every process of the trainer does first: quiet threads, compiled code in the user's cache, bucket and run."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weft_clt.config import TrainingConfig
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError, WeftError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import read_json
from weft_trainer.core.scratch import remove_stale

__all__ = ["BAD_CONFIGURATION", "exit_code", "prepare_process", "read_config"]

BAD_CONFIGURATION = 42
"""Exit code that a launcher never answers with another start."""

_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 2 << 20

_log = get_logger(__name__)


def prepare_process(environment: Mapping[str, str], threads: int) -> None:
    """
    Set how memory is kept, and what numba and torch read when they are imported, which must not have happened; delete
    what processes that were killed have left on this machine.
    """
    remove_stale()
    # glibc otherwise keeps what is freed in a heap that fragments: 400 MB of a rank of the demo. With 8 MB
    # the lists of a step of 8,192 tokens left 100 to 160 MB of holes, with 1 MB none, but steps took a tenth longer.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(home) / "weft" / "numba"))
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def read_config(store: ObjectStore, run: str) -> tuple[TrainingConfig, dict[str, Any]]:
    """Read a run's document and the configuration in it. NotFoundError, InvalidArgumentError."""
    document, _ = read_json(store, f"runs/{run}/run.json")
    return TrainingConfig.from_spec(document["spec"]), document


def exit_code(work: Callable[[], None], failed: Callable[[str], None]) -> int:
    """Run the work; tell why it failed; return the exit code that says whether another start can help."""
    try:
        work()
    except (InvalidArgumentError, NotFoundError, FailedPreconditionError, DataLossError) as error:
        _log.error("refused", reason=error.reason, details=str(error))
        failed(str(error))
        return BAD_CONFIGURATION
    except WeftError as error:
        _log.error("failed", reason=error.reason, details=str(error))
        failed(str(error))
        return 1
    except Exception as error:
        _log.exception("crashed")
        failed(f"{type(error).__name__}: {error}")
        return 1
    return 0
