"""
Prompts: files with versions beside the code, `explain-1.txt` and so on.

A file that has been used is never changed; another wording is another version. What is put into a prompt is put in
once: text that looks like a placeholder stays text.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from weft_common.errors import InternalError, InvalidArgumentError

__all__ = ["Prompt", "load_prompt", "prompt_names"]

_FOLDER = files("weft_attribution") / "prompts"
_NAME = re.compile(r"([a-z]+)-([1-9]\d{0,3})")
_HOLE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Prompt:
    """
    One version of a prompt.

    Args:
        name: `{kind}-{version}`.
        sha256: Of its file.
        system: What the model is told to do.
        user: What the data are put into.
    """

    name: str
    sha256: str
    system: str
    user: str

    def filled(self, values: Mapping[str, str]) -> tuple[str, str]:
        """System and user with every `{{hole}}` filled."""

        def fill(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise InternalError(f"prompt {self.name} asks for {match[0]}, which nobody gives")
            return values[match[1]]

        return _HOLE.sub(fill, self.system), _HOLE.sub(fill, self.user)


def prompt_names(kind: str) -> list[str]:
    """All versions of a kind of prompt, oldest first."""
    found = [_NAME.fullmatch(entry.name.removesuffix(".txt")) for entry in _FOLDER.iterdir()]
    versions = sorted(int(match[2]) for match in found if match is not None and match[1] == kind)
    return [f"{kind}-{version}" for version in versions]


@cache
def load_prompt(kind: str, name: str = "") -> Prompt:
    """
    Read a prompt; without a name the newest of its kind.

    Raises:
        InvalidArgumentError: There is no such prompt.
    """
    names = prompt_names(kind)
    if name and name not in names:
        raise InvalidArgumentError(f"there is no prompt {name[:60]!r} to ask for {kind}; there are {', '.join(names)}")
    chosen = name or names[-1]
    data = (_FOLDER / f"{chosen}.txt").read_bytes()
    head, _, user = data.decode().partition("[user]\n")
    return Prompt(
        chosen, hashlib.sha256(data).hexdigest(), head.removeprefix("[system]\n").strip(), user.removesuffix("\n")
    )
