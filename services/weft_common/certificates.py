"""When the certificate that a server shows expires: for an alert before that day."""

from pathlib import Path

from cryptography import x509

from weft_common.errors import InvalidArgumentError
from weft_common.metrics import TLS_CERTIFICATE_EXPIRY

__all__ = ["first_expiry_s", "watch_certificate"]


def first_expiry_s(chain: Path) -> float:
    """
    Return when the first certificate of a PEM chain expires, in seconds since 1970.

    Raises:
        InvalidArgumentError: The file has no certificate that can be read.
    """
    try:
        certificates = x509.load_pem_x509_certificates(chain.read_bytes())
    except ValueError as error:
        raise InvalidArgumentError(
            f"{chain} holds no certificate chain ({error}); give a PEM file with the server's certificate first"
        ) from None
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)


def watch_certificate(chain: Path) -> None:
    """
    Show the expiry of the chain that this process serves with, as it is now.

    The chain is read once, when the server starts: a renewed file counts after the next start, and so does the metric.
    """
    TLS_CERTIFICATE_EXPIRY.labels("server").set(first_expiry_s(chain))
