"""
Named sets of endpoints: `contexts.toml` in `$XDG_CONFIG_HOME/weft` or `~/.config/weft`.

    current = "prod"

    [contexts.prod]                     # keys that all of its services share
    tls_ca = "prod-ca.pem"              # relative to this file's folder
    token_env = "WEFT_PROD_TOKEN"

    [contexts.prod.trainer]             # one table a service: its target, and what differs
    target = "trainer.weft.example:443"
    token_file = "~/.secrets/trainer"

An entry's keys are those of `weft_client.endpoints.ENTRY_KEYS`. The file may hold tokens, so only its owner should be
able to read it.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft_client.endpoints import ENTRY_KEYS, SERVICES, Endpoints, read_entry
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

Entry = Mapping[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_TOKEN_KEYS = frozenset(("token", "token_file", "token_env"))


def default_path() -> Path:
    """Where the contexts are, for the user of this process."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    # The specification has relative paths ignored.
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".config"
    return base / "weft" / "contexts.toml"


@dataclass(frozen=True)
class ContextFile:
    """
    What is in the file; nothing where there is none.

    Args:
        path: Of the file.
        current: Context of commands that name none; empty where they look for an embedded run.
        contexts: By name: shared keys, and one table a service.
    """

    path: Path
    current: str = ""
    contexts: Mapping[str, Entry] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path) -> "ContextFile":
        """
        Read and check the whole file.

        Raises:
            FailedPreconditionError: It cannot be read, or a key in it is unknown.
        """
        try:
            document = tomllib.loads(path.read_text())
        except FileNotFoundError:
            return cls(path)
        except OSError as error:
            raise FailedPreconditionError(
                f"{path} cannot be read ({error.strerror}); it should belong to this user and have mode 600"
            ) from error
        except ValueError as error:
            raise FailedPreconditionError(f"{path} is no TOML ({error}); correct it by hand") from error
        _check_keys(document, ("current", "contexts"), str(path))
        current, contexts = document.get("current", ""), document.get("contexts", {})
        if not isinstance(current, str) or not isinstance(contexts, dict):
            raise FailedPreconditionError(f"{path}: current is a name and contexts are tables; see `weft contexts set`")
        for name, context in contexts.items():
            where = f"{path}: contexts.{name}"
            if not isinstance(context, dict):
                raise FailedPreconditionError(f"{where} is no table; write [contexts.{name}]")
            _check_keys(context, (*ENTRY_KEYS, *SERVICES), where)
            for service in SERVICES:
                entry = context.get(service, {})
                if not isinstance(entry, dict):
                    raise FailedPreconditionError(f"{where}.{service} is no table; write [contexts.{name}.{service}]")
                _check_keys(entry, ENTRY_KEYS, f"{where}.{service}")
        return cls(path, current, contexts)

    def endpoints(self, name: str) -> Endpoints:
        """
        The services of a context.

        Raises:
            NotFoundError: There is none of that name; the message lists those that there are.
            FailedPreconditionError: It lacks a target, contradicts itself, or names a file that cannot be read.
        """
        context = self.named(name)
        return Endpoints(
            {
                service: read_entry(
                    merged(context, service), self.path.parent, f"{self.path}: contexts.{name}.{service}"
                )
                for service in SERVICES
                if service in context
            }
        )

    def named(self, name: str) -> Entry:
        """One context as it is written. NotFoundError."""
        if name not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none"
            raise NotFoundError(
                f"there is no context {name!r} in {self.path}, only: {known}; `weft contexts set` makes one"
            )
        return self.contexts[name]

    def using(self, name: str) -> "ContextFile":
        """The same with another current context; an empty name means none. NotFoundError."""
        if name:
            self.named(name)
        return ContextFile(self.path, name, self.contexts)

    def with_keys(self, name: str, service: str, keys: Entry) -> "ContextFile":
        """
        The same with keys of a context changed; a key that is None goes.

        Args:
            name: Of the context, which is made where there is none.
            service: Whose keys; empty means those that all services share.
            keys: Of `ENTRY_KEYS`.

        Raises:
            InvalidArgumentError: The name or the service is none.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(f"{name!r} is no name of a context; give letters, digits, - and _, at most 63")
        if service and service not in SERVICES:
            raise InvalidArgumentError(f"there is no service {service!r}; give one of {', '.join(SERVICES)}")
        context = dict(self.contexts.get(name, {}))
        entry = dict(context.get(service, {}) if service else context)
        if _TOKEN_KEYS & {key for key, value in keys.items() if value is not None}:
            entry = {key: value for key, value in entry.items() if key not in _TOKEN_KEYS}
        entry = {key: value for key, value in {**entry, **keys}.items() if value is not None}
        return ContextFile(
            self.path, self.current, {**self.contexts, name: {**context, service: entry} if service else entry}
        )

    def without(self, name: str) -> "ContextFile":
        """The same without a context. NotFoundError."""
        self.named(name)
        others = {other: context for other, context in self.contexts.items() if other != name}
        return ContextFile(self.path, "" if self.current == name else self.current, others)

    def write(self) -> None:
        """Write the file as a whole, readable by its owner only; comments in it are not kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._toml())
        temporary.replace(self.path)

    def mode_problem(self) -> str:
        """What is wrong with the mode of the file; empty where nothing is."""
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
        except FileNotFoundError:
            return ""
        if mode & 0o077 == 0:
            return ""
        return f"{self.path} has mode {mode:03o}, so others can get at its tokens; `chmod 600 {self.path}`"

    def _toml(self) -> str:
        lines = [f"current = {_toml_value(self.current)}"] if self.current else []
        for name, context in self.contexts.items():
            # A name that was written by hand may need its quotes.
            heading = f"contexts.{name if _NAME.fullmatch(name) else _toml_value(name)}"
            tables = {heading: {key: value for key, value in context.items() if key not in SERVICES}}
            tables |= {f"{heading}.{service}": context[service] for service in SERVICES if service in context}
            for place, keys in tables.items():
                lines += ["", f"[{place}]", *(f"{key} = {_toml_value(value)}" for key, value in keys.items())]
        return "\n".join(lines).lstrip("\n") + "\n"


def merged(context: Entry, service: str) -> dict[str, Any]:
    """A service's keys over those that the context shares; its own way to a token replaces the shared one."""
    own = context.get(service, {})
    shared = {key: value for key, value in context.items() if key not in SERVICES}
    if _TOKEN_KEYS & own.keys():
        shared = {key: value for key, value in shared.items() if key not in _TOKEN_KEYS}
    return {**shared, **own}


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise FailedPreconditionError(f"{where} has a key {key!r}, expected {', '.join(known)}; correct it by hand")


def _toml_value(value: str | bool) -> str:
    """
    A value of the only types that the file has; JSON's strings are TOML's, but for one character.

    >>> _toml_value("a"), _toml_value(True)
    ('"a"', 'true')
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
