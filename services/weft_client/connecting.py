"""
Which weft a client talks to.

    1  what the caller names: an endpoints file or a context
    2  WEFT_ENDPOINTS or WEFT_CONTEXT
    3  the current context, `weft contexts use`
    4  `.weft/endpoints.json` in the working folder or above it
"""

import os
from pathlib import Path

from weft_client.contexts import ContextFile, default_path
from weft_client.endpoints import Endpoints, find_endpoints, read_endpoints
from weft_common.errors import InvalidArgumentError


def chosen_context(path: Path | None, context: str | None) -> tuple[Path | None, str]:
    """
    The endpoints file, or else the name of the context, that is to be used; neither means an embedded run.

    Args:
        path: File that the caller named.
        context: Context that the caller named.

    Raises:
        InvalidArgumentError: Two are named at once.
    """
    named_in = "--endpoints and --context"
    if path is None and not context:
        variable = os.environ.get("WEFT_ENDPOINTS", "")
        path, context = Path(variable) if variable else None, os.environ.get("WEFT_CONTEXT", "")
        named_in = "WEFT_ENDPOINTS and WEFT_CONTEXT"
    if path is not None and context:
        raise InvalidArgumentError(
            f"{named_in} are both given ({path} and {context}), and each says where the services are; give one"
        )
    if path is None and not context:
        context = ContextFile.read(default_path()).current
    return path, context or ""


def choose_endpoints(path: Path | None, context: str | None) -> Endpoints:
    """
    The services to talk to.

    Raises:
        InvalidArgumentError: Two are named at once.
        NotFoundError: No such file or context.
        FailedPreconditionError: The file or the context is wrong.
        UnavailableError: Nothing is named, and nothing runs here.
    """
    path, context = chosen_context(path, context)
    if path is not None:
        return read_endpoints(path)
    if context:
        return ContextFile.read(default_path()).endpoints(context)
    return read_endpoints(find_endpoints(Path.cwd()))
