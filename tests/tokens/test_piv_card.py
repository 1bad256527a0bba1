"""PKCS#11 through OpenSC and ykcs11 to a virtual PIV card: what SoftHSM2 cannot show.

A PIN locks, cards are taken out and changed at any moment, and the service, the reader or the card may be
missing. Each case runs through both modules, on the same card.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirrorfs.errors import PinLocked, TokenFailed, TokenMissing, UsageError, WrongPin, WrongToken
from mirrorfs.format.slot_token import Pkcs11Fields, TokenMechanism
from mirrorfs.keys.token import Enrolment
from mirrorfs.keys.token_watch import TokenWatch
from tests.support.pcsc import Card, Driver, RemoteToken, SmartCardRoom, eventually, own_copy
from tests.support.piv_card import (
    AUTHENTICATION,
    INS_AUTHENTICATE,
    INS_GET_DATA,
    INS_SELECT,
    INS_VERIFY,
    KEY_MANAGEMENT,
    PIN,
    SIGNATURE,
    TRIES_MAX,
)

MODULES = {"opensc": "/usr/lib/*/opensc-pkcs11.so", "ykcs11": "/usr/lib/*/libykcs11.so*"}
KEYS = {"rsa": (b"\x01", TokenMechanism.RSA_PKCS1), "ec": (b"\x03", TokenMechanism.ECDH_P256)}
VOLUME = bytes(range(16))
WRONG_PIN = "654321"
POLLS = 200


@dataclass
class PinPad:
    """Answers with one PIN, does something before that, and remembers every time it was asked."""

    pin: str = PIN
    meanwhile: Callable[[], None] = lambda: None
    asked: list[tuple[str, bool, int | None]] = field(default_factory=list)

    def __call__(self, label: str, *, final_try: bool, tries_left: int | None = None) -> str:
        self.asked.append((label, final_try, tries_left))
        self.meanwhile()
        return self.pin


@dataclass(frozen=True)
class Reach:
    """One way to the card: a PKCS#11 module, and a process that loads it."""

    module: Path
    driver: Driver

    def token(self, pad: PinPad | None = None, *, attributes: str = "") -> RemoteToken:
        """Without a pad, to be asked for a PIN fails the test."""
        return RemoteToken(self.driver, f"pkcs11:{attributes}?module-path={self.module}", ask_pin=pad)

    def enrol(self, kind: str, pad: PinPad | None = None) -> Enrolment:
        key_id, _ = KEYS[kind]
        return self.token(pad or PinPad(), attributes=f"id=%{key_id.hex()}").enrol(volume=VOLUME)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmartCardRoom]:
    with SmartCardRoom(tmp_path_factory.mktemp("pcsc")) as room:
        room.start_pcscd(with_readers=True)
        yield room


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("modules")
    return {name: own_copy(pattern, folder) for name, pattern in MODULES.items()}


@pytest.fixture(scope="module")
def reaches(room: SmartCardRoom, modules: dict[str, Path]) -> Iterator[dict[str, Reach]]:
    with ExitStack() as stack:
        yield {
            name: Reach(module, stack.enter_context(closing(Driver(room))))
            for name, module in modules.items()
        }


@pytest.fixture(params=list(MODULES))
def reach(reaches: dict[str, Reach], request: pytest.FixtureRequest) -> Reach:
    return reaches[request.param]


@pytest.fixture(scope="module")
def the_card(room: SmartCardRoom) -> Iterator[Card]:
    keys = {AUTHENTICATION: "rsa", SIGNATURE: "ec", KEY_MANAGEMENT: "ec"}
    with closing(Card(room, keys, serial=12345678)) as card:
        yield card


@pytest.fixture
def card(the_card: Card) -> Card:
    """In the first reader, with all tries."""
    the_card.vanish()
    the_card.set_tries_left(TRIES_MAX)
    if not the_card.is_inserted:
        the_card.insert()
    return the_card


