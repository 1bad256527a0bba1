"""TPM 2.0 through tpm2-tss: swtpm, which is the reference code, and everything that goes wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMS_KEYEDHASH_PARMS,
    TPMS_SENSITIVE_CREATE,
    TPMT_KEYEDHASH_SCHEME,
    TPMT_PUBLIC,
    TPMU_PUBLIC_PARMS,
)

from mirrorfs.cli.launch import child_environment
from mirrorfs.cli.tokens import SecretSources
from mirrorfs.cli.unlock import AskedPassword
from mirrorfs.errors import (
    ModuleMissing,
    PinLocked,
    TokenFailed,
    TokenMissing,
    UnlockError,
    UsageError,
    WrongPassword,
    WrongToken,
)
from mirrorfs.format.slot import KdfParameters, KeySet, Role, Slot
from mirrorfs.format.slot_token import RecoveryFields, Tpm2Fields
from mirrorfs.keys import slots
from mirrorfs.keys.token import Enrolment
from mirrorfs.keys.tpm2_device import Step, Tries, tpm_error
from mirrorfs.keys.tpm2_token import Tpm2Token
from mirrorfs.keys.tpm2_uri import DEVICE_PATH, Tpm2Uri, parse_tpm2_uri
from tests.support.swtpm import HEADER_SIZE_BYTES, Relay, Swtpm, command_code, swtpm

VOLUME = bytes(range(16))
RIGHT = b"\x5a" * 31 + b"\0"
"""The authorisation of most slots here. TPMs cut zero bytes off the end, which must not matter."""
WRONG = b"\x5b" * 32
LOAD, UNSEAL, CREATE_PRIMARY, START_SESSION = 0x157, 0x15E, 0x131, 0x176


@dataclass
class Asked:
    """Answers with one authorisation and counts how often it was asked; may do something meanwhile."""

    answer: bytes = RIGHT
    meanwhile: Callable[[], None] | None = None
    times: int = 0

    def __call__(self) -> bytes:
        self.times += 1
        if self.meanwhile is not None:
            self.meanwhile()
        return self.answer


@dataclass
class Told:
    """Keeps what a person was told."""

    sentences: list[str] = field(default_factory=list)

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)


def token_at(uri: str, told: Told | None = None) -> Tpm2Token:
    return Tpm2Token(parse_tpm2_uri(uri, local=True), tell=told or Told())


def secret_of(uri: str, fields: Tpm2Fields, asked: Asked | None = None, told: Told | None = None) -> bytes:
    return token_at(uri, told).secret_for(fields, volume=VOLUME, authorise=asked or Asked())


def enrol(uri: str, asked: Asked | None = None) -> Enrolment:
    return token_at(uri).enrol(volume=VOLUME, entropy=os.urandom, authorise=asked or Asked())


def sealed_by(uri: str) -> tuple[Tpm2Fields, bytes]:
    enrolment = enrol(uri)
    assert isinstance(enrolment.fields, Tpm2Fields)
    return enrolment.fields, enrolment.secret


@pytest.fixture(scope="module")
def shared() -> Iterator[Swtpm]:
    with swtpm() as tpm:
        yield tpm


@pytest.fixture
def tpm(shared: Swtpm) -> Swtpm:
    """One TPM for all tests, that has forgotten wrong tries."""
    shared.forgive()
    return shared


@pytest.fixture
def own() -> Iterator[Swtpm]:
    """A TPM for a test that harms it."""
    with swtpm() as tpm:
        yield tpm


@pytest.fixture(scope="module")
def other() -> Iterator[Swtpm]:
    with swtpm() as tpm:
        yield tpm


# --- what works ------------------------------------------------------------------------------


def test_what_was_sealed_is_yielded_again(tpm: Swtpm) -> None:
    asked = Asked()
    enrolment = enrol(tpm.uri, asked)
    fields = enrolment.fields
    assert isinstance(fields, Tpm2Fields) and Tpm2Fields.from_body(fields.to_body()) == fields
    assert asked.times == 1
    assert len(enrolment.secret) == 32 and enrolment.secret.hex() not in repr(enrolment)
    assert (len(fields.srk_name), fields.label) == (34, "IBM SW TPM")

    token, asked = token_at(tpm.uri), Asked()
    assert token.choose([RecoveryFields(), fields]) == fields
    assert token.is_present(fields) and not token.is_present(RecoveryFields())
    assert asked.times == 0
    assert token.secret_for(fields, volume=VOLUME, authorise=asked) == enrolment.secret
    assert asked.times == 1
    assert tpm.wrong_tries() == 0
    assert token.is_emulated()


def test_it_lasts_over_a_restart_of_the_machine(own: Swtpm) -> None:
    fields, secret = sealed_by(own.uri)
    own.restart()
    assert secret_of(own.uri, fields) == secret


def test_two_enrolments_share_nothing_but_the_machine(tpm: Swtpm) -> None:
    (first, one), (second, two) = sealed_by(tpm.uri), sealed_by(tpm.uri)
    assert one != two
    assert first.public != second.public and first.private != second.private
    assert first.srk_name == second.srk_name
    assert token_at(tpm.uri).choose([second, first]) == second


@dataclass
class Volume:
    """A slot of a volume, its password in a file as of `--password-file`."""

    slot: Slot
    key_set: KeySet
    password: Path
    asked: int = 0

    def unlock(self, token: Tpm2Token) -> KeySet:
        """As `cli.unlock.unlock_header` goes about it."""
        sources = SecretSources(str(self.password), None, {})
        password = AskedPassword("practice", sources)

        def authorise() -> bytes:
            self.asked += 1
            return password.authorise(self.slot.kdf)()

        assert token.choose([self.slot.token]) == self.slot.token
        secret = token.secret_for(self.slot.token, volume=VOLUME, authorise=authorise)
        slots.check_token_secret(self.slot, secret)
        return slots.open_slot(
            self.slot,
            volume=VOLUME,
            key_generation=1,
            stretched=password.stretched(self.slot.kdf),
            token_secret=secret,
        )


def new_volume(uri: str, directory: Path) -> Volume:
    password = directory / "password"
    password.write_bytes(b"correct horse battery")
    password.chmod(0o600)
    kdf = KdfParameters(iterations=2, memory_kib=65536, lanes=1, salt=os.urandom(16))
    stretched = slots.stretch_password(b"correct horse battery", kdf)
    key_set = KeySet(root=b"\1" * 32, writer=b"\2" * 32, pruner=b"\3" * 32, drill=b"\4" * 32)
    slot = slots.make_slot(
        key_set,
        volume=VOLUME,
        key_generation=1,
        name="this PC",
        roles=tuple(Role),
        stretched=stretched,
        enrolment=token_at(uri).enrol(
            volume=VOLUME,
            entropy=os.urandom,
            authorise=lambda: slots.token_authorisation(stretched, kdf),
        ),
        kdf=kdf,
        created_ns=1,
        entropy=os.urandom,
    )
    return Volume(slot, key_set, password)


def test_a_slot_opens_with_password_and_tpm(tpm: Swtpm, other: Swtpm, tmp_path: Path) -> None:
    volume = new_volume(tpm.uri, tmp_path)
    assert volume.unlock(token_at(tpm.uri)).encode() == volume.key_set.encode()
    assert volume.asked == 1

    with pytest.raises(WrongToken, match="another machine"):
        volume.unlock(token_at(other.uri))
    with pytest.raises(WrongToken, match="another machine"):
        token_at(other.uri).secret_for(volume.slot.token, volume=VOLUME, authorise=Asked())
    assert volume.asked == 1

    volume.password.write_bytes(b"correct horse staple")
    with pytest.raises(WrongPassword, match="2 tries left"):
        volume.unlock(token_at(tpm.uri))
    assert volume.asked == 2
    assert tpm.wrong_tries() == 1

    # The object of another slot of this TPM under the same password: the TPM undoes it, the slot refuses it.
    volume.password.write_bytes(b"correct horse battery")
    kdf = volume.slot.kdf
    stretched = slots.stretch_password(b"correct horse battery", kdf)
    second = enrol(tpm.uri, Asked(slots.token_authorisation(stretched, kdf)))
    volume.slot = replace(volume.slot, token=second.fields)
    with pytest.raises(WrongToken):
        volume.unlock(token_at(tpm.uri))


def test_the_command_line(own: Swtpm, other: Swtpm, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("correct horse battery\n")
    password.chmod(0o600)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    environment = child_environment({**os.environ, "HOME": str(home)}) | {
        "MIRRORFS_CONFIG_HOME": str(home / "config"),
        "MIRRORFS_STATE_HOME": str(home / "state"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mirrorfs", *arguments, f"--password-file={password}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    stores = [f"--store={name}=file://{tmp_path / name}" for name in "ab"]
    made = run("init", "v", *stores, "--create-store", "--kdf-memory-mib=64", f"--token={own.uri}")
    assert made.returncode == 0, made.stderr
    assert "IBM SW TPM" in made.stdout and "Warning: this is a software token" in made.stdout
    store = f"--store=file://{tmp_path / 'a'}"
    restored = run("restore", store, f"--token={own.uri}", "--yes", str(tmp_path / "restored"))
    assert restored.returncode == 0, restored.stderr
    refused = run("restore", store, f"--token={other.uri}", "--yes", str(tmp_path / "elsewhere"))
    assert refused.returncode == 3 and "another machine" in refused.stderr
    own.forgive(tries_max=1)
    password.write_text("correct horse staple\n")
    refused = run("restore", store, f"--token={own.uri}", "--yes", str(tmp_path / "elsewhere"))
    assert refused.returncode == 3
    told, error = refused.stderr.splitlines()[-2:]
    assert told.startswith("mirrorfs: LAST TRY") and "no try is left" in error


# --- wrong passwords -------------------------------------------------------------------------


def test_wrong_passwords_are_counted_until_the_tpm_refuses_all(own: Swtpm) -> None:
    fields, secret = sealed_by(own.uri)
    own.forgive(tries_max=3, interval_s=1200)
    sentences, told = [], Told()
    for count in (1, 2, 3):
        asked = Asked(WRONG)
        with pytest.raises(WrongPassword, match="checks it and counts") as caught:
            secret_of(own.uri, fields, asked, told)
        assert asked.times == 1
        assert own.wrong_tries() == count
        assert len(told.sentences) == (count == 3)
        sentences.append(str(caught.value))
    assert "2 tries left" in sentences[0] and "1 try left" in sentences[1] and "no try" in sentences[2]
    assert "LAST TRY" in told.sentences[0]

    asked = Asked()
    with pytest.raises(PinLocked, match="20 minutes"):
        secret_of(own.uri, fields, asked)
    with pytest.raises(PinLocked, match="20 minutes"):
        enrol(own.uri, asked)
    assert asked.times == 0
    own.forgive()
    assert secret_of(own.uri, fields) == secret


def test_the_tpm_refuses_while_the_password_is_asked_for(own: Swtpm) -> None:
    fields, _ = sealed_by(own.uri)

    def others_guess() -> None:
        for _ in range(3):
            with pytest.raises(WrongPassword):
                secret_of(own.uri, fields, Asked(WRONG))

    with pytest.raises(PinLocked, match="17 minutes"):
        secret_of(own.uri, fields, Asked(meanwhile=others_guess))


def test_a_power_cut_counts_as_a_try(own: Swtpm) -> None:
    # So says the specification (Part 1, "Dictionary Attack Protection"), and docs/operations.md after it.
    fields, secret = sealed_by(own.uri)
    assert own.wrong_tries() == 0
    own.kill()
    own.start()
    assert own.wrong_tries() == 1
    assert secret_of(own.uri, fields) == secret


# --- no TPM, or another ----------------------------------------------------------------------


def test_absent_and_back(own: Swtpm) -> None:
    fields, secret = sealed_by(own.uri)
    token, asked = token_at(own.uri), Asked()
    own.kill()
    assert not token.is_present(fields)
    for attempt in (
        lambda: token.choose([fields]),
        lambda: token.secret_for(fields, volume=VOLUME, authorise=asked),
        lambda: token.enrol(volume=VOLUME, entropy=os.urandom, authorise=asked),
        token.is_emulated,
    ):
        with pytest.raises(TokenMissing, match=r"There is no TPM .*\.$"):
            attempt()
    own.socket.touch()  # something is there that is no TPM
    with pytest.raises(TokenMissing, match=r"no answer from .*\.$"):
        token.choose([fields])
    assert not token.is_present(fields)
    assert asked.times == 0
    own.socket.unlink()
    own.start()
    assert token.is_present(fields)
    assert secret_of(own.uri, fields) == secret


def test_another_tpm_is_never_given_a_password(tpm: Swtpm, other: Swtpm) -> None:
    fields, _ = sealed_by(tpm.uri)
    token, asked = token_at(other.uri), Asked()
    assert not token.is_present(fields)
    with pytest.raises(WrongToken, match="another machine"):
        token.choose([fields])
    with pytest.raises(WrongToken, match="another machine"):
        token.secret_for(fields, volume=VOLUME, authorise=asked)
    # Even where the slot claims to be of this machine.
    own_name, _ = sealed_by(other.uri)
    with pytest.raises(WrongToken, match="sealed by another"):
        token.secret_for(replace(fields, srk_name=own_name.srk_name), volume=VOLUME, authorise=asked)
    with pytest.raises(WrongToken):
        token.secret_for(RecoveryFields(), volume=VOLUME, authorise=asked)
    assert asked.times == 0


def test_a_tpm_that_was_cleared_is_another(own: Swtpm) -> None:
    fields, _ = sealed_by(own.uri)
    asked = Asked(meanwhile=own.clear)
    with pytest.raises(WrongToken, match="cleared"):
        secret_of(own.uri, fields, asked)
    assert asked.times == 1
    with pytest.raises(WrongToken, match="cleared"):
        secret_of(own.uri, fields, asked)
    with pytest.raises(WrongToken, match="cleared"):
        token_at(own.uri).choose([fields])
    assert not token_at(own.uri).is_present(fields)
    assert asked.times == 1


def test_a_tpm_that_goes_while_the_password_is_asked_for(own: Swtpm) -> None:
    fields, _ = sealed_by(own.uri)
    asked = Asked(meanwhile=own.kill)
    with pytest.raises(TokenMissing):
        secret_of(own.uri, fields, asked)
    assert asked.times == 1


@pytest.mark.parametrize("command", [CREATE_PRIMARY, START_SESSION, LOAD, UNSEAL])
def test_a_tpm_that_goes_in_the_middle(own: Swtpm, command: int) -> None:
    fields, _ = sealed_by(own.uri)
    with Relay(own, cut_at=command) as relay:
        with pytest.raises(TokenMissing, match="no answer"):
            secret_of(relay.uri, fields)
        assert command_code(relay.messages[-1]) == command


@pytest.mark.parametrize("command", [CREATE_PRIMARY, START_SESSION, LOAD, UNSEAL])
def test_an_answer_that_was_changed_on_the_way(own: Swtpm, command: int) -> None:
    fields, secret = sealed_by(own.uri)
    with Relay(own, alter=command) as relay, pytest.raises(TokenFailed, match="not authentic"):
        secret_of(relay.uri, fields)
    own.restart()
    assert secret_of(own.uri, fields) == secret


def test_the_owner_hierarchy_has_a_password_or_is_off(own: Swtpm) -> None:
    with own.admin() as esys:
        esys.hierarchy_change_auth(ESYS_TR.OWNER, b"hunter2")
    with pytest.raises(TokenFailed, match="tpm2_changeauth"):
        enrol(own.uri)
    own.clear()
    enrol(own.uri)
    with own.admin() as esys:
        esys.hierarchy_control(ESYS_TR.PLATFORM, ESYS_TR.OWNER, False)
    with pytest.raises(TokenFailed, match="switched off"):
        enrol(own.uri)


@contextmanager
def without_rights() -> Iterator[None]:
    """This thread is nobody for the length of the block, unless it has few rights anyway."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_device_that_this_user_may_not_open(tpm: Swtpm) -> None:
    fields, _ = sealed_by(tpm.uri)
    directory = Path(tempfile.mkdtemp(prefix="device-"))
    directory.chmod(0o755)
    device = directory / "tpmrm0"
    device.touch()
    device.chmod(0)
    token = token_at(f"tpm2:?tcti=device:{device}")
    try:
        with without_rights():
            with pytest.raises(TokenMissing, match="usermod -aG tss"):
                token.choose([fields])
            with pytest.raises(TokenMissing, match="usermod -aG tss"):  # which is not the same as absent
                token.is_present(fields)
    finally:
        shutil.rmtree(directory)
    with pytest.raises(TokenMissing, match="firmware"):
        token.choose([fields])


