"""From the URL of a store in the configuration to the store.

    file:///absolute/path
    s3://bucket/prefix?endpoint=https://host:port&region=R&profile=P&allow_http=1
        &proxy=http://host:port&ca_bundle=/path&addressing=path&connect_timeout_s=10&read_timeout_s=60&limits=0
        &lock=compliance&lock_days=60

All that is needed to reach a store is in its URL: `restore` and `attach` have nothing else.
Error messages never repeat the URL: someone may have put a secret into it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from mirrorfs.drivers.s3_line import PARALLEL, S3Line
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.errors import UsageError
from mirrorfs.format.object_lock import LockMode, ObjectLock
from mirrorfs.ports import Throttle

if TYPE_CHECKING:
    from mirrorfs.drivers.store_s3 import S3Store

URL_LENGTH_MAX = 2048

TIMEOUT_MAX_S = 600.0
LOCK_DAYS_MAX = 36500

_S3_OPTIONS = frozenset({"endpoint", "region", "profile", "allow_http", "proxy", "ca_bundle", "addressing"})
_S3_OPTIONS |= {"connect_timeout_s", "read_timeout_s", "limits", "lock", "lock_days"}
_DAYS = re.compile(r"[1-9][0-9]{0,4}")
_SECONDS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3})?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_PREFIX_LENGTH_MAX = 512


def parse_store_url(
    name: str, url: str, *, parallel: int = PARALLEL, throttle: Throttle | None = None
) -> DirectoryStore | S3Store:
    """Make the store that a URL names; reads a CA bundle named there, touches nothing else.

    Args:
        parallel: objects under way, see S3Line and DirectoryStore.
        throttle: how fast they go to and from an S3 server, unless limits=0; a directory has no limit.

    Raises: UsageError: the URL is not one of the two kinds above, or the bundle is not usable.
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
        return DirectoryStore(name, _directory(name, parts), parallel=parallel)
    if parts.scheme == "s3":
        return _s3_store(name, parts, parallel, throttle)
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


def _s3_store(name: str, parts: SplitResult, parallel: int, throttle: Throttle | None) -> S3Store:
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
    # Here, because boto3 is a third of what a program that starts has to load, and directories need none.
    from mirrorfs.drivers.s3_client import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, S3Target
    from mirrorfs.drivers.store_s3 import S3Store

    options = _options(name, parts.query)
    for option, only in (("allow_http", "1"), ("limits", "0")):
        if options.get(option, only) != only:
            raise UsageError(f"Option {option} in the URL of store {name} takes the value {only} only.")
    line = S3Line(parallel=parallel, throttle=None if "limits" in options else throttle)
    target = S3Target(
        endpoint=options.get("endpoint"),
        region=options.get("region"),
        profile=options.get("profile"),
        allow_http="allow_http" in options,
        connect_timeout_s=_seconds(name, options, "connect_timeout_s", CONNECT_TIMEOUT_S),
        read_timeout_s=_seconds(name, options, "read_timeout_s", READ_TIMEOUT_S),
        proxy=options.get("proxy"),
        ca_bundle=options.get("ca_bundle"),
        addressing=options.get("addressing", "auto"),
    )
    lock = _lock(name, options)
    return S3Store(name, bucket=parts.netloc, prefix=prefix, target=target, line=line, lock=lock)


def _lock(name: str, options: dict[str, str]) -> ObjectLock | None:
    mode, days = options.get("lock"), options.get("lock_days")
    if mode is None and days is None:
        return None
    if mode not in list(LockMode):
        raise UsageError(f"Option lock in the URL of store {name} is governance or compliance.")
    if days is None or _DAYS.fullmatch(days) is None or int(days) > LOCK_DAYS_MAX:
        raise UsageError(
            f"The URL of store {name} needs lock_days=: how long objects are locked, 1 to {LOCK_DAYS_MAX}."
        )
    return ObjectLock(LockMode(mode), int(days))


def _seconds(name: str, options: dict[str, str], option: str, default: float) -> float:
    text = options.get(option)
    if text is None:
        return default
    if _SECONDS.fullmatch(text) is None or not 0 < float(text) <= TIMEOUT_MAX_S:
        raise UsageError(
            f"Option {option} in the URL of store {name} is a number of seconds, at most {TIMEOUT_MAX_S:.0f}."
        )
    return float(text)


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
