"""What the failures of boto3 and of S3 servers mean to a store.

Decided by one question: can the server have acted on the request? A failure before it was sent, or
a refusal by the server, wrote nothing. Silence after a write was sent, and a 5xx that some proxy may
have made up, leave the outcome unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from mirrorfs.errors import (
    ObjectExists,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UnknownOutcome,
)

FOREIGN_ERRORS = (BotoCoreError, ClientError, ResponseParserError, HTTPError, ValueError)
"""Everything boto3 raises for what a server or the network did; ValueError for malformed numbers."""

_NOT_SENT = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError)
_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_DENIED_CODES = frozenset(
    {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "AccessDenied"}
)
_WRONG_REGION_CODES = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301"}
)
_FULL_CODES = frozenset(
    {
        "QuotaExceeded",
        "ServiceQuotaExceeded",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    }
)
# Refused or dropped before anything was written.
_PASSING_STATUSES = frozenset({408, 429, 503})
_PASSING_CODES = frozenset({"RequestTimeout", "SlowDown", "ServiceUnavailable", "Throttling"})
_EXISTS_STATUSES = frozenset({409, 412})
_INSUFFICIENT_STORAGE = 507


def error_code(error: ClientError) -> str:
    """The S3 error code, or the HTTP status as text where the answer had no body."""
    details: Mapping[str, object] = error.response.get("Error", {})
    return str(details.get("Code", ""))


def status(error: ClientError) -> int:
    """The HTTP status; 0 when there is none."""
    metadata: Mapping[str, object] = error.response.get("ResponseMetadata", {})
    found = metadata.get("HTTPStatusCode")
    return found if isinstance(found, int) else 0


def condition_failed(error: ClientError) -> bool:
    """Tell whether the server refused a conditional write because of the object that is there."""
    return status(error) in _EXISTS_STATUSES


def condition_unsupported(error: ClientError) -> bool:
    """Tell whether the server does not know conditional writes at all."""
    return status(error) in {400, 501}


def bucket_missing(store: str) -> StoreUnavailable:
    """The error for a bucket that is not there, which an outage of a gateway may look like."""
    return StoreUnavailable(f"The bucket of store {store} does not exist: create it or correct the URL.")


def translate(error: Exception, *, store: str, subject: str, writes: bool) -> StoreError:
    """Turn one of FOREIGN_ERRORS into the StoreError to raise from it; subject says what was asked for.

    writes: the request would have changed something, so that silence leaves the outcome unknown.
    """
    if isinstance(error, ClientError):
        return _translate_answer(error, store=store, subject=subject, writes=writes)
    if isinstance(error, _NO_CREDENTIALS):
        return StoreDenied(f"Store {store} has no usable credentials: check its profile ({_kind(error)}).")
    if isinstance(error, NoRegionError):
        return StoreDenied(f"Store {store} needs a region: add region= to its URL.")
    certificate = isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    if certificate:
        return StoreUnavailable(
            f"Store {store} shows a TLS certificate that nobody trusted has signed for that name:"
            " correct its endpoint, or give its authority as ca_bundle= in its URL."
        )
    if isinstance(error, ProxyConnectionError):
        return StoreUnavailable(f"The proxy on the way to store {store} does not let us through: check it.")
    if isinstance(error, _NOT_SENT):
        return StoreUnavailable(f"Store {store} cannot be reached ({_kind(error)}): check the network.")
    if writes:
        return UnknownOutcome(f"Store {store} did not confirm a change of {subject} ({_kind(error)}).")
    return StoreUnavailable(f"Store {store} did not finish answering about {subject} ({_kind(error)}).")


def _translate_answer(error: ClientError, *, store: str, subject: str, writes: bool) -> StoreError:
    code, number = error_code(error), status(error)
    said = f"{code or 'no code'}, HTTP {number}"
    if code == "NoSuchBucket":
        return bucket_missing(store)
    if code == "RequestTimeTooSkewed":
        return StoreDenied(f"Store {store} says that this computer's clock is wrong: set it.")
    if code in _WRONG_REGION_CODES:
        return StoreDenied(f"Store {store} is in another region ({said}): correct region= in its URL.")
    if code in _FULL_CODES or number == _INSUFFICIENT_STORAGE:
        return StoreFull(f"Store {store} is full ({said}): make room or raise its quota.")
    if code in _PASSING_CODES or number in _PASSING_STATUSES:
        return StoreUnavailable(f"Store {store} is busy or down ({said}).")
    if code in _DENIED_CODES or number in {401, 403}:
        return StoreDenied(f"Store {store} refuses access to {subject} ({said}): check its credentials.")
    if number == 404:
        return ObjectNotFound(f"Store {store} holds no {subject}.")
    if number in _EXISTS_STATUSES:
        return ObjectExists(f"Store {store} holds something else as {subject}.")
    if number >= 500 and writes:
        return UnknownOutcome(f"Store {store} failed during a change of {subject} ({said}).")
    if number >= 500:
        return StoreUnavailable(f"Store {store} failed to answer about {subject} ({said}).")
    return StoreUnavailable(f"Store {store} does not accept a request about {subject} ({said}).")


def _kind(error: Exception) -> str:
    # The class alone: the text of a foreign error may quote URLs, paths or header values.
    return type(error).__name__