def test_without_the_library(tpm: Swtpm, monkeypatch: pytest.MonkeyPatch) -> None:
    fields, _ = sealed_by(tpm.uri)
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(ModuleMissing, match=r"mirrorfs\[tpm2\]"):
        token_at(tpm.uri).choose([fields])
    with pytest.raises(ModuleMissing):
        token_at(tpm.uri).is_present(fields)


# --- slots that were altered or made by others -----------------------------------------------


def altered(blob: bytes) -> Iterator[bytes]:
    """A blob with one byte changed, at places all over it; cut off, too long, and empty."""
    for place in range(0, len(blob), 5):
        yield blob[:place] + bytes([blob[place] ^ 0x41]) + blob[place + 1 :]
    yield from (blob[:-1], blob + b"\0", b"", blob[:1], os.urandom(len(blob)), b"\xff" * 512)


@pytest.mark.parametrize("name", ["public", "private"])
def test_altered_blobs(tpm: Swtpm, name: str) -> None:
    fields, secret = sealed_by(tpm.uri)
    token, asked, count = token_at(tpm.uri), Asked(), 0
    for blob in altered(getattr(fields, name)):
        with pytest.raises(WrongToken, match="altered"):
            token.secret_for(replace(fields, **{name: blob}), volume=VOLUME, authorise=asked)
        count += 1
    assert count > 15
    assert asked.times == 0
    assert tpm.wrong_tries() == 0
    assert secret_of(tpm.uri, fields) == secret


