"""An S3 server with Object Lock and with rights: moto's, with a policy for one of its access keys.

The policy is a document as AWS has them; this evaluates as much of one as ours say: Effect, Action, Resource
with wildcards, and conditions on If-None-Match and on the time of a lock. What in moto is not like S3
is mended here: a retention is never shortened, the versions of a bucket with Object Lock are never suspended,
and a listing of versions begins behind its marker.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.exceptions import AccessDeniedByLock
from moto.s3.models import FakeKey, S3Backend
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.support.s3_servers import SECRET_KEY, S3Server, free_port

OWNER_KEY = "owner"
PC_KEY = "practice-pc"

Start = Callable[..., Any]


class PolicyServer:
    """Runs in this process; `denied` counts what the policy refused."""

    def __init__(self, policy: Mapping[str, Any] | None) -> None:
        """`policy`: of PC_KEY, whose rights nothing limits without one."""
        self.access_key, self.secret_key = OWNER_KEY, SECRET_KEY
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.policy = policy
        self.denied: list[str] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", self._port, self._answer, True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def as_pc(self) -> S3Server:
        """The server with the credentials of the practice's PC."""
        return _WithKey(self, PC_KEY)

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        bucket, key, actions = asked_for(environ)
        # Nobody can suspend the versions of a bucket with Object Lock, which moto would do.
        refused = [one for one in actions if one == "s3:PutBucketVersioning"]
        if f"Credential={PC_KEY}/" in environ.get("HTTP_AUTHORIZATION", "") and self.policy is not None:
            resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
            conditions = {
                "s3:if-none-match": environ.get("HTTP_IF_NONE_MATCH"),
                "s3:object-lock-remaining-retention-days": _days_asked(environ),
            }
            refused += [one for one in actions if not allows(self.policy, one, resource, conditions)]
        if refused:
            self.denied += refused
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            start("403 Forbidden", [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))])
            return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        answer: Iterable[bytes] = self._moto(environ, start)
        return answer


def _days_asked(environ: dict[str, Any]) -> str | None:
    """For how many days a request is to lock, if it is."""
    until = environ.get("HTTP_X_AMZ_OBJECT_LOCK_RETAIN_UNTIL_DATE")
    if (
        until is None
        and "retention" in environ.get("QUERY_STRING", "")
        and environ["REQUEST_METHOD"] == "PUT"
    ):
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = io.BytesIO(body)
        found = re.search(rb"<RetainUntilDate>(.*?)</RetainUntilDate>", body)
        until = found[1].decode() if found else None
    if until is None:
        return None
    return str((datetime.fromisoformat(until) - datetime.now(UTC)) / timedelta(days=1))


class _WithKey:
    def __init__(self, server: PolicyServer, key: str) -> None:
        self.endpoint, self.secret_key = server.endpoint, server.secret_key
        self.access_key = key
        self.start, self.stop = server.start, server.stop


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


_BUCKET_READS = {
    "versions": "ListBucketVersions",
    "versioning": "GetBucketVersioning",
    "object-lock": "GetBucketObjectLockConfiguration",
    "policy": "GetBucketPolicy",
}
_BUCKET_WRITES = {
    "versioning": "PutBucketVersioning",
    "object-lock": "PutBucketObjectLockConfiguration",
    "policy": "PutBucketPolicy",
    "lifecycle": "PutLifecycleConfiguration",
}


