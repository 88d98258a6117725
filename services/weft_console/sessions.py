"""
Who is signed in: a cookie that is derived from the token, so that nothing is stored and a new token ends every session.

The cookie is not the token: cookies are shared by all ports of a host, and another process there must not learn it.
"""

import hashlib
import hmac

from pydantic import SecretStr
from starlette.requests import HTTPConnection
from starlette.responses import Response

__all__ = ["Sessions"]


class Sessions:
    """
    Checks tokens and cookies in constant time.

    Args:
        token: What a person signs in with; None lets everybody in.
        max_age_s: How long a browser keeps the cookie.
        secure: The page is served over TLS, so the cookie never goes without.
    """

    def __init__(self, token: SecretStr | None, *, max_age_s: int, secure: bool) -> None:
        self._token = None if token is None else token.get_secret_value().encode()
        self._value = hmac.new(self._token or b"", b"weft console session 1", hashlib.sha256).hexdigest()
        # Two consoles on one host keep their cookies apart.
        self.cookie = f"weft_session_{hashlib.sha256(self._value.encode()).hexdigest()[:8]}"
        self._max_age_s = max_age_s
        self._secure = secure

    def accepts(self, token: str) -> bool:
        """Whether this is the token."""
        return self._token is None or hmac.compare_digest(token.encode(), self._token)

    def is_signed_in(self, connection: HTTPConnection) -> bool:
        """Whether the browser's cookie is that of a signed-in person."""
        if self._token is None:
            return True
        return hmac.compare_digest(connection.cookies.get(self.cookie, "").encode(), self._value.encode())

    def open(self, response: Response) -> None:
        """Sign the browser in."""
        response.set_cookie(
            self.cookie, self._value, max_age=self._max_age_s, secure=self._secure, httponly=True, samesite="strict"
        )

    def close(self, response: Response) -> None:
        """Sign the browser out."""
        response.delete_cookie(self.cookie, secure=self._secure, httponly=True, samesite="strict")