def test_halves_of_two_objects(tpm: Swtpm) -> None:
    (first, _), (second, _) = sealed_by(tpm.uri), sealed_by(tpm.uri)
    asked = Asked()
    with pytest.raises(WrongToken):
        secret_of(tpm.uri, replace(first, private=second.private), asked)
    assert asked.times == 0


def storage_key(esys: ESAPI) -> Any:
    """The parent that FORMAT.md states, in tpm2-pytss's own words."""
    flags = TPMA_OBJECT(0x00030472)
    template = TPM2B_PUBLIC(TPMT_PUBLIC.parse(alg="ecc256:aes128cfb", objectAttributes=flags))
    return esys.create_primary(None, template, ESYS_TR.OWNER)[0]


def made_by_others(tpm: Swtpm, fields: Tpm2Fields, *, data: bytes, attributes: int = 0x52) -> Tpm2Fields:
    """An object for the right password as any program on the machine can make one."""
    scheme = TPMS_KEYEDHASH_PARMS(scheme=TPMT_KEYEDHASH_SCHEME(scheme=TPM2_ALG.NULL))
    template = TPMT_PUBLIC(
        type=TPM2_ALG.KEYEDHASH,
        nameAlg=TPM2_ALG.SHA256,
        objectAttributes=TPMA_OBJECT(attributes),
        parameters=TPMU_PUBLIC_PARMS(keyedHashDetail=scheme),
    )
    with tpm.admin() as esys:
        parent = storage_key(esys)
        assert bytes(esys.tr_get_name(parent)) == fields.srk_name
        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=RIGHT, data=data))
        private, public, *_ = esys.create(parent, sensitive, TPM2B_PUBLIC(template))
        esys.flush_context(parent)
    return replace(fields, public=public.marshal(), private=private.marshal())