@pytest.fixture
def stranger(room: SmartCardRoom) -> Iterator[Card]:
    """Another card of the same make, in no reader yet."""
    with closing(Card(room, {KEY_MANAGEMENT: "ec"}, serial=87654321)) as card:
        yield card
        card.remove()


@pytest.fixture(scope="module")
def enrolments(the_card: Card, reaches: dict[str, Reach]) -> dict[tuple[str, str], Enrolment]:
    """By module and kind of key."""
    if not the_card.is_inserted:
        the_card.insert()
    return {(name, kind): reach.enrol(kind) for name, reach in reaches.items() for kind in KEYS}


@pytest.fixture
def enrolled(
    enrolments: dict[tuple[str, str], Enrolment], card: Card, request: pytest.FixtureRequest
) -> Pkcs11Fields:
    """The EC key, as enrolled through the module of this test."""
    fields = enrolments[request.node.callspec.params["reach"], "ec"].fields
    assert isinstance(fields, Pkcs11Fields)
    return fields


# --- what shall work -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KEYS))
def test_enrolled_keys_yield_the_same_secret_again(reach: Reach, card: Card, kind: str) -> None:
    before = card.pins_received
    enrolling, using = PinPad(), PinPad()
    enrolment = reach.enrol(kind, enrolling)
    assert card.pins_received == before + 1
    assert isinstance(enrolment.fields, Pkcs11Fields)
    assert (enrolment.fields.key_id, enrolment.fields.mechanism) == KEYS[kind]

    assert reach.token().choose([enrolment.fields]) == enrolment.fields
    assert card.pins_received == before + 1
    assert reach.token(using).secret_for(enrolment.fields, volume=VOLUME) == enrolment.secret
    assert card.pins_received == before + 2
    assert enrolling.asked == using.asked == [(enrolment.fields.label, False, None)]


@pytest.mark.parametrize("kind", list(KEYS))
@pytest.mark.parametrize("through", list(MODULES))
def test_a_key_enrolled_through_one_module_opens_through_the_other(
    card: Card,
    reaches: dict[str, Reach],
    enrolments: dict[tuple[str, str], Enrolment],
    through: str,
    kind: str,
) -> None:
    (other,) = MODULES.keys() - {through}
    mine, theirs = enrolments[through, kind], enrolments[other, kind]
    assert isinstance(mine.fields, Pkcs11Fields) and isinstance(theirs.fields, Pkcs11Fields)
    assert mine.fields.spki_sha256 == theirs.fields.spki_sha256
    assert mine.fields.label != theirs.fields.label
    assert mine.fields.serial != theirs.fields.serial
    # One process has both modules loaded.
    token = Reach(reaches[other].module, reaches[through].driver).token(PinPad())
    assert token.choose([mine.fields]) == mine.fields
    assert token.is_present(mine.fields)
    assert token.secret_for(mine.fields, volume=VOLUME) == mine.secret


def test_a_key_that_wants_the_pin_at_each_use_is_left_out(reach: Reach, card: Card) -> None:
    with pytest.raises(UsageError, match="Several keys") as caught:
        reach.token(PinPad()).enrol(volume=VOLUME)
    assert str(caught.value).endswith("add one of: id=%01, id=%03.")
    with pytest.raises(UsageError, match="no key"):
        reach.token(PinPad(), attributes="id=%02").enrol(volume=VOLUME)


@pytest.mark.parametrize("attributes", ["", "id=%02"], ids=["any", "its-own-id"])
def test_a_card_that_makes_no_keys_for_us(reach: Reach, card: Card, attributes: str) -> None:
    with pytest.raises(UsageError, match=r"makes no keys here \(.*the token's own tool|already has a key"):
        reach.token(PinPad(), attributes=attributes).enrol(volume=VOLUME, create=True)


# --- the PIN ---------------------------------------------------------------------------------


