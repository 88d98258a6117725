"""
Where the services are: given, or read from an endpoints file.

    {"services": {"cache": {"target": "cache.weft:50051", "token_file": "/secrets/cache", "tls_ca": "/tls/ca.crt"},
                  "console": {"target": "console.weft:8080", "url": "https://weft.example/", "token_env": "PAGE"}}}

`weft up` writes such a file; a pod mounts one. Paths are relative to the file's folder. A context of
`weft_client.contexts` has the same entries.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft_common.errors import FailedPreconditionError, NotFoundError, UnavailableError, WeftError

SERVICES = ("cache", "activations", "trainer", "attribution", "console")
FILE = Path(".weft") / "endpoints.json"
ENTRY_KEYS = (
    "target", "url", "token", "token_file", "token_env", "tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name",
)  # fmt: skip
_FILE_KEYS = ("token_file", "tls_ca", "tls_cert", "tls_key")
_TOKEN_KEYS = ("token", "token_file", "token_env")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One service.

    Args:
        target: `host:port` of its RPCs, or of its page for the console, which can do with a url alone.
        token: Bearer token that it asks for; None where it asks for none.
        tls: Speak TLS and trust the system's authorities; the arguments below turn TLS on too.
        tls_ca: Certificate of the authority that its own is signed by.
        tls_cert: For mTLS, this client's certificate.
        tls_key: For mTLS, its key.
        tls_server_name: Name in its certificate, where that is not the target's.
        url: Address of the console's page as people see it.
        metrics_port: Where Prometheus finds a service of an embedded run, on loopback.
    """

    target: str
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str | None = None
    url: str = ""
    metrics_port: int = 0

    @property
    def port(self) -> int:
        """The port of `target`."""
        return int(self.target.rpartition(":")[2])

    @property
    def channel_arguments(self) -> dict[str, Any]:
        """What `weft_common.client.channel` is to be given beside the target."""
        return {
            "token": self.token,
            "tls": self.tls,
            "tls_ca": self.tls_ca,
            "tls_cert": self.tls_cert,
            "tls_key": self.tls_key,
            "tls_server_name": self.tls_server_name,
        }


@dataclass(frozen=True, slots=True)
class Endpoints:
    """
    All services that a client may talk to.

    Args:
        services: By name: activations, cache, trainer, attribution, console.
    """

    services: Mapping[str, Endpoint]

    def __getitem__(self, service: str) -> Endpoint:
        """One service; FailedPreconditionError where this client was given none of that name."""
        try:
            return self.services[service]
        except KeyError:
            raise FailedPreconditionError(
                f"this client knows no {service} service, only {', '.join(sorted(self.services)) or 'none'}; "
                f"give {service}=Endpoint(target, token), name it in the context, or connect to an embedded run, "
                "`weft up`"
            ) from None

    def page(self, path: str) -> str:
        """Address of one page of the console, such as `graphs/g1`, token included."""
        console = self.services.get("console")
        if console is None or not console.url:
            raise FailedPreconditionError(
                "there is no console among the endpoints; start one with `weft up`, or give it a url in the context"
            )
        return f"{console.url.rstrip('/')}/{path}{f'?token={console.token}' if console.token else ''}"


def find_endpoints(folder: Path) -> Path:
    """
    Look for `.weft/endpoints.json` in a folder and in those above it.

    Raises:
        UnavailableError: there is none, so nothing runs here.
    """
    for candidate in (folder, *folder.parents):
        if (candidate / FILE).is_file():
            return candidate / FILE
    raise UnavailableError(
        f"no {FILE} in {folder} or above it, so no weft runs here; start it with `weft up`, name a context with "
        "`--context` or WEFT_CONTEXT, or the file with `--endpoints` or WEFT_ENDPOINTS"
    )


def read_endpoints(path: Path) -> Endpoints:
    """
    Read an endpoints file.

    Raises:
        NotFoundError: there is no such file.
        FailedPreconditionError: it is not what `weft up` writes, or names a file that cannot be read.
    """
    try:
        entries = json.loads(path.read_text())["services"]
        return Endpoints(
            {name: read_entry(entries[name], path.parent, f"{path}: {name}") for name in SERVICES if name in entries}
        )
    except WeftError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}; start weft with `weft up`, which writes it") from error
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read ({error.strerror}); check its owner and mode") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPreconditionError(
            f"{path} is not an endpoints file ({error!r}); `weft down`, then `weft up` write it anew"
        ) from error


def read_entry(entry: Mapping[str, Any], folder: Path, where: str) -> Endpoint:
    """
    Make an endpoint of one service's entry.

    Args:
        entry: `target` and the keys of `ENTRY_KEYS` that apply; others are left alone.
        folder: What its relative paths are relative to.
        where: File and place, for messages.

    Raises:
        FailedPreconditionError: A key is missing, of a wrong type or contradicts another; a file cannot be read.
    """
    for key in ENTRY_KEYS:
        kind = bool if key == "tls" else str
        if key in entry and entry[key] is not None and not isinstance(entry[key], kind):
            raise FailedPreconditionError(f"{where}.{key} is {entry[key]!r}; give {'true' if kind is bool else 'text'}")
    given = {key: entry[key] for key in ENTRY_KEYS if entry.get(key)}
    if "target" not in given and "url" not in given:
        raise FailedPreconditionError(
            f"{where} has no target; give host:port of the service (`weft up` writes it), or for a console its url"
        )
    host, colon, port = given.get("target", "console:0").rpartition(":")
    if not (host and colon and port.isdigit()):
        raise FailedPreconditionError(f"{where}.target is {given['target']!r}; give host:port")
    tokens = [key for key in _TOKEN_KEYS if key in given]
    if len(tokens) > 1:
        raise FailedPreconditionError(f"{where} has {' and '.join(tokens)}; give one of them")
    if ("tls_cert" in given) != ("tls_key" in given):
        raise FailedPreconditionError(f"{where} has one of tls_cert and tls_key; give both or neither")
    files = {key: folder / Path(given[key]).expanduser() for key in _FILE_KEYS if key in given}
    contents = {key: _read(path, f"{where}.{key}") for key, path in files.items()}
    token = given.get("token")
    if "token_file" in contents:
        token = _sendable(contents["token_file"].strip(), f"{where}.token_file, {files['token_file']},")
    elif "token_env" in given:
        token = _sendable(os.environ.get(given["token_env"], ""), f"{where}.token_env, variable {given['token_env']},")
    return Endpoint(
        given.get("target", ""),
        token,
        tls=given.get("tls", False),
        tls_ca=files.get("tls_ca"),
        tls_cert=files.get("tls_cert"),
        tls_key=files.get("tls_key"),
        tls_server_name=given.get("tls_server_name"),
        url=given.get("url", ""),
        metrics_port=entry.get("metrics_port", 0),
    )


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise FailedPreconditionError(
            f"{where}: {path} cannot be read ({error.strerror}); give the path of a file that this user may read"
        ) from error
    except UnicodeDecodeError as error:
        raise FailedPreconditionError(f"{where}: {path} is no text; give a token or a PEM file") from error


def _sendable(token: str, where: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise FailedPreconditionError(
            f"{where} holds no token; a token is one or more visible ASCII characters without spaces"
        )
    return token
