"""SoftHSM2 as the hardware token of tests: real middleware, a new token store, any number of tokens.

A process sees one store at a time, through SOFTHSM2_CONF. Keys that a test needs ready-made are
put there through the same module, which is finalised again at once, as the product does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag

from mirrorfs.keys.pkcs11_keys import P256_PARAMETERS

MODULE = next(
    path
    for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so")
    if os.path.exists(path)
)
PIN = "123456"
SO_PIN = "87654321"


@dataclass(frozen=True, slots=True)
class SoftToken:
    """One initialised token and the directory that holds it."""

    label: str
    serial: str
    directory: Path

    def uri(self, *, attributes: str = "") -> str:
        """A URI for this very token."""
        return f"pkcs11:token={self.label};serial={self.serial}{attributes}?module-path={MODULE}"

    @contextmanager
    def _session(self) -> Iterator[pkcs11.Session]:
        module = pkcs11.lib(MODULE)
        try:
            token = module.get_token(token_label=self.label, token_serial=self.serial.encode())
            with token.open(rw=True, user_pin=PIN) as session:
                yield session
        finally:
            module.finalize()

    def add_ec_key(self, *, label: str, key_id: bytes, curve: bytes = P256_PARAMETERS) -> None:
        """Make an EC key pair that may derive."""
        with self._session() as session:
            parameters = session.create_domain_parameters(
                KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True
            )
            parameters.generate_keypair(id=key_id, label=label, store=True, capabilities=MechanismFlag.DERIVE)

    def add_rsa_key(
        self, *, label: str, key_id: bytes, bits: int = 2048, always_authenticate: bool = False
    ) -> None:
        """Make an RSA key pair that may decrypt."""
        with self._session() as session:
            session.generate_keypair(
                KeyType.RSA,
                bits,
                id=key_id,
                label=label,
                store=True,
                capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
                private_template={Attribute.ALWAYS_AUTHENTICATE: always_authenticate},
            )

    def destroy_private_key(self, *, key_id: bytes) -> None:
        """Remove the private half only."""
        with self._session() as session:
            session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, id=key_id).destroy()

    def hide_public_keys(self) -> None:
        """Make public halves invisible before the PIN, as some tokens have them."""
        with self._session() as session:
            for key in list(session.get_objects({Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY})):
                key.copy({Attribute.PRIVATE: True})
                key.destroy()

    def attributes(self, *, key_id: bytes, names: list[Attribute]) -> dict[Attribute, object]:
        """Attributes of a private key."""
        with self._session() as session:
            key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, id=key_id)
            return {name: key[name] for name in names}

    def remove(self) -> None:
        """Take the token out: its directory leaves the store."""
        self.directory.rename(self._drawer())

    def insert(self) -> None:
        """Put a token back that was taken out."""
        self._drawer().rename(self.directory)

    @contextmanager
    def removed(self) -> Iterator[None]:
        """The token is out for the length of the block."""
        self.remove()
        try:
            yield
        finally:
            self.insert()

    def _drawer(self) -> Path:
        return self.directory.parent.with_name(f"removed-{self.directory.name}")


class SoftHsm:
    """A store of tokens, in use by this process."""

    def __init__(self, directory: Path) -> None:
        self._tokens = directory / "tokens"
        self._tokens.mkdir()
        self.configuration = directory / "softhsm2.conf"
        self.configuration.write_text(
            f"directories.tokendir = {self._tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )

    def add_token(self, label: str) -> SoftToken:
        """Initialise one more token; labels may repeat."""
        before = set(self._tokens.iterdir())
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN],
            check=True,
            capture_output=True,
        )
        (directory,) = set(self._tokens.iterdir()) - before
        # The directory is named as a UUID, of which the serial is the last 16 digits.
        return SoftToken(label, directory.name.replace("-", "")[-16:], directory)


@contextmanager
def softhsm(directory: Path) -> Iterator[SoftHsm]:
    """Point this process's SOFTHSM2_CONF at a new store in an empty directory for the block."""
    hsm = SoftHsm(directory)
    previous = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(hsm.configuration)
    try:
        yield hsm
    finally:
        if previous is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = previous