def test_an_object_without_protection_against_guessing_is_not_used(tpm: Swtpm) -> None:
    fields, _ = sealed_by(tpm.uri)
    asked = Asked()
    unguarded = made_by_others(tpm, fields, data=bytes(32), attributes=0x52 | TPMA_OBJECT.NODA)
    with pytest.raises(WrongToken, match="altered"):
        secret_of(tpm.uri, unguarded, asked)
    assert asked.times == 0
    assert secret_of(tpm.uri, made_by_others(tpm, fields, data=b"\7" * 32), asked) == b"\7" * 32


@pytest.mark.parametrize("size_bytes", [1, 31, 33, 128])
def test_a_secret_of_another_length(tpm: Swtpm, size_bytes: int) -> None:
    fields, _ = sealed_by(tpm.uri)
    with pytest.raises(WrongToken, match="not what a slot seals"):
        secret_of(tpm.uri, made_by_others(tpm, fields, data=b"\7" * size_bytes))


def test_another_authorisation_was_put_in(tpm: Swtpm) -> None:
    fields, secret = sealed_by(tpm.uri)
    with tpm.admin() as esys:
        parent = storage_key(esys)
        private, _ = TPM2B_PRIVATE.unmarshal(fields.private)
        public, _ = TPM2B_PUBLIC.unmarshal(fields.public)
        loaded = esys.load(parent, private, public)
        esys.tr_set_auth(loaded, RIGHT)
        changed = esys.object_change_auth(loaded, parent, WRONG).marshal()
        esys.flush_context(loaded)
        esys.flush_context(parent)
    replaced = replace(fields, private=changed)
    with pytest.raises(WrongPassword):
        secret_of(tpm.uri, replaced)
    assert secret_of(tpm.uri, replaced, Asked(WRONG)) == secret