def test_wrong_pins_are_sent_once_each_and_the_last_try_is_announced(
    reach: Reach, card: Card, enrolled: Pkcs11Fields
) -> None:
    before = card.pins_received
    asked = []
    for tries_left, words in ((2, "check it and try again"), (1, "one more wrong PIN locks it")):
        pad = PinPad(WRONG_PIN)
        with pytest.raises(WrongPin, match=f"'{enrolled.label}' refused the PIN; {words}") as caught:
            reach.token(pad).secret_for(enrolled, volume=VOLUME)
        assert WRONG_PIN not in str(caught.value)
        assert card.tries_left == tries_left
        asked += pad.asked
    assert card.pins_received == before + 2
    assert asked == [(enrolled.label, False, None)] * 2

    last = PinPad()
    assert len(reach.token(last).secret_for(enrolled, volume=VOLUME)) == 32
    assert last.asked == [(enrolled.label, True, 1)]
    assert card.tries_left == TRIES_MAX


def test_a_wrong_pin_while_enrolling(reach: Reach, card: Card, enrolled: Pkcs11Fields) -> None:
    before = card.pins_received
    with pytest.raises(WrongPin):
        reach.enrol("ec", PinPad(WRONG_PIN))
    assert (card.pins_received, card.tries_left) == (before + 1, TRIES_MAX - 1)
    card.set_tries_left(1)
    last = PinPad()
    reach.enrol("ec", last)
    assert last.asked == [(enrolled.label, True, 1)]


def test_a_pin_that_locks_and_one_that_is_locked(reach: Reach, card: Card, enrolled: Pkcs11Fields) -> None:
    card.set_tries_left(1)
    sentence = f"The PIN of token '{enrolled.label}' is locked; unblock it with the token's own tool."
    with pytest.raises(PinLocked) as caught:
        reach.token(PinPad(WRONG_PIN)).secret_for(enrolled, volume=VOLUME)
    assert str(caught.value) == sentence
    assert card.tries_left == 0

    before = card.pins_received
    with pytest.raises(PinLocked) as caught:
        reach.token().secret_for(enrolled, volume=VOLUME)
    assert str(caught.value) == sentence
    with pytest.raises(PinLocked):
        reach.enrol("ec", PinPad(meanwhile=lambda: pytest.fail("asked for a PIN that is locked")))
    # The card is still known without one.
    assert reach.token().choose([enrolled]) == enrolled
    assert reach.token().is_present(enrolled)
    assert card.pins_received == before


def test_a_last_try_that_was_not_announced_is_not_used(
    reach: Reach, card: Card, enrolled: Pkcs11Fields
) -> None:
    before = card.pins_received
    for use in (
        lambda pad: reach.token(pad).secret_for(enrolled, volume=VOLUME),
        lambda pad: reach.enrol("ec", pad),
    ):
        card.set_tries_left(TRIES_MAX)
        with pytest.raises(TokenFailed, match="one PIN try left since other software used one; try again"):
            use(PinPad(meanwhile=lambda: card.set_tries_left(1)))
        card.set_tries_left(TRIES_MAX)
        with pytest.raises(PinLocked):
            use(PinPad(meanwhile=lambda: card.set_tries_left(0)))
    assert card.pins_received == before


# --- other cards -----------------------------------------------------------------------------


def test_a_wrong_card_gets_no_pin_alone_or_beside_the_right_one(
    reach: Reach, card: Card, stranger: Card, enrolled: Pkcs11Fields
) -> None:
    before = card.pins_received
    assert reach.token().is_present(enrolled)
    card.remove()
    stranger.insert(reader=0)
    with pytest.raises(WrongToken, match="insert the right one"):
        reach.token().secret_for(enrolled, volume=VOLUME)
    with pytest.raises(WrongToken, match="insert the right one"):
        reach.token().choose([enrolled])
    assert not reach.token().is_present(enrolled)

    card.insert(reader=1)
    assert len(reach.token(PinPad()).secret_for(enrolled, volume=VOLUME)) == 32
    assert reach.token().is_present(enrolled)
    with pytest.raises(UsageError, match="Several tokens"):
        reach.enrol("ec")
    assert (card.pins_received, stranger.pins_received) == (before + 1, 0)
    card.remove()


