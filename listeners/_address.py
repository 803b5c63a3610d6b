"""Addresses, headers and keys that may be secrets: checked, kept, and shown to nobody.

An error about one says what is wanted and what kind of thing it got, never the thing itself.
"""

import re
from collections.abc import Mapping
from typing import Any

from ._library import HTTPX

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # https://www.rfc-editor.org/rfc/rfc9110#name-tokens


class Address:
    """An absolute ``http`` or ``https`` URL that shows its scheme, host and port alone.

    Raises:
        MissingExtraError: httpx is not installed.
        TypeError, ValueError: it is not such a URL, or carries a user's name or password.
    """

    __slots__ = ("_url", "authority", "scheme")

    def __init__(self, url: Any, what: str, wanted_by: str) -> None:
        httpx = HTTPX.load(wanted_by)
        wanted = (
            f"{what} must be an absolute URL, http:// or https:// and a host (it may hold a secret: it is not shown)"
        )
        text(url, wanted)
        parsed: Any
        try:
            parsed = httpx.URL(url)
            self.scheme = str(parsed.scheme)
            self.authority = parsed.netloc.decode("ascii")
        except Exception:  # whose text quotes it
            parsed = None
        if parsed is None:
            raise ValueError(f"{wanted}, got one that cannot be parsed")
        if self.scheme not in ("http", "https"):
            raise ValueError(f"{wanted}, got one with {'another' if self.scheme else 'no'} scheme")
        if not parsed.host:
            raise ValueError(f"{wanted}, got one without a host")
        if parsed.userinfo:
            raise ValueError(f"{wanted}, got one with a user's name or password: send these in a header")
        self._url = str(parsed)

    def joined(self, path: str) -> "Address":
        """What is at this path below it, whatever query or fragment it has."""
        below = object.__new__(Address)
        below.scheme, below.authority = self.scheme, self.authority
        below._url = f"{re.split('[?#]', self._url)[0].rstrip('/')}/{path}"
        return below

    def reveal(self) -> str:
        """All of it."""
        return self._url

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    def __repr__(self) -> str:
        return f"<Address {self}>"


def text(value: Any, wanted: str) -> str:
    """A text that is not blank.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{wanted}, got {_a(value)}")
    if not value.strip():
        raise ValueError(f"{wanted}, got an empty str")
    return value


def checked_headers(value: Any, ours: frozenset[str]) -> dict[str, str]:
    """Headers of the user's, which may be credentials; `ours` are those that we set.

    Raises:
        TypeError, ValueError: not a mapping from header names to texts that may stand in a header, or one of ours.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"headers must be a mapping from str to str, got {_a(value)}")
    checked: dict[str, str] = {}
    given: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    for name, content in given.items():
        if not isinstance(name, str):
            raise TypeError(f"headers: a name must be a str, got {_a(name)}")
        if not _TOKEN.fullmatch(name):
            raise ValueError("headers: a name must be letters, digits and hyphens, got one with other characters")
        if name.lower() in ours:
            raise ValueError(f"headers: {name!r} is set by the listener, got it among yours")
        if not isinstance(content, str):
            raise TypeError(f"headers: {name!r} must be a str, got {_a(content)}")
        if not is_plain(content):
            raise ValueError(f"headers: {name!r} must be printable ASCII, got other characters, or spaces around it")
        checked[name] = content
    return checked


def is_plain(content: str) -> bool:
    """Whether it may stand in a header as it is."""
    return content.isascii() and content.isprintable() and content == content.strip()


def _a(value: Any) -> str:
    return "None" if value is None else f"something of type {type(value).__name__}"
