"""How boto3 is set up for a store: where it may send, how long it waits, what it leaves to others."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from mirrorfs.errors import UsageError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""Longest silence of the server within one request."""
FALLBACK_REGION = "us-east-1"
"""Where an endpoint is given and no region: such servers mostly ignore it, signatures need one."""

_READ_SIZE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class S3Target:
    """Which server a store talks to, and as whom. None: what boto3's standard chain says."""

    endpoint: str | None = None
    """URL of the server; None for Amazon's."""
    region: str | None = None
    profile: str | None = None
    allow_http: bool = False
    """Permit plain http to other machines, where keys and sizes can be watched and answers forged."""
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S

    def check(self, *, store: str) -> None:
        """Raises UsageError: the endpoint is no plain URL of a server, or is http without leave."""
        if self.endpoint is None:
            return
        try:
            parts = urlsplit(self.endpoint)
            host, _ = parts.hostname, parts.port
        except ValueError as exc:
            raise UsageError(f"The endpoint of store {store} is not a URL.") from exc
        if parts.scheme not in {"http", "https"} or not host:
            raise UsageError(f"The endpoint of store {store} must be https://HOST or http://HOST.")
        if "@" in parts.netloc:
            raise UsageError(f"The endpoint of store {store} holds credentials: put them in a profile.")
        if parts.query or parts.fragment or parts.path not in {"", "/"}:
            raise UsageError(f"The endpoint of store {store} must end after its host and port.")
        if parts.scheme == "http" and not self.allow_http and not _is_loopback(host):
            raise UsageError(
                f"The endpoint of store {store} is http on another machine: use https, or add allow_http=1."
            )


def make_client(target: S3Target, *, connections_max: int) -> Any:
    """Make a client that verifies TLS and never repeats a request. Blocks; raises foreign errors.

    boto3 makes the methods of a client from its service model: there is no static type for it.
    """
    session = boto3.session.Session(profile_name=target.profile, region_name=target.region)
    region = session.region_name or (None if target.endpoint is None else FALLBACK_REGION)
    # A dictionary, because the stubs lack ignore_configured_endpoint_urls.
    options: dict[str, Any] = dict(
        connect_timeout=target.connect_timeout_s,
        read_timeout=target.read_timeout_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=connections_max,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "auto" if target.endpoint is None else "path"},
        # Otherwise a line in the environment could send everything to another server.
        ignore_configured_endpoint_urls=True,
        tcp_keepalive=True,
    )
    config = Config(**options)
    # `verify` stays unset: True would overrule the certificates of AWS_CA_BUNDLE.
    return session.client("s3", endpoint_url=target.endpoint, region_name=region, config=config)


def read_body(body: Any, *, limit_bytes: int) -> bytes:
    """Read an answer to its end, or to a little beyond limit_bytes when it does not stop there.

    Only the read that meets the end makes botocore compare with Content-Length, so this goes on
    until it does.
    """
    parts: list[bytes] = []
    total = 0
    while total <= limit_bytes:
        part: bytes = body.read(min(_READ_SIZE, limit_bytes + 1 - total))
        if not part:
            break
        parts.append(part)
        total += len(part)
    return b"".join(parts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