def asked_for(environ: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """(bucket, key, actions) of a request whose bucket is in its path."""
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    method = environ["REQUEST_METHOD"]
    bypass = ["BypassGovernanceRetention"] * ("HTTP_X_AMZ_BYPASS_GOVERNANCE_RETENTION" in environ)
    versioned = "Version" * ("versionId" in query)
    if not key:
        if method == "POST" and "delete" in query:
            actions = ["DeleteObject", "DeleteObjectVersion", *bypass]
        elif method == "DELETE":
            actions = ["DeleteBucket"]
        else:
            names = _BUCKET_READS if method in ("GET", "HEAD") else _BUCKET_WRITES
            default = "ListBucket" if method in ("GET", "HEAD") else "CreateBucket"
            actions = [names[one] for one in query if one in names] or [default]
    elif method in ("GET", "HEAD"):
        actions = ["GetObjectRetention"] if "retention" in query else ["GetObject" + versioned]
    elif method == "DELETE":
        actions = ["DeleteObject" + versioned, *bypass]
    elif "retention" in query:
        actions = ["PutObjectRetention", *bypass]
    elif "legal-hold" in query:
        actions = ["PutObjectLegalHold"]
    else:
        actions = ["PutObject", *["PutObjectRetention"] * ("HTTP_X_AMZ_OBJECT_LOCK_MODE" in environ)]
    return bucket, key, ["s3:" + one for one in actions]


def allows(
    policy: Mapping[str, Any], action: str, resource: str, conditions: Mapping[str, str | None]
) -> bool:
    """What a policy says: a Deny wins, and what no statement allows is denied."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if _is_among(action, statement["Action"])
        and _is_among(resource, statement["Resource"])
        and _holds(statement.get("Condition", {}), conditions)
    }
    return "Allow" in effects and "Deny" not in effects


def _is_among(value: str, patterns: str | list[str]) -> bool:
    return any(fnmatchcase(value, one) for one in ([patterns] if isinstance(patterns, str) else patterns))


def _holds(wanted: Mapping[str, Mapping[str, str]], conditions: Mapping[str, str | None]) -> bool:
    for operator, values in wanted.items():
        for name, value in values.items():
            found = conditions[name]
            if operator == "Null":
                holds = (found is None) is (value == "true")
            else:
                assert operator == "NumericGreaterThan", "no other condition is evaluated here"
                holds = found is not None and float(found) > float(value)
            if not holds:
                return False
    return True


def policies_in(text: str) -> list[dict[str, Any]]:
    """The policies that a document of ours shows, as they stand there."""
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    return [found for found in map(json.loads, blocks) if "Statement" in found]


# --- moto ----------------------------------------------------------------------------------------


def _put_object_retention(
    self: S3Backend,
    bucket_name: str,
    key_name: str,
    version_id: str | None,
    retention: tuple[str | None, str | None],
) -> None:
    key = self.get_object(bucket_name, key_name, version_id=version_id)
    assert isinstance(key, FakeKey)
    if key.is_locked(governance_bypass=False) and (retention[1] or "") < (key.lock_until or ""):
        raise AccessDeniedByLock
    key.lock_mode, key.lock_until = retention


def _list_object_versions(
    self: S3Backend,
    bucket_name: str,
    delimiter: str | None = None,
    key_marker: str | None = None,
    max_keys: int | None = 1000,
    prefix: str = "",
    version_id_marker: str | None = None,
) -> tuple[list[Any], list[str], list[Any], str | None, str | None]:
    bucket = self.get_bucket(bucket_name)
    found: list[Any] = []
    passed = False
    for name in sorted(name for name, _ in bucket.keys.iterlists() if name.startswith(prefix)):
        if key_marker is not None and name < key_marker:
            continue
        if name == key_marker and not version_id_marker:
            continue
        passed = passed or name != key_marker
        for number, version in enumerate(reversed(bucket.keys.getlist(name))):
            if passed:
                version.is_latest = number == 0
                found.append(version)
            passed = passed or version.version_id == version_id_marker
    page = found[:max_keys]
    versions = [one for one in page if isinstance(one, FakeKey)]
    markers = [one for one in page if not isinstance(one, FakeKey)]
    more = len(found) > len(page)
    return versions, [], markers, page[-1].name if more else None, page[-1].version_id if more else None


@contextlib.contextmanager
def policy_server(policy: Mapping[str, Any] | None = None) -> Iterator[PolicyServer]:
    """A server whose objects live as long as the process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with (
        mock.patch.object(S3Backend, "put_object_retention", _put_object_retention),
        mock.patch.object(S3Backend, "list_object_versions", _list_object_versions),
    ):
        server = PolicyServer(policy)
        server.start()
        try:
            yield server
        finally:
            server.stop()