# --- the wire --------------------------------------------------------------------------------


def test_nothing_secret_is_on_the_wire(tpm: Swtpm) -> None:
    with Relay(tpm) as relay:
        enrolment = enrol(relay.uri)
        fields = enrolment.fields
        assert isinstance(fields, Tpm2Fields)
        assert secret_of(relay.uri, fields) == enrolment.secret
        with pytest.raises(WrongPassword):
            secret_of(relay.uri, fields, Asked(WRONG))
        seen = bytes(relay.seen)
    assert UNSEAL in map(command_code, relay.messages) and fields.public in seen
    for secret in (enrolment.secret, RIGHT.rstrip(b"\0"), WRONG):
        assert secret not in seen and secret[:8] not in seen
    # Without the encrypted session both are there, so that the recorder would have found them.
    with Relay(tpm) as relay:
        with ESAPI(f"swtpm:path={relay.socket}") as esys:
            parent = storage_key(esys)
            private, _ = TPM2B_PRIVATE.unmarshal(fields.private)
            loaded = esys.load(parent, private, TPM2B_PUBLIC.unmarshal(fields.public)[0])
            esys.tr_set_auth(loaded, RIGHT)
            assert bytes(esys.unseal(loaded)) == enrolment.secret
            esys.flush_context(loaded)
            esys.flush_context(parent)
        seen = bytes(relay.seen)
    assert enrolment.secret in seen and RIGHT.rstrip(b"\0") in seen


