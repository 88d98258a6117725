"""Where the services are: given, or read from the file that `weft up` writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weft_common.errors import FailedPreconditionError, NotFoundError, UnavailableError

SERVICES = ("activations", "cache", "trainer", "attribution")
FILE = Path(".weft") / "endpoints.json"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One service.

    Args:
        target: `host:port`.
        token: Bearer token that it asks for; None where it asks for none.
        tls_ca: Certificate of the authority that its own is signed by; None speaks in the clear.
        tls_cert: For mTLS, this client's certificate.
        tls_key: For mTLS, its key.
    """

    target: str
    token: str | None = field(default=None, repr=False)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


@dataclass(frozen=True, slots=True)
class Endpoints:
    """
    All services that a client may talk to.

    Args:
        services: By name: activations, cache, trainer, attribution.
        console_url: Address of the page; empty where there is none.
        console_token: What the page asks for, as `?token=`.
    """

    services: Mapping[str, Endpoint]
    console_url: str = ""
    console_token: str = field(default="", repr=False)

    def __getitem__(self, service: str) -> Endpoint:
        """One service; FailedPreconditionError where this client was given none of that name."""
        try:
            return self.services[service]
        except KeyError:
            raise FailedPreconditionError(
                f"this client knows no {service} service, only {', '.join(sorted(self.services)) or 'none'}; "
                f"give {service}=Endpoint(target, token) or connect to an embedded run, `weft up`"
            ) from None

    def page(self, path: str) -> str:
        """Address of one page of the console, such as `graphs/g1`, token included."""
        if not self.console_url:
            raise FailedPreconditionError("there is no console among the endpoints; start one with `weft up`")
        base, token = self.console_url.rstrip("/"), self.console_token
        return f"{base}/{path}{f'?token={token}' if token else ''}"


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
        f"no {FILE} in {folder} or above it, so no weft runs here; start it with `weft up`, or name the file with "
        "`--endpoints` or WEFT_ENDPOINTS"
    )


def read_endpoints(path: Path) -> Endpoints:
    """
    Read an endpoints file.

    Raises:
        NotFoundError: there is no such file.
        FailedPreconditionError: it is not what `weft up` writes.
    """
    try:
        services = json.loads(path.read_text())["services"]
        console = services.get("console", {})
        return Endpoints(
            services={
                name: Endpoint(
                    target=services[name]["target"],
                    token=services[name].get("token"),
                    **{
                        key: Path(services[name][key])
                        for key in ("tls_ca", "tls_cert", "tls_key")
                        if services[name].get(key)
                    },
                )
                for name in SERVICES
                if name in services
            },
            console_url=console.get("url", ""),
            console_token=console.get("token", ""),
        )
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}; start weft with `weft up`, which writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPreconditionError(
            f"{path} is not an endpoints file ({error!r}); `weft down`, then `weft up` write it anew"
        ) from error
