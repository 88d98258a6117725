"""Who is signed in, without anything stored."""

from http.cookies import SimpleCookie

from pydantic import SecretStr
from starlette.requests import HTTPConnection
from starlette.responses import Response

from weft_console.sessions import Sessions


def make(token: str | None, *, secure: bool = False) -> Sessions:
    return Sessions(None if token is None else SecretStr(token), max_age_s=60, secure=secure)


def connection(cookie: str = "") -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": [(b"cookie", cookie.encode())]})


def cookie_of(sessions: Sessions) -> SimpleCookie:
    response = Response()
    sessions.open(response)
    return SimpleCookie(response.headers["set-cookie"])


def test_cookie_signs_in_where_it_was_given_and_nowhere_else() -> None:
    """Another token's console neither takes the cookie nor has one of the same name."""
    one, two = make("one"), make("two")
    ((name, morsel),) = cookie_of(one).items()
    assert one.is_signed_in(connection(f"{name}={morsel.value}"))
    assert not two.is_signed_in(connection(f"{two.cookie}={morsel.value}"))
    assert one.cookie != two.cookie


def test_cookie_outlives_a_restart() -> None:
    """The same token gives the same session, so that a restarted console signs nobody out."""
    ((name, morsel),) = cookie_of(make("one")).items()
    assert make("one").is_signed_in(connection(f"{name}={morsel.value}"))


def test_absent_wrong_and_odd_cookies_sign_nobody_in() -> None:
    """Whatever else a browser sends is no session."""
    sessions = make("one")
    for value in ("", f"{sessions.cookie}=", f"{sessions.cookie}=one", f"{sessions.cookie}=\u00e9", "other=1"):
        assert not sessions.is_signed_in(connection(value)), value


def test_cookie_travels_by_tls_only_where_there_is_tls() -> None:
    """Over TLS the cookie is never sent without."""
    for secure in (True, False):
        ((_, morsel),) = cookie_of(make("one", secure=secure)).items()
        assert bool(morsel["secure"]) is secure
        assert morsel["httponly"]
        assert morsel["samesite"] == "strict"


def test_console_without_token_lets_everybody_in() -> None:
    """On a machine of one's own, nobody has to sign in."""
    assert make(None).is_signed_in(connection())
    assert make(None).accepts("anything")