def test_a_recorded_session_is_no_oracle_for_guesses(tpm: Swtpm) -> None:
    fields, _ = sealed_by(tpm.uri)
    with Relay(tpm) as relay:
        secret_of(relay.uri, fields)
    starts = [each for each in relay.messages if command_code(each) == START_SESSION]
    assert len(starts) == 2
    for start in starts:
        # u32 tpmKey, u32 bind, TPM2B nonceCaller, TPM2B encryptedSalt. Without a key and a salt the session's
        # key would follow from what is on the wire, and each HMAC would tell whether a password is right.
        body = start[HEADER_SIZE_BYTES:]
        assert body[0] == 0x80, "the key is one that was made just now"
        salt = body[8 + 2 + int.from_bytes(body[8:10], "big") :]
        assert int.from_bytes(salt[:2], "big") > 64, "a point of P-256"


NOISY = """
import sys
from tpm2_pytss import ESAPI
ESAPI(sys.argv[1]).close()
"""
QUIET = """
import sys
from mirrorfs.errors import WrongPassword
from mirrorfs.format.slot_token import Tpm2Fields
from mirrorfs.keys.tpm2_token import Tpm2Token
from mirrorfs.keys.tpm2_uri import parse_tpm2_uri
token = Tpm2Token(parse_tpm2_uri(sys.argv[1], local=True), tell=print)
public, private, name = map(bytes.fromhex, sys.argv[2:])
try:
    token.secret_for(Tpm2Fields(public, private, name, ""), volume=bytes(16), authorise=lambda: bytes(32))
except WrongPassword:
    print("refused")
"""


def test_the_library_says_nothing_by_itself(tpm: Swtpm) -> None:
    fields, _ = sealed_by(tpm.uri)
    environment = child_environment(os.environ) | {"TSS2_LOG": "all+trace"}

    def said(program: str, *arguments: str) -> tuple[str, str]:
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return ended.stdout, ended.stderr

    assert "tcti" in said(NOISY, f"swtpm:path={tpm.socket}")[1]
    blobs = [blob.hex() for blob in (fields.public, fields.private, fields.srk_name)]
    assert said(QUIET, tpm.uri, *blobs) == ("refused\n", "")


