"""How boto3 is set up for a store: where it may send, how long it waits, what it leaves to others.

TLS is always verified, to the server and to an https proxy: there is no way to say otherwise.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError

from mirrorfs.drivers.ca_bundle import check_ca_bundle
from mirrorfs.errors import StoreDenied, UsageError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""Longest silence of the server within one request."""
FALLBACK_REGION = "us-east-1"
"""Where an endpoint is given and no region: such servers mostly ignore it, signatures need one."""

ADDRESSING_STYLES = ("auto", "path", "virtual")


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
    proxy: str | None = None
    """URL of an HTTP proxy; None: what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say."""
    ca_bundle: str | None = None
    """Path of a file of certificates that are trusted instead of the usual ones."""
    addressing: str = "auto"
    """Where the bucket's name goes, one of ADDRESSING_STYLES; auto: the path where an endpoint is given."""

    def check(self, *, store: str) -> None:
        """Raises UsageError: endpoint, proxy or CA bundle is none, or is http without leave.

        Reads the CA bundle, and touches nothing else.
        """
        if self.endpoint is not None:
            self._check_endpoint(self.endpoint, store)
        if self.proxy is not None:
            _server(self.proxy, what=f"proxy of store {store}")
        if self.ca_bundle is not None:
            check_ca_bundle(self.ca_bundle, store=store)
        if self.addressing not in ADDRESSING_STYLES:
            raise UsageError(f"The addressing of store {store} is none of {', '.join(ADDRESSING_STYLES)}.")

    def _check_endpoint(self, endpoint: str, store: str) -> None:
        scheme, host = _server(endpoint, what=f"endpoint of store {store}")
        if scheme == "https" or self.allow_http:
            return
        if not _is_loopback(host):
            raise UsageError(
                f"The endpoint of store {store} is http on another machine: use https, or add allow_http=1."
            )
        # Of a request by way of a proxy, "this machine" is the proxy's.
        if self.proxy is not None and not _is_loopback(_server(self.proxy, what="proxy")[1]):
            raise UsageError(
                f"Store {store} would send http to a proxy elsewhere: use https, or add allow_http=1."
            )

    def addressing_style(self) -> str:
        """As botocore takes it."""
        return "path" if self.addressing == "auto" and self.endpoint is not None else self.addressing

    def proxies(self) -> dict[str, str] | None:
        """As botocore takes them; None leaves it to the environment."""
        if self.proxy is not None:
            return {"http": self.proxy, "https": self.proxy}
        if self.endpoint is not None and self.endpoint.startswith("http:") and not self.allow_http:
            # http was allowed because it stays on this machine: no variable may carry it elsewhere.
            return {}
        return None


def _server(url: str, *, what: str) -> tuple[str, str]:
    """(scheme, host) of a URL that names a server and nothing else. Raises: UsageError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise UsageError(f"The {what} is not a URL.") from exc
    if parts.scheme not in {"http", "https"} or not host:
        raise UsageError(f"The {what} must be https://HOST or http://HOST.")
    if "@" in parts.netloc:
        raise UsageError(f"The {what} holds credentials: a URL is no place for them.")
    if parts.query or parts.fragment or parts.path not in {"", "/"}:
        raise UsageError(f"The {what} must end after its host and port.")
    return parts.scheme, host


def make_client(target: S3Target, *, store: str, connections_max: int) -> Any:
    """Make a client that verifies TLS and never repeats a request. Blocks; raises foreign errors.

    boto3 makes the methods of a client from its service model: there is no static type for it.
    Raises: StoreDenied: certificates are to come from nowhere, see `_usual_bundle`.
    """
    core = botocore.session.get_session()
    session = boto3.session.Session(
        botocore_session=core, profile_name=target.profile, region_name=target.region
    )
    # Whatever the URL says: requests for credentials know nothing but these.
    usual = _usual_bundle(core, store)
    region = session.region_name or (None if target.endpoint is None else FALLBACK_REGION)
    # A dictionary, because the stubs lack ignore_configured_endpoint_urls.
    options: dict[str, Any] = dict(
        connect_timeout=target.connect_timeout_s,
        read_timeout=target.read_timeout_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=connections_max,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": target.addressing_style()},
        proxies=target.proxies(),
        # Otherwise a line in the environment could send everything to another server.
        ignore_configured_endpoint_urls=True,
        tcp_keepalive=True,
    )
    bundle = target.ca_bundle or usual
    # Without this botocore does not verify an https proxy, also of the environment, before an http endpoint.
    options["proxies_config"] = {"proxy_ca_bundle": bundle or get_cert_path(True)}
    config = Config(**options)
    return session.client(
        "s3", endpoint_url=target.endpoint, region_name=region, config=config, verify=bundle or True
    )


def _usual_bundle(core: botocore.session.Session, store: str) -> str | None:
    """The file of certificates that environment and profile name, as botocore finds it; None: they name none.

    Raises: StoreDenied: the name is blank, which an older botocore takes for "verify nothing".
    """
    bundle = core.get_config_variable("ca_bundle")
    where = "AWS_CA_BUNDLE" if "AWS_CA_BUNDLE" in os.environ else "ca_bundle of the profile"
    if bundle is None:
        bundle, where = os.environ.get("REQUESTS_CA_BUNDLE"), "REQUESTS_CA_BUNDLE"
    if bundle is not None and (not isinstance(bundle, str) or not bundle.strip()):
        raise StoreDenied(
            f"Store {store} is not used, for {where} names no file: name one with certificates, or remove it."
        )
    return bundle


def body_of(answer: Any) -> Any:
    """The body of an answer, as a stream.

    Raises: ResponseParserError: nothing tells where the body ends. Of a connection that was closed within the
    head http.client makes a whole answer with the fields so far, whose body would seem empty.
    """
    fields: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
    if "content-length" not in fields and "chunked" not in fields.get("transfer-encoding", "").lower():
        raise ResponseParserError("an answer without end")
    return answer["Body"]


def size_is_whole(answer: Any) -> bool:
    """Whether Content-Length cannot have been cut: another field came behind it (see body_of)."""
    fields: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
    return "content-length" in fields and next(reversed(fields)) != "content-length"


def whole_tag(answer: Any) -> str:
    """The entity tag of an answer; empty where there is none, or only a part of one (see body_of)."""
    tag = str(answer.get("ETag", ""))
    return tag if tag.count('"') == 2 else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
