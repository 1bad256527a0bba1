"""From the URL of a store in the configuration to the store.

    file:///absolute/path
    s3://bucket/prefix?endpoint=https://host:port&region=R&profile=P&allow_http=1

Error messages never repeat the URL: someone may have put a secret into it.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from mirrorfs.drivers.s3_client import S3Target
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.errors import UsageError

URL_LENGTH_MAX = 2048

_S3_OPTIONS = frozenset({"endpoint", "region", "profile", "allow_http"})
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_PREFIX_LENGTH_MAX = 512


def parse_store_url(name: str, url: str) -> DirectoryStore | S3Store:
    """Make the store that a URL names; touches neither disk nor network.

    Raises: UsageError: the URL is not one of the two kinds above.
    """
    if len(url) > URL_LENGTH_MAX or not url.isprintable():
        raise UsageError(f"The URL of store {name} is too long or holds unprintable characters.")
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise UsageError(f"The URL of store {name} is malformed.") from exc
    if "@" in parts.netloc:
        raise UsageError(
            f"The URL of store {name} holds credentials: remove them and name a profile instead."
        )
    if "#" in url:
        raise UsageError(f"The URL of store {name} holds a '#': write it as %23.")
    if parts.scheme == "file":
        return DirectoryStore(name, _directory(name, parts))
    if parts.scheme == "s3":
        return _s3_store(name, parts)
    raise UsageError(f"The URL of store {name} must begin with file:/// or s3://.")


def _directory(name: str, parts: SplitResult) -> Path:
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/"):
        raise UsageError(f"The URL of store {name} needs an absolute path: file:///path.")
    if parts.query:
        raise UsageError(f"The URL of store {name} takes no options after '?': write a '?' in it as %3F.")
    if "\0" in path or ".." in path.split("/"):
        raise UsageError(f"The path of store {name} must not hold '..'.")
    root = Path(path)
    if root == Path("/"):
        raise UsageError(f"The path of store {name} is the whole system: name a directory of its own.")
    return root


def _s3_store(name: str, parts: SplitResult) -> S3Store:
    # netloc, not hostname: that one is in lower case, bucket names need not be.
    if _BUCKET.fullmatch(parts.netloc) is None:
        raise UsageError(f"The URL of store {name} names no valid bucket: s3://BUCKET/PREFIX.")
    prefix = parts.path.strip("/")
    if prefix and (
        len(prefix) > _PREFIX_LENGTH_MAX
        or _PREFIX.fullmatch(prefix) is None
        or not {".", ".."}.isdisjoint(prefix.split("/"))
    ):
        raise UsageError(f"The prefix of store {name} may hold letters, digits, '.', '_', '-' and '/'.")
    options = _options(name, parts.query)
    if options.get("allow_http", "1") != "1":
        raise UsageError(f"Option allow_http in the URL of store {name} takes the value 1 only.")
    target = S3Target(
        endpoint=options.get("endpoint"),
        region=options.get("region"),
        profile=options.get("profile"),
        allow_http="allow_http" in options,
    )
    return S3Store(name, bucket=parts.netloc, prefix=prefix, target=target)


def _options(name: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as exc:
        raise UsageError(f"The options in the URL of store {name} are malformed: KEY=VALUE&...") from exc
    options = dict(pairs)
    if len(options) != len(pairs):
        raise UsageError(f"An option in the URL of store {name} is given twice.")
    if not options.keys() <= _S3_OPTIONS:
        known = ", ".join(sorted(_S3_OPTIONS))
        raise UsageError(f"An option in the URL of store {name} is unknown; there are {known}.")
    if not all(options.values()):
        raise UsageError(f"An option in the URL of store {name} has no value.")
    return options