# --- URIs and the error table ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tcti"),
    [
        ("tpm2:", f"device:{DEVICE_PATH}"),
        ("TPM2:", f"device:{DEVICE_PATH}"),
        ("tpm2:?tcti=device:/dev/tpm1", "device:/dev/tpm1"),
        ("tpm2:?tcti=swtpm:path=/run/user/1000/a-b_c.d/tpm", "swtpm:path=/run/user/1000/a-b_c.d/tpm"),
    ],
)
def test_uris(text: str, tcti: str) -> None:
    uri = parse_tpm2_uri(text, local=True)
    assert uri.tcti == tcti
    assert uri.describe() == f"the TPM at {uri.path}"
    if "?" in text:
        with pytest.raises(UsageError, match="configuration"):
            parse_tpm2_uri(text, local=False)
    else:
        assert parse_tpm2_uri(text, local=False) == Tpm2Uri()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tpm2",
        "pkcs11:",
        "tpm2:0x81000001",
        "tpm2:?",
        "tpm2:?tcti=",
        "tpm2:?tcti=device:",
        "tpm2:?tcti=device:dev/tpm0",
        "tpm2:?tcti=device:path=/dev/tpm0",
        "tpm2:?tcti=swtpm:/run/tpm",
        "tpm2:?tcti=swtpm:path=/run/tpm,port=1",
        "tpm2:?tcti=swtpm:host=elsewhere,port=2321",
        "tpm2:?tcti=swtpm:path=/run/a b",
        "tpm2:?tcti=swtpm:path=/run/tpm\n",
        "tpm2:?tcti=device:/dev/tpm0&tcti=device:/dev/tpm1",
        "tpm2:?tcti=cmd:/bin/sh -c 'exec nc elsewhere 1'",
        "tpm2:?tcti=pcap:device:/dev/tpm0",
        "tpm2:?tcti=/tmp/planted.so:x",
        "tpm2:?TCTI=device:/dev/tpm0",
        "tpm2:?module-path=/tmp/planted.so",
        "tpm2:?tcti=device:/" + "a" * 512,
    ],
)
def test_what_no_uri_may_say(text: str) -> None:
    with pytest.raises(UsageError, match=r"\.$"):
        parse_tpm2_uri(text, local=True)


FOUR = Tries(left=4, interval_s=600)


@pytest.mark.parametrize(
    ("code", "tries", "step", "expected", "words"),
    [
        (0x98E, FOUR, Step.OTHER, WrongPassword, "4 tries left"),
        (0x98E, Tries(left=1, interval_s=600), Step.OTHER, WrongPassword, "1 try left"),
        (0x98E, Tries(left=0, interval_s=90), Step.OTHER, WrongPassword, "one every 90 s"),
        (0x98E, Tries(left=0, interval_s=0), Step.OTHER, WrongPassword, "tpm2_dictionarylockout"),
        (0x98E, None, Step.OTHER, WrongPassword, "try again"),
        (0x921, Tries(left=0, interval_s=600), Step.OTHER, PinLocked, "one every 10 minutes"),
        (0x921, Tries(left=0, interval_s=86400), Step.OTHER, PinLocked, "one every 24 hours"),
        (0x921, Tries(left=0, interval_s=0), Step.OTHER, PinLocked, "tpm2_dictionarylockout"),
        (0x921, None, Step.OTHER, PinLocked, "wait some hours"),
        (0x1DF, None, Step.OTHER, WrongToken, "altered"),
        (0x2D5, None, Step.LOADING, WrongToken, "altered"),  # TPM_RC_SIZE, parameter 2
        (0x2D5, None, Step.OTHER, TokenFailed, "0x2d5"),
        (0x18B, None, Step.LOADING, TokenFailed, "0x18b"),  # TPM_RC_HANDLE, which is no parameter
        (0x9A2, None, Step.STORAGE_KEY, TokenFailed, "has a password"),
        (0x9A2, None, Step.LOADING, TokenFailed, "not authentic"),
        (0x9A2, None, Step.OTHER, TokenFailed, "not authentic"),
        (0x185, None, Step.STORAGE_KEY, TokenFailed, "switched off"),
        (0x902, None, Step.OTHER, TokenFailed, "0x902"),
        (0x101, None, Step.OTHER, TokenFailed, "restart"),
        (0xA000A, None, Step.OTHER, TokenMissing, "no answer"),
        (0xA0008, None, Step.OTHER, TokenMissing, "no answer"),
        (0x70019, None, Step.OTHER, TokenFailed, "not authentic"),
        (0x80011, None, Step.OTHER, TokenFailed, "not authentic"),
        (0xB0921, None, Step.OTHER, TokenFailed, "0xb0921"),
    ],
)
def test_error_table(
    code: int, tries: Tries | None, step: Step, expected: type[UnlockError], words: str
) -> None:
    error = tpm_error(code, where="the TPM at /dev/x", tries=tries, step=step)
    assert type(error) is expected
    assert "the TPM at /dev/x" in str(error) and words in str(error)
    assert str(error).endswith(".") and str(error)[0].isupper()
