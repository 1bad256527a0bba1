"""`pkcs11:` URIs: what is taken, from whom, and what is refused."""

from __future__ import annotations

import pytest

from mirrorfs.errors import UsageError
from mirrorfs.keys.pkcs11_uri import Pkcs11Uri, parse_pkcs11_uri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pkcs11:", Pkcs11Uri()),
        ("PKCS11:token=x", Pkcs11Uri(token="x")),
        ("pkcs11:token=My%20card;serial=0042", Pkcs11Uri(token="My card", serial="0042")),
        ("pkcs11:manufacturer=Yubico%20(www.yubico.com)", Pkcs11Uri(manufacturer="Yubico (www.yubico.com)")),
        ("pkcs11:model=PKCS%2315", Pkcs11Uri(model="PKCS#15")),
        ("pkcs11:object=cl%C3%A9;type=private", Pkcs11Uri(object="clé", type="private")),
        ("pkcs11:id=%00%ff%3b", Pkcs11Uri(id=b"\x00\xff;")),
        ("pkcs11:id=", Pkcs11Uri(id=b"")),
        ("pkcs11:token=a=b&c", Pkcs11Uri(token="a=b&c")),
        ("pkcs11:?module-path=/usr/lib/x.so", Pkcs11Uri(module_path="/usr/lib/x.so")),
        ("pkcs11:token=x?module-name=softhsm2", Pkcs11Uri(token="x", module_name="softhsm2")),
        ("pkcs11:?pin-source=/run/pin", Pkcs11Uri(pin_source="/run/pin")),
        ("pkcs11:?pin-source=file:/run/pin", Pkcs11Uri(pin_source="/run/pin")),
        ("pkcs11:?pin-source=file:///run/pin", Pkcs11Uri(pin_source="/run/pin")),
        (
            "pkcs11:?pin-source=/p&module-path=/m.so",
            Pkcs11Uri(pin_source="/p", module_path="/m.so"),
        ),
    ],
)
def test_what_is_taken_from_the_command_line(text: str, expected: Pkcs11Uri) -> None:
    assert parse_pkcs11_uri(text, local=True) == expected


@pytest.mark.parametrize("attribute", ["module-path=/x.so", "module-name=x", "pin-source=/run/pin"])
def test_modules_and_pin_files_are_local_matters(attribute: str) -> None:
    parse_pkcs11_uri(f"pkcs11:token=x?{attribute}", local=True)
    with pytest.raises(UsageError, match="configuration"):
        parse_pkcs11_uri(f"pkcs11:token=x?{attribute}", local=False)
    assert parse_pkcs11_uri("pkcs11:token=x", local=False) == Pkcs11Uri(token="x")


@pytest.mark.parametrize(
    "text", ["pkcs11:?pin-value=9931", "pkcs11:token=x;pin-value=9931", "pkcs11:?pin-value"]
)
@pytest.mark.parametrize("local", [True, False])
def test_a_pin_in_a_uri_is_always_refused_and_never_repeated(text: str, local: bool) -> None:
    with pytest.raises(UsageError, match="pin-value") as caught:
        parse_pkcs11_uri(text, local=local)
    assert "9931" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pkcs11",
        "fido2:",
        "pkcs12:token=x",
        "pkcs11:token",
        "pkcs11:=x",
        "pkcs11:token=x;",
        "pkcs11:;token=x",
        "pkcs11:token=x;token=y",
        "pkcs11:Token=x",
        "pkcs11:vendor=x",
        "pkcs11:library-version=1",
        "pkcs11:slot-id=0",
        "pkcs11:token=%2",
        "pkcs11:token=%zz",
        "pkcs11:token=a b",
        "pkcs11:token=é",
        "pkcs11:token=%ff",
        "pkcs11:token=%0a",
        "pkcs11:token=%1b[2J",
        "pkcs11:type=cert",
        "pkcs11:type=secret-key",
        "pkcs11:?module-path=relative.so",
        "pkcs11:?module-path=",
        "pkcs11:?module-name=../x",
        "pkcs11:?module-name=",
        "pkcs11:?module-name=a/b",
        "pkcs11:?module-path=/x.so&module-name=x",
        "pkcs11:?module-path=/x.so&module-path=/y.so",
        "pkcs11:?pin-source=%7ccat",
        "pkcs11:?pin-source=file://host/pin",
        "pkcs11:?pin-source=https://host/pin",
        "pkcs11:?token=x",
        "pkcs11:module-path=/x.so",
        "pkcs11:token=" + "x" * 5000,
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"\.$"):
        parse_pkcs11_uri(text, local=True)


def test_a_mistyped_attribute_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_pkcs11_uri("pkcs11:token=x?pin=9931", local=True)
    assert "9931" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["pkcs11:", "pkcs11:token=My%20card;serial=1;object=a%3Bb;id=%00%ff;type=private", "pkcs11:token=%C3%A9"],
)
def test_a_description_reads_back(text: str) -> None:
    uri = parse_pkcs11_uri(text, local=True)
    assert parse_pkcs11_uri(uri.describe(), local=False) == uri


def test_a_description_leaves_out_local_matters() -> None:
    uri = parse_pkcs11_uri("pkcs11:token=x?module-path=/secret/place.so&pin-source=/run/pin", local=True)
    assert uri.describe() == "pkcs11:token=x"
