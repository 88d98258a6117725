"""
Runs `torch.distributed.run` and leaves behind how its ranks ended.

torchrun itself ends with 1 whatever code a rank ended with, and a controller that was started again is no parent that
could be told. So the code of the rank that failed first is written to a file, and is this process's own.

    python -m weft_trainer.adapters.torchrun EXIT_FILE TORCHRUN_ARGUMENTS...
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from weft_trainer.core.ports import BAD_CONFIGURATION

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the ranks to their end and return the code of the first that failed, negative for a signal; 0 if none did."""
    exit_file, *rest = arguments
    code = _run(rest)
    path = Path(exit_file)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"code": code}))
    os.replace(temporary, path)
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        run(parse_args(list(arguments)))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # The ranks that a refusal leaves without a partner fail too, in other ways and sometimes earlier.
        return BAD_CONFIGURATION if BAD_CONFIGURATION in codes else int(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return -int(error.sigval)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
