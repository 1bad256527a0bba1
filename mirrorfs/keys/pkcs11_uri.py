"""`pkcs11:` URIs (RFC 7512), as far as they name a token and a key.

A URI may come from the command line or the user's own configuration, or from somewhere less
trusted. Only the former may say which library to load or where a PIN lies: loading a library is
running its code. A PIN inside a URI (pin-value) is never taken, for URIs end up in shell
histories, process lists and logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from mirrorfs.errors import UsageError

URI_SIZE_MAX_BYTES = 4096

_PATH_TEXT = frozenset({"token", "manufacturer", "serial", "model", "object"})
_PATH = _PATH_TEXT | {"id", "type"}
_QUERY = frozenset({"module-path", "module-name", "pin-source"})
_TYPES = frozenset({"private", "public"})
# The characters RFC 7512 allows bare, pk11-path-res-avail and pk11-query-res-avail taken together.
_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&/?|]|%[0-9A-Fa-f]{2})*")
_MODULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """A parsed URI. An attribute that is None was not given and matches anything."""

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    object: str | None = None
    """Label of the key (CKA_LABEL)."""
    id: bytes | None = None
    """CKA_ID of the key."""
    type: str | None = None
    module_path: str | None = None
    """Absolute path of the module's library."""
    module_name: str | None = None
    pin_source: str | None = None
    """Absolute path of a file that holds the PIN."""

    def describe(self) -> str:
        """The URI's path component, canonical: what it matches, without library or PIN file."""
        parts = [
            f"{name}={quote(value, safe='')}"
            for name in ("token", "manufacturer", "serial", "model", "object")
            if (value := getattr(self, name)) is not None
        ]
        if self.id is not None:
            parts.append("id=" + "".join(f"%{byte:02x}" for byte in self.id))
        if self.type is not None:
            parts.append(f"type={self.type}")
        return "pkcs11:" + ";".join(parts)


def _attributes(part: str, *, separator: str, known: frozenset[str], what: str) -> dict[str, bytes]:
    result: dict[str, bytes] = {}
    for item in part.split(separator) if part else ():
        name, equals, value = item.partition("=")
        if name == "pin-value":
            raise UsageError(
                "A PIN inside a token URI is refused; remove pin-value, and use --pin-file or the prompt."
            )
        if not equals or name not in known:
            # The message repeats neither names nor values: a mistyped URI may well hold the PIN.
            raise UsageError(f"The token URI has a {what} attribute that is not known here; remove it.")
        if name in result:
            raise UsageError(f"The token URI gives {name} twice; keep one.")
        if _VALUE.fullmatch(value) is None:
            raise UsageError(f"The token URI's {name} has a character that must be percent-encoded.")
        result[name] = unquote_to_bytes(value)
    return result


def _decode(name: str, value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise UsageError(f"The token URI's {name} is not UTF-8; correct its percent-encoding.") from None
    if not text.isprintable():
        raise UsageError(f"The token URI's {name} has a control character; remove it.")
    return text


def _absolute(name: str, value: bytes | None) -> str | None:
    text = _decode(name, value)
    if text is not None and not text.startswith("/"):
        raise UsageError(f"The token URI's {name} is not an absolute path; give one that begins with '/'.")
    return text


def parse_pkcs11_uri(text: str, *, local: bool) -> Pkcs11Uri:
    """Parse a URI; every attribute must be known, given once and well-formed.

    Known in the path: token, manufacturer, serial, model, object, id, type (private or public). In
    the query: module-path (absolute), module-name, pin-source (absolute, or `file:` and absolute).
    Args:
        local: the URI comes from the command line or the caller's own configuration, so that query
            attributes are accepted.
    Raises: UsageError: anything else; the message never repeats a value.
    """
    if len(text) > URI_SIZE_MAX_BYTES or not text.isascii():
        raise UsageError(
            f"A token URI has at most {URI_SIZE_MAX_BYTES} ASCII characters; shorten or encode it."
        )
    scheme, colon, rest = text.partition(":")
    if scheme.lower() != "pkcs11" or not colon:
        raise UsageError("A PKCS#11 token is named by a URI that begins with 'pkcs11:'.")
    path, _, query = rest.partition("?")
    matched = _attributes(path, separator=";", known=_PATH, what="path")
    settings = _attributes(query, separator="&", known=_QUERY, what="query")
    if settings and not local:
        raise UsageError(
            "A token URI names a module or a PIN file, which only your command line or configuration may."
        )
    kind = _decode("type", matched.get("type"))
    if kind is not None and kind not in _TYPES:
        raise UsageError("The token URI's type is neither private nor public; a key pair is needed.")
    name = _decode("module-name", settings.get("module-name"))
    if name is not None and _MODULE_NAME.fullmatch(name) is None:
        raise UsageError("The token URI's module-name is not a plain name; use module-path for a path.")
    if name is not None and "module-path" in settings:
        raise UsageError("The token URI gives both module-path and module-name; keep one.")
    source = settings.get("pin-source")
    if source is not None and source.lower().startswith(b"file:"):
        # file:///path and file:/path are the same place; another host's path stays, and is not absolute.
        source = source[5:]
        source = source[2:] if source.startswith(b"//") else source
    return Pkcs11Uri(
        **{attribute: _decode(attribute, matched.get(attribute)) for attribute in sorted(_PATH_TEXT)},
        id=matched.get("id"),
        type=kind,
        module_path=_absolute("module-path", settings.get("module-path")),
        module_name=name,
        pin_source=_absolute("pin-source", source),
    )
