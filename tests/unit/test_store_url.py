"""URLs of stores: what they make, and that what they refuse is not repeated in the message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.drivers.s3_client import S3Target, make_client
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.drivers.store_s3 import S3Store
from mirrorfs.drivers.store_url import URL_LENGTH_MAX, parse_store_url
from mirrorfs.errors import StoreDenied, StoreUnavailable, UsageError
from mirrorfs.format.object_lock import LockMode, ObjectLock


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///mnt/disk", "/mnt/disk"),
        ("file:///mnt/disk/", "/mnt/disk"),
        ("file:///mnt/my%20disk/%C3%A4%3F", "/mnt/my disk/ä?"),
    ],
)
async def test_directory(url: str, path: str, tmp_path: Path) -> None:
    store = parse_store_url("disk", url)
    assert isinstance(store, DirectoryStore)
    assert store.name == "disk"
    assert store._root == Path(path)


async def test_directory_store_works(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await parse_store_url("disk", f"file://{tmp_path}/missing").probe()
    assert (await parse_store_url("disk", f"file://{tmp_path}").probe()).conditional_put


@pytest.mark.parametrize(
    ("url", "bucket", "base", "target"),
    [
        ("s3://bucket", "bucket", "", S3Target()),
        ("s3://bucket/", "bucket", "", S3Target()),
        ("s3://My.Bucket/a/b-c_d.e/", "My.Bucket", "a/b-c_d.e/", S3Target()),
        ("s3://bucket/p?region=eu-west-1", "bucket", "p/", S3Target(region="eu-west-1")),
        (
            "s3://bucket/p?endpoint=https://s3.example.org:9000&profile=backup",
            "bucket",
            "p/",
            S3Target(endpoint="https://s3.example.org:9000", profile="backup"),
        ),
        ("s3://bucket?endpoint=http://127.0.0.1:1/", "bucket", "", S3Target(endpoint="http://127.0.0.1:1/")),
        ("s3://bucket?endpoint=http://[::1]:80", "bucket", "", S3Target(endpoint="http://[::1]:80")),
        ("s3://bucket?endpoint=http%3A%2F%2Flocalhost", "bucket", "", S3Target(endpoint="http://localhost")),
        (
            "s3://bucket?endpoint=http://nas.lan&allow_http=1",
            "bucket",
            "",
            S3Target(endpoint="http://nas.lan", allow_http=True),
        ),
        (
            "s3://bucket?proxy=http://proxy.lan:3128&addressing=virtual&connect_timeout_s=2.5&read_timeout_s=20",
            "bucket",
            "",
            S3Target(
                proxy="http://proxy.lan:3128", addressing="virtual", connect_timeout_s=2.5, read_timeout_s=20
            ),
        ),
        (
            "s3://bucket?endpoint=http://127.0.0.1:1&proxy=http://localhost:3128",
            "bucket",
            "",
            S3Target(endpoint="http://127.0.0.1:1", proxy="http://localhost:3128"),
        ),
    ],
)
async def test_s3(url: str, bucket: str, base: str, target: S3Target) -> None:
    store = parse_store_url("cloud", url)
    assert isinstance(store, S3Store)
    found = store._bucket
    assert (store.name, found.name, found.base, found.target) == ("cloud", bucket, base, target)


@pytest.mark.parametrize("mode", list(LockMode))
def test_a_lock(mode: LockMode) -> None:
    store = parse_store_url("cloud", f"s3://bucket/p?lock={mode}&lock_days=60")
    assert store.lock == ObjectLock(mode, 60)
    assert parse_store_url("cloud", "s3://bucket/p").lock is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with"),
        ("/mnt/disk", "must begin with"),
        ("ftp://host/path", "must begin with"),
        ("sftp://host/path", "must begin with"),
        ("file:relative", "absolute"),
        ("file://relative/path", "absolute"),
        ("file://localhost/path", "absolute"),
        ("file://", "absolute"),
        ("file:///", "whole system"),
        ("file:///mnt/../etc", "'..'"),
        ("file:///mnt/%2E%2E/etc", "'..'"),
        ("file:///mnt?mode=1", "no options"),
        ("file:///mnt#part", "%23"),
        ("file:///mnt/\n", "unprintable"),
        ("file:///" + "a" * URL_LENGTH_MAX, "too long"),
        ("s3://", "bucket"),
        ("s3:///prefix", "bucket"),
        ("s3://b", "bucket"),
        ("s3://buc ket/prefix", "bucket"),
        ("s3://bucket:80/prefix", "bucket"),
        ("s3://AKIAKEY:SECRET@bucket/prefix", "credentials"),
        ("s3://bucket/a/../b", "prefix"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/a%2fb", "prefix"),
        ("s3://bucket?secret_key=SECRET", "unknown"),
        ("s3://bucket?SECRET", "malformed"),
        ("s3://bucket?region=", "no value"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?allow_http=yes", "value 1"),
        ("s3://bucket?limits=1", "value 0"),
        ("s3://bucket?lock=compliance", "lock_days"),
        ("s3://bucket?lock=compliance&lock_days=0", "lock_days"),
        ("s3://bucket?lock=compliance&lock_days=36501", "lock_days"),
        ("s3://bucket?lock=compliance&lock_days=1.5", "lock_days"),
        ("s3://bucket?lock=legal&lock_days=1", "governance or compliance"),
        ("s3://bucket?lock_days=1", "governance or compliance"),
        ("s3://bucket?endpoint=ftp://host", "https://HOST"),
        ("s3://bucket?endpoint=host:9000", "https://HOST"),
        ("s3://bucket?endpoint=http://", "https://HOST"),
        ("s3://bucket?endpoint=https://user:SECRET@host", "credentials"),
        ("s3://bucket?endpoint=https://host/path", "end after"),
        ("s3://bucket?endpoint=https://host:port", "not a URL"),
        ("s3://bucket?endpoint=http://[::1", "not a URL"),
        ("s3://bucket?endpoint=http://example.org", "allow_http=1"),
        ("s3://bucket?endpoint=http://192.168.1.2:9000", "allow_http=1"),
        ("s3://bucket?endpoint=http://localhost.example.org", "allow_http=1"),
        ("s3://bucket?endpoint=http://127.0.0.1.example.org", "allow_http=1"),
        ("s3://bucket?endpoint=http://127.0.0.1&proxy=http://proxy.lan", "allow_http=1"),
        ("s3://bucket?proxy=socks5://proxy.lan", "https://HOST"),
        ("s3://bucket?proxy=proxy.lan:3128", "https://HOST"),
        ("s3://bucket?proxy=http://user:SECRET@proxy.lan", "credentials"),
        ("s3://bucket?proxy=http://proxy.lan/path", "end after"),
        ("s3://bucket?addressing=host", "auto, path, virtual"),
        ("s3://bucket?connect_timeout_s=0", "number of seconds"),
        ("s3://bucket?connect_timeout_s=-1", "number of seconds"),
        ("s3://bucket?read_timeout_s=601", "at most 600"),
        ("s3://bucket?read_timeout_s=nan", "number of seconds"),
        ("s3://bucket?verify=0", "unknown"),
        ("s3://bucket?ca_bundle=", "no value"),
    ],
)
async def test_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_store_url("cloud", url)
    assert message in str(caught.value)
    assert "cloud" in str(caught.value)
    assert "SECRET" not in str(caught.value)


@given(st.one_of(st.text(), st.text().map("s3://bucket?{}".format), st.text().map("file:///{}".format)))
def test_any_text_is_a_store_or_a_usage_error(url: str) -> None:
    try:
        store = parse_store_url("a", url)
    except UsageError:
        return
    assert store.name == "a"


class Standstill:
    """A throttle that lets nothing through."""

    def upload(self, size_bytes: int, *, urgent: bool) -> float:
        return float("inf")

    def download(self, size_bytes: int, *, urgent: bool) -> float:
        return float("inf")

    def download_s(self, size_bytes: int) -> float:
        return float("inf")


@pytest.mark.parametrize(("url", "is_limited"), [("s3://bucket", True), ("s3://bucket?limits=0", False)])
async def test_a_server_in_the_house_has_no_limit(url: str, is_limited: bool) -> None:
    store = parse_store_url("cloud", url, parallel=3, throttle=Standstill())
    assert isinstance(store, S3Store)
    assert (store._line._throttle is not None) is is_limited
    assert store._line.uploads.total_tokens == 3


def test_timeouts_and_addressing_reach_botocore() -> None:
    target = S3Target(endpoint="https://host", connect_timeout_s=2.5, read_timeout_s=20, addressing="virtual")
    client = make_client(target, store="cloud", connections_max=3)
    config = client.meta.config
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (2.5, 20, 3)
    assert config.s3["addressing_style"] == "virtual"
    client.close()


def test_environment_does_not_redirect_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://192.0.2.1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    client = make_client(S3Target(region="eu-west-1"), store="cloud", connections_max=1)
    assert client.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    client.close()


# --- which certificates are trusted ----------------------------------------------------------


@pytest.fixture
def profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty file of profiles, and no variable that names certificates."""
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "config"
    file.touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    return file


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What botocore is told to verify by, for each client; it makes none."""
    told: list[object] = []

    def client(self: object, service: str, **options: Any) -> None:
        told.append(options["verify"])

    monkeypatch.setattr(boto3.session.Session, "client", client)
    return told


BLANK = ["", " \t"]


@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize("bundle", [None, "/bundle.pem"])
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_blank_variable_does_not_turn_verification_off(
    profiles: Path,
    verified: list[object],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    bundle: str | None,
    blank: str,
) -> None:
    monkeypatch.setenv(variable, blank)
    with pytest.raises(StoreDenied, match=f"Store cloud is not used, for {variable} names no file"):
        make_client(S3Target(region="eu", ca_bundle=bundle), store="cloud", connections_max=1)
    assert verified == []


@pytest.mark.parametrize("profile", [None, "practice"])
@pytest.mark.parametrize("blank", [*BLANK, "\n  file = /bundle.pem"])
def test_nor_does_a_blank_bundle_of_the_profile(
    profiles: Path, verified: list[object], profile: str | None, blank: str
) -> None:
    section = "default" if profile is None else f"profile {profile}"
    profiles.write_text(f"[{section}]\nca_bundle ={blank}\n")
    with pytest.raises(StoreDenied, match="ca_bundle of the profile names no file"):
        make_client(S3Target(region="eu", profile=profile), store="cloud", connections_max=1)
    assert verified == []


def test_what_botocore_verifies_by(
    profiles: Path, verified: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(bundle: str | None = None) -> object:
        target = S3Target(region="eu", profile="practice", ca_bundle=bundle)
        make_client(target, store="cloud", connections_max=1)
        return verified.pop()

    profiles.write_text("[profile practice]\n")
    assert make() is True
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/requests.pem")
    assert make() == "/requests.pem"
    profiles.write_text("[profile practice]\nca_bundle = /profile.pem\n")
    assert make() == "/profile.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/aws.pem")
    assert make() == "/aws.pem"
    # One that does not count may be blank.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")
    assert make() == "/aws.pem"
    assert make("/url.pem") == "/url.pem"