def test_a_card_changed_while_the_pin_is_asked_for_gets_none(
    reach: Reach, card: Card, stranger: Card, enrolled: Pkcs11Fields
) -> None:
    before = card.pins_received

    def change() -> None:
        card.remove()
        stranger.insert()

    def change_back() -> None:
        stranger.remove()
        card.insert()

    with pytest.raises(WrongToken, match="insert the right one"):
        reach.token(PinPad(meanwhile=change)).secret_for(enrolled, volume=VOLUME)
    with pytest.raises(WrongToken, match=r"PIN was asked for token '.*', but another is there now"):
        reach.enrol("ec", PinPad(meanwhile=change_back))
    assert (card.pins_received, stranger.pins_received) == (before, 0)


# --- cards that are taken out ----------------------------------------------------------------


def test_a_card_that_is_out(room: SmartCardRoom, reach: Reach, card: Card, enrolled: Pkcs11Fields) -> None:
    assert reach.token().choose([enrolled]) == enrolled
    card.remove()
    for is_noticed in (False, True):
        if is_noticed:
            eventually(lambda: room.reader_state(0) == "empty", what="pcscd knows that it is out")
        for use in (
            lambda: reach.token().secret_for(enrolled, volume=VOLUME),
            lambda: reach.token().choose([enrolled]),
            lambda: reach.token().enrol(volume=VOLUME),
        ):
            with pytest.raises(TokenMissing, match=r"^No token matches pkcs11:; insert it and try again\.$"):
                use()
    card.insert()
    assert len(reach.token(PinPad()).secret_for(enrolled, volume=VOLUME)) == 32


def test_a_card_taken_out_while_the_pin_is_asked_for(
    reach: Reach, card: Card, enrolled: Pkcs11Fields
) -> None:
    before = card.pins_received
    pad = PinPad(meanwhile=card.remove)
    with pytest.raises(TokenMissing, match="insert it and try again"):
        reach.token(pad).secret_for(enrolled, volume=VOLUME)
    assert len(pad.asked) == 1
    card.insert()
    with pytest.raises(TokenMissing, match="insert it and try again"):
        reach.enrol("ec", pad)
    assert card.pins_received == before
    card.insert()
    assert len(reach.token(PinPad()).secret_for(enrolled, volume=VOLUME)) == 32


@pytest.mark.parametrize(
    ("at", "after"),
    [(INS_GET_DATA, None), (None, 24), (INS_VERIFY, None), (INS_AUTHENTICATE, None)],
    ids=["get-data", "after-24", "verify", "authenticate"],
)
def test_a_card_taken_out_in_the_middle_of_a_command(
    reach: Reach, card: Card, enrolled: Pkcs11Fields, at: int | None, after: int | None
) -> None:
    card.vanish(at=at, after=after)
    with pytest.raises(TokenMissing, match="insert it and try again"):
        reach.token(PinPad()).secret_for(enrolled, volume=VOLUME)
    assert not card.is_inserted


def test_a_card_taken_out_while_it_is_enrolled(reach: Reach, card: Card, enrolled: Pkcs11Fields) -> None:
    card.vanish(at=INS_AUTHENTICATE)
    with pytest.raises(TokenMissing, match="removed while in use; insert it and try again"):
        reach.enrol("ec")


# --- watching --------------------------------------------------------------------------------


def test_a_look_sees_at_once_that_a_card_went_or_came(
    reach: Reach, card: Card, enrolled: Pkcs11Fields
) -> None:
    before = card.pins_received
    token = reach.token()  # to be asked for a PIN would fail the test
    assert token.is_present(enrolled)
    card.remove()
    assert not token.is_present(enrolled)
    assert not token.is_present(enrolled)
    card.insert()
    assert token.is_present(enrolled)
    assert token.is_present(enrolled)
    assert card.pins_received == before


