"""What `mirrorfs key` does with the slots of a volume's header; see cli/key.py for the whole."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import trio

from mirrorfs.cli.config import TokenConfig, VolumeConfig, VolumePaths, write_config
from mirrorfs.cli.header_change import check_unrivalled, find_conflict, publish_header
from mirrorfs.cli.kdf_option import new_kdf
from mirrorfs.cli.key_events import Recording
from mirrorfs.cli.key_rotation import Rotation, describe_new_keys
from mirrorfs.cli.recovery_sheet import check_paper_askable, confirm_on_paper
from mirrorfs.cli.tokens import SecretSources, chosen_tokens, make_token, make_tokens
from mirrorfs.cli.unlock import AskedPassword, Unlocked, open_with, unlock_configured
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.reseal import request_reseal
from mirrorfs.errors import InUseError, MirrorfsError, TokenMissing, UnlockError, UsageError, WrongPassword
from mirrorfs.format.header import parse_header, verify_header
from mirrorfs.format.slot import KdfParameters, Role, Slot
from mirrorfs.format.slot_token import Pkcs11Fields, SlotKind, TokenFields
from mirrorfs.keys.prompts import read_new_password
from mirrorfs.keys.question import SecretKind
from mirrorfs.keys.recovery_token import RecoveryToken
from mirrorfs.keys.rotation import check_can_rotate
from mirrorfs.keys.slots import make_slot, stretch_password, token_authorisation
from mirrorfs.keys.token import Enrolment, Token

RECOVERY_SLOT_NAME = "recovery"


ROLES: Final[Mapping[str, tuple[Role, ...]]] = {
    "writer": tuple(Role),
    "pc": (Role.WRITER, Role.DRILL),
    "pruner": (Role.PRUNER,),
    "reader": (),
}
"""What `key add --role` grants."""


class KeyChange:
    """One command, with everything it needs."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
        paths: VolumePaths,
        config: VolumeConfig,
        recording: Recording,
        *,
        is_mounted: bool = False,
    ) -> None:
        self._recording = recording
        self._is_mounted = is_mounted
        self._arguments = arguments
        self._environment = environment
        self._paths = paths
        self._config = config
        self._sources = SecretSources(
            arguments.password_file, arguments.pin_file, environment, arguments.code_file
        )
        self._password = AskedPassword(paths.name, self._sources)
        self._chosen: Sequence[TokenConfig] = ()
        self._conflict: InUseError | None = None

    def check_alone(self) -> None:
        """Raises: InUseError: the change was made, but another PC made one at the same time."""
        if self._conflict is not None:
            raise self._conflict

    def check(self) -> int:
        """`key check`. Raises: UnlockError: it does not open."""
        unlocked = self._unlock()
        print(f"Slot {unlocked.slot.name} opens volume {self._paths.name} with this token and password.")
        if unlocked.slot.kind is SlotKind.RECOVERY:
            print("The recovery code restores and enrols a new token; it does not mount.")
        return 0

    def add(self) -> None:
        """`key add`. Raises: MirrorfsError: nothing has changed."""
        arguments = self._arguments
        unlocked = self._unlock()
        config = TokenConfig(arguments.new_token, arguments.new_module)
        sources = self._sources_of_another(arguments.new_pin_file)
        token = make_token(config, sources, create=arguments.create_key)
        if token.kind is SlotKind.RECOVERY:
            raise UsageError("A recovery code is made by `mirrorfs key recovery`.")
        roles = tuple(role for role in unlocked.slot.roles if role in ROLES[arguments.role])
        if arguments.role != "writer" and roles != ROLES[arguments.role]:
            raise UsageError("The slot that was opened does not have that role itself; use one that has it.")
        kdf = new_kdf(self._arguments)
        stretched = stretch_password(self._password.password(), kdf)
        enrolment = self._enrol(token, unlocked, stretched, kdf)
        for slot in unlocked.header.slots:
            if _is_same_token(slot.token, enrolment.fields):
                raise UsageError(
                    f"That token has slot {slot.name} already; insert the one to add, or remove that slot."
                )
        taken = {slot.name for slot in unlocked.header.slots}
        name = arguments.name or _free_name(enrolment.fields.label or token.kind.value, taken)
        if name in taken:
            raise UsageError(f"The volume has a slot {name} already; choose another name.")
        slot = self._new_slot(unlocked, name, roles, enrolment, stretched, kdf)
        was_on_paper = unlocked.slot.kind is SlotKind.RECOVERY
        # A code that was typed into a PC is used up.
        kept = [one for one in unlocked.header.slots if not was_on_paper or one.kind is not SlotKind.RECOVERY]
        changed = self._publish(unlocked, [*kept, slot])
        if config not in self._config.tokens:
            self._config = replace(self._config, tokens=(*self._config.tokens, config))
            write_config(self._paths, self._config)
        print(f"Slot {name} opens volume {self._paths.name} too, with the password that was entered.")
        if was_on_paper:
            print(
                "The recovery code is used up: remove the slot of the lost token with `key remove`, and print"
                f" a new sheet with `mirrorfs key recovery {self._paths.name}`."
            )
            self._rotate_after(changed)

    def remove(self) -> None:
        """`key remove`. Raises: UsageError: it would leave nothing that mounts. MirrorfsError."""
        name = self._arguments.slot
        unlocked = self._unlock()
        gone = _named(unlocked.header.slots, name)
        left = [slot for slot in unlocked.header.slots if slot is not gone]
        if not any(slot.kind is not SlotKind.RECOVERY and Role.WRITER in slot.roles for slot in left):
            raise UsageError(
                f"Slot {name} is the last that mounts and writes; add another token first, with `key add`."
            )
        if self._will_rotate():
            check_can_rotate(replace(unlocked.header, slots=tuple(left)), unlocked.slot.roles)
        changed = self._publish(unlocked, left)
        print(f"Slot {name} opens volume {self._paths.name} no more.")
        self._rotate_after(changed)

    def passwd(self) -> None:
        """`key passwd`. Raises: MirrorfsError: nothing has changed."""
        unlocked = self._unlock()
        password = read_new_password(
            self._paths.name, path=self._arguments.new_password_file, environment=self._environment
        )
        changed: dict[bytes, Slot] = {}
        for slot, token, secret in self._at_hand(unlocked):
            kdf = new_kdf(self._arguments)
            stretched = stretch_password(password, kdf)
            if slot.kind is SlotKind.TPM2:  # it was told the old password, and checks it itself
                enrolment = self._enrol(token, unlocked, stretched, kdf)
            else:
                enrolment = Enrolment(slot.token, secret)
            changed[slot.slot_id] = self._new_slot(
                unlocked, slot.name, slot.roles, enrolment, stretched, kdf, created_ns=slot.created_ns
            )
        slots = unlocked.header.slots
        wanted = [changed.get(slot.slot_id, slot) for slot in slots]
        if self._will_rotate():
            check_can_rotate(replace(unlocked.header, slots=tuple(wanted)), unlocked.slot.roles)
        published = self._publish(unlocked, wanted)
        for slot in slots:
            if slot.slot_id in changed:
                print(f"Slot {slot.name} has the new password.")
            elif slot.kind is SlotKind.RECOVERY:
                print(f"Slot {slot.name} keeps the old password: print a new sheet with `key recovery`.")
            else:
                print(f"Slot {slot.name} keeps the old password: its token was not at hand.")
        self._rotate_after(published)

    def rotate(self) -> None:
        """`key rotate`. Raises: MirrorfsError: see Rotation.run."""
        if self._is_mounted:
            raise UsageError("Keys are rotated while the volume is not mounted; unmount it first.")
        if not self._arguments.reseal:
            self._rotate(self._unlock())
            return
        if self._config.retention is None:
            raise UsageError(
                "What was sealed before is sealed anew when the log that it belongs to need not be kept any"
                " more, and without [retention] in its configuration the volume keeps all of it;"
                " docs/operations.md shows a policy to begin with."
            )
        unlocked = self._unlock()
        # Before the rotation: whatever comes between, a request without one ends by itself.
        request_reseal(LocalDisk(self._paths.state))
        self._rotate(unlocked)
        print(
            "What was written before is sealed anew as the retention policy lets go of the log that it"
            " belongs to: `mirrorfs status` shows how far it is."
        )

    def _rotate(self, unlocked: Unlocked, slots: Sequence[Slot] | None = None) -> bytes:
        """`slots`: those that are to open the volume afterwards; None: all. Returns: the header."""
        rotation = Rotation(self._paths, self._config, unlocked)
        trio.run(check_unrivalled, self._paths, self._config, unlocked)
        _say("The keys are rotated: every store first gets all there is.")
        data = rotation.run(unlocked.header.slots if slots is None else slots)
        print(describe_new_keys(data))
        self._conflict = trio.run(find_conflict, self._paths, self._config, unlocked.header, data)
        return data

    def _will_rotate(self) -> bool:
        return not getattr(self._arguments, "no_rotate", False) and not self._is_mounted

    def _rotate_after(self, unlocked: Unlocked) -> None:
        """So that who has the old header and could open it opens nothing that is written from now on."""
        # Where another PC has changed the same header, a person looks first.
        if self._will_rotate() and self._conflict is None:
            self._rotate(unlocked)
            return
        _say(
            "Who kept a copy of the old header opens with it also what is written from now on, until the"
            f" keys are rotated: unmount, and run `mirrorfs key rotate {self._paths.name}`."
        )

    def recovery(self) -> None:
        """`key recovery`: a new sheet, which voids an older one. Raises: MirrorfsError."""
        unlocked = self._unlock()
        if unlocked.slot.kind is SlotKind.RECOVERY:
            raise UsageError("A new recovery code is made with a token, not with the old code.")
        check_paper_askable(self._environment)
        replaces = len(_without_codes(unlocked.header.slots)) < len(unlocked.header.slots)
        rotates = replaces and self._will_rotate()
        if rotates:
            # Before the sheet is printed, for that shows the fingerprint of the new keys.
            unlocked = self._without_sheet(unlocked)
        token = RecoveryToken(
            ask_code=_never_asked,
            confirm=lambda code: confirm_on_paper(
                self._paths.name, unlocked, code, environment=self._environment
            ),
        )
        kdf = new_kdf(self._arguments)
        stretched = stretch_password(self._password.password(), kdf)
        try:
            enrolment = self._enrol(token, unlocked, stretched, kdf)
            others = _without_codes(unlocked.header.slots)
            name = _free_name(RECOVERY_SLOT_NAME, {slot.name for slot in others})
            slot = self._new_slot(unlocked, name, unlocked.slot.roles, enrolment, stretched, kdf)
            self._publish(unlocked, [*others, slot])
        except (MirrorfsError, KeyboardInterrupt):
            before = "; the one before it is void, too: run this again" if rotates else ""
            _say(f"The sheet that was just printed is void, destroy it{before}.")
            raise
        _say(f"Slot {name} is made. The code needs the password that was entered just now; keep it safe.")
        if rotates:
            _say("The sheet before this one opens nothing that is written from now on; destroy it.")
        elif replaces:
            _say(
                "The sheet before this one opens no more; destroy it, for with a copy of the old header it"
                f" does until `mirrorfs key rotate {self._paths.name}`."
            )

    def _without_sheet(self, unlocked: Unlocked) -> Unlocked:
        """Rotate the keys, and leave the recovery code without the new ones."""
        data = self._rotate(unlocked, _without_codes(unlocked.header.slots))
        header = parse_header(data)
        (slot,) = (slot for slot in header.slots if slot.slot_id == unlocked.slot.slot_id)
        key_set = open_with(header, slot, self._password, unlocked.secret)
        header, keys = verify_header(data, key_set)
        self._config = replace(self._config, fingerprint=keys.fingerprint)
        return replace(unlocked, data=data, header=header, key_set=key_set, keys=keys, slot=slot)

    # --- the parts ---------------------------------------------------------------------------

    def _sources_of_another(self, pin_file: str | None) -> SecretSources:
        """For a token that is not the one that unlocks: a PIN that was named for that is never sent to it."""
        environment = {
            name: value for name, value in self._environment.items() if name != SecretKind.PIN.variable
        }
        return SecretSources(self._arguments.password_file, pin_file, environment)

    def _unlock(self) -> Unlocked:
        arguments = self._arguments
        changes = arguments.change != "check"
        self._chosen = chosen_tokens(arguments.token, arguments.module, self._config.tokens)
        unlocked, self._config = unlock_configured(
            self._paths, self._config, self._chosen, self._sources, password=self._password, keeps=changes
        )
        self._recording.opened(unlocked.header, unlocked.slot)
        if changes and Role.WRITER not in unlocked.slot.roles:
            raise UsageError(f"Slot {unlocked.slot.name} may read and no more; use a token that may write.")
        return unlocked

    def _enrol(self, token: Token, unlocked: Unlocked, stretched: bytes, kdf: KdfParameters) -> Enrolment:
        while True:
            try:
                return token.enrol(
                    volume=unlocked.header.volume,
                    entropy=secrets.token_bytes,
                    authorise=lambda: token_authorisation(stretched, kdf),
                )
            except TokenMissing as exc:
                # One reader, two cards: the first is taken out when it has done its part.
                if not sys.stdin.isatty():
                    raise
                _say(str(exc))
                if input("Insert the new token and press Enter, or q to give up: ").strip() == "q":
                    raise

    def _at_hand(self, unlocked: Unlocked) -> list[tuple[Slot, Token, bytes]]:
        """The opened slot, and others whose tokens are here and which the same password opens."""
        header = unlocked.header
        tokens = make_tokens(self._chosen, self._sources)
        opened = next(token for token in tokens if token.kind is unlocked.slot.kind)
        found = [(unlocked.slot, opened, unlocked.secret)]
        done = {unlocked.slot.slot_id}
        for token in make_tokens(self._chosen, self._sources_of_another(None)):
            for slot in header.slots:
                if slot.kind is not token.kind or slot.kind is SlotKind.RECOVERY or slot.slot_id in done:
                    continue
                try:
                    if not token.is_present(slot.token):
                        continue
                    done.add(slot.slot_id)
                    secret = token.secret_for(
                        slot.token, volume=header.volume, authorise=self._password.authorise(slot.kdf)
                    )
                    open_with(header, slot, self._password, secret)
                except WrongPassword:
                    _say(f"Slot {slot.name} has another password; it keeps that.")
                except (UnlockError, UsageError) as exc:
                    _say(f"Slot {slot.name} is left as it is: {exc}")
                else:
                    found.append((slot, token, secret))
        return found

    def _new_slot(
        self,
        unlocked: Unlocked,
        name: str,
        roles: tuple[Role, ...],
        enrolment: Enrolment,
        stretched: bytes,
        kdf: KdfParameters,
        *,
        created_ns: int | None = None,
    ) -> Slot:
        return make_slot(
            unlocked.key_set,
            volume=unlocked.header.volume,
            key_generation=unlocked.header.key_generation,
            name=name,
            roles=roles,
            stretched=stretched,
            enrolment=enrolment,
            kdf=kdf,
            created_ns=time.time_ns() if created_ns is None else created_ns,
            entropy=secrets.token_bytes,
        )

    def _publish(self, unlocked: Unlocked, slots: Sequence[Slot]) -> Unlocked:
        config = self._config
        published, conflict = publish_header(
            self._paths, unlocked, before=config, after=config, slots=tuple(slots)
        )
        self._conflict = self._conflict or conflict
        return published


def _say(sentence: str) -> None:
    print(f"mirrorfs: {sentence}", file=sys.stderr)


def _never_asked() -> bytes:
    raise AssertionError("a code is made here, not asked for")


def _without_codes(slots: Sequence[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot.kind is not SlotKind.RECOVERY]


def _named(slots: Sequence[Slot], name: str) -> Slot:
    for slot in slots:
        if slot.name == name:
            return slot
    known = ", ".join(slot.name for slot in slots)
    raise UsageError(f"The volume has no slot {name}; it has: {known}.")


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted} {number}"
    return name


def _is_same_token(ours: TokenFields, new: TokenFields) -> bool:
    """Whether two slots would stand on one key: losing it would lose both."""
    if isinstance(ours, Pkcs11Fields) and isinstance(new, Pkcs11Fields):
        return ours.spki_sha256 == new.spki_sha256
    if ours.kind is SlotKind.TPM2 and new.kind is SlotKind.TPM2:
        return ours.to_body()["srk_name"] == new.to_body()["srk_name"]
    # Two credentials of one FIDO2 key differ in everything but its model.
    return False