def test_a_card_taken_out_in_the_middle_of_a_look(reach: Reach, card: Card, enrolled: Pkcs11Fields) -> None:
    assert reach.token().is_present(enrolled)
    card.vanish(at=INS_SELECT)
    assert not reach.token().is_present(enrolled)


def test_many_looks_leak_nothing_and_cost_little(reach: Reach, card: Card, enrolled: Pkcs11Fields) -> None:
    token = reach.token()
    assert token.is_present(enrolled)
    assert token.is_present(enrolled)
    resources, commands, pins = reach.driver.resources(), card.commands, card.pins_received
    assert all(token.is_present(enrolled) for _ in range(POLLS))
    assert reach.driver.resources() == resources
    assert card.pins_received == pins
    # Reading all that ykcs11 reads of a card takes 90 commands; what OpenSC needs to list it is 29.
    assert card.commands - commands <= 40 * POLLS


def test_a_removal_is_noticed_in_time(
    reach: Reach, card: Card, enrolled: Pkcs11Fields, record_property: Callable[[str, object], None]
) -> None:
    token, watch = reach.token(), TokenWatch(interval_s=0.3)
    removed_s = None
    start_s = time.monotonic()
    for index in range(100):
        if index == 3:
            card.remove()
            removed_s = time.monotonic()
        counts_as_removed = watch.observe(token.is_present(enrolled), time.monotonic())
        if counts_as_removed:
            break
        time.sleep(watch.interval_s)
    assert removed_s is not None, f"counted as removed {time.monotonic() - start_s:.1f} s too early"
    assert counts_as_removed
    noticed_after_s = time.monotonic() - removed_s
    record_property("noticed_after_s", noticed_after_s)
    # Two looks and the pause between them, on a slow machine.
    assert watch.interval_s <= noticed_after_s < watch.interval_s + 4.0


# --- no reader, no service -------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmartCardRoom]:
    """A room without readers, and without pcscd unless it is started."""
    with SmartCardRoom(tmp_path_factory.mktemp("bare")) as room:
        yield room


@pytest.mark.parametrize("is_running", [False, True], ids=["no-service", "no-reader"])
def test_no_service_and_no_reader(
    bare_room: SmartCardRoom, reach: Reach, enrolled: Pkcs11Fields, is_running: bool
) -> None:
    with closing(Driver(bare_room)) as driver:
        if is_running:
            bare_room.start_pcscd(with_readers=False)
        token = Reach(reach.module, driver).token()
        try:
            for use in (
                lambda: token.secret_for(enrolled, volume=VOLUME),
                lambda: token.choose([enrolled]),
                lambda: token.enrol(volume=VOLUME),
            ):
                with pytest.raises(TokenMissing, match="reader") as caught:
                    use()
                assert "pcscd" in str(caught.value)
            assert not token.is_present(enrolled)
        finally:
            bare_room.stop_pcscd()


def test_a_service_that_stops_and_comes_back(
    room: SmartCardRoom, reach: Reach, card: Card, enrolled: Pkcs11Fields
) -> None:
    assert reach.token().is_present(enrolled)
    room.stop_pcscd()
    assert not reach.token().is_present(enrolled)
    with pytest.raises(TokenMissing, match="pcscd"):
        reach.token().secret_for(enrolled, volume=VOLUME)
    card.remove()
    room.start_pcscd(with_readers=True)
    card.insert()
    assert reach.token().is_present(enrolled)
    assert len(reach.token(PinPad()).secret_for(enrolled, volume=VOLUME)) == 32


def test_where_namespaces_are_forbidden_the_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match=r"namespace of its own.*refuses.*Operation not permitted"):
        SmartCardRoom(tmp_path)
