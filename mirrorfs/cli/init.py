"""`mirrorfs init`: make a volume. Everything is checked before anything is written."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from mirrorfs.cli.config import (
    TokenConfig,
    VolumePaths,
    check_configured_store_name,
    config_home,
    make_private_directory,
    volume_paths,
)
from mirrorfs.cli.kdf_option import add_kdf_argument, check_kdf_argument, new_kdf
from mirrorfs.cli.new_volume import (
    AnyStore,
    NewVolume,
    PlannedStore,
    is_in_the_way,
    make_volume,
    write_volume,
)
from mirrorfs.cli.stores import bare_store, check_version, directory_of
from mirrorfs.cli.tokens import SecretSources, check_present, make_token
from mirrorfs.drivers.process import harden_process
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.errors import ObjectNotFound, StoreMismatch, UsageError
from mirrorfs.format.control import INSTANCE_KEY
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.header import STORES_MAX
from mirrorfs.format.kdf import VOLUME_ID_SIZE_BYTES, format_fingerprint
from mirrorfs.keys.prompts import read_password
from mirrorfs.keys.slots import stretch_password, token_authorisation
from mirrorfs.ports import ObjectKey

STORES_MIN = 2

# What a directory that is otherwise empty may hold: our own scratch, and what mkfs leaves.
_HARMLESS = frozenset({".tmp", "lock", "lost+found", "header"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `init`."""
    parser.add_argument("volume", metavar="VOLUME", help="name of the new volume")
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a store: file:///PATH or s3://BUCKET/PREFIX?endpoint=...; give it twice or more",
    )
    parser.add_argument(
        "--token", required=True, metavar="URI", help="the token: pkcs11:token=LABEL;... or fido2:"
    )
    parser.add_argument("--create-key", action="store_true", help="make a new key on the token")
    parser.add_argument("--module", metavar="PATH", help="the PKCS#11 module to use for the token")
    parser.add_argument(
        "--create-store", action="store_true", help="make the directories of file:// stores if missing"
    )
    parser.add_argument("--password-file", metavar="FILE", help="read the new password from its first line")
    parser.add_argument("--pin-file", metavar="FILE", help="read the token's PIN from its first line")
    add_kdf_argument(parser)


def parse_stores(arguments: Sequence[str]) -> list[PlannedStore]:
    """Check names, URLs and that no two stores are one place.

    Raises: UsageError.
    """
    stores = []
    for argument in arguments:
        name, equals, url = argument.partition("=")
        if not equals or not url:
            raise UsageError("A store is given as NAME=URL, for example --store nas=file:///mnt/nas/volume.")
        check_configured_store_name(name)
        bare_store(name, url)
        stores.append(PlannedStore(name, url))
    if len(stores) < STORES_MIN:
        raise UsageError("A volume is mirrored on at least two stores; give --store NAME=URL twice.")
    if len(stores) > STORES_MAX:
        raise UsageError(f"A volume has at most {STORES_MAX} stores; give fewer.")
    if len({store.name for store in stores}) != len(stores):
        raise UsageError("Two stores have the same name; name them apart.")
    check_distinct_places(stores)
    return stores


def check_distinct_places(stores: Sequence[PlannedStore]) -> None:
    """Raises: UsageError: two of them are one place, or one lies inside the other."""
    seen: list[tuple[PlannedStore, Path | None]] = []
    for store in stores:
        place = directory_of(store.url)
        real = None if place is None else Path(os.path.realpath(place))
        for other, other_real in seen:
            same = store.url.rstrip("/") == other.url.rstrip("/")
            if real is not None and other_real is not None:
                same = real.is_relative_to(other_real) or other_real.is_relative_to(real)
            if same:
                raise UsageError(
                    f"Stores {other.name} and {store.name} are one place or one inside the other;"
                    " a mirror needs two."
                )
        seen.append((store, real))


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `init`. Raises: MirrorfsError."""
    harden_process()
    paths = volume_paths(arguments.volume, environment)
    planned = parse_stores(arguments.store)
    check_kdf_argument(arguments)
    token_config = TokenConfig(uri=arguments.token, module_path=arguments.module)
    sources = SecretSources(arguments.password_file, arguments.pin_file, environment)
    token = make_token(token_config, sources, create=arguments.create_key)
    _check_unused(paths, environment)
    _check_state_outside(paths, planned)
    trio.run(_check_stores, planned, arguments.create_store)
    is_software = check_present(token_config, sources)
    # A weak password is refused before a key is made on the token.
    password = read_password(
        arguments.volume, path=arguments.password_file, environment=environment, confirm=True
    )
    volume = secrets.token_bytes(VOLUME_ID_SIZE_BYTES)
    kdf = new_kdf(arguments)
    stretched = stretch_password(password, kdf)
    enrolment = token.enrol(
        volume=volume, entropy=secrets.token_bytes, authorise=lambda: token_authorisation(stretched, kdf)
    )
    new = make_volume(
        volume,
        planned,
        token=token_config,
        stretched=stretched,
        enrolment=enrolment,
        kdf=kdf,
    )
    trio.run(_write, paths, new, arguments.create_store)
    _print_outcome(arguments.volume, new, label=enrolment.fields.label, is_software=is_software)
    return 0


async def _write(paths: VolumePaths, new: NewVolume, create_stores: bool) -> None:
    await write_volume(paths, new, create_stores=create_stores)


# --- checks ----------------------------------------------------------------------------------


def _check_unused(paths: VolumePaths, environment: Mapping[str, str]) -> None:
    if os.path.lexists(paths.config):
        raise UsageError(f"A volume {paths.name} is configured already; choose another name.")
    if os.path.lexists(paths.state):
        raise UsageError(
            f"There is local state of a volume {paths.name} already; choose another name, or remove"
            " its directory if that volume is gone for good."
        )
    make_private_directory(config_home(environment), what="configuration")
    make_private_directory(paths.state.parent, what="state")


def _check_state_outside(paths: VolumePaths, planned: Sequence[PlannedStore]) -> None:
    state = Path(os.path.realpath(paths.state))
    for store in planned:
        place = directory_of(store.url)
        if place is not None:
            real = Path(os.path.realpath(place))
            if state.is_relative_to(real) or real.is_relative_to(state):
                raise UsageError(f"Store {store.name} and the local state overlap; choose another place.")


async def _check_stores(planned: Sequence[PlannedStore], create: bool) -> None:
    for plan in planned:
        store = bare_store(plan.name, plan.url)
        try:
            await _check_store(store, directory_of(plan.url), create=create)
        finally:
            await store.aclose()


async def _check_store(store: AnyStore, place: Path | None, *, create: bool) -> None:
    """Raises: StoreMismatch: not empty. StoreError: unreachable, or cannot be written to."""
    if place is not None and not _directory_exists(store.name, place, create=create):
        return
    try:
        document = await store.get(ObjectKey(INSTANCE_KEY), size_max=DOCUMENT_SIZE_MAX)
    except ObjectNotFound:
        pass
    else:
        check_version(document, store=store.name)
        raise _occupied(store.name)
    if any(is_in_the_way(info) for info in await store.list("")):
        raise _occupied(store.name)
    if not isinstance(store, DirectoryStore):
        await store.check_lock()
    await store.probe()


def _directory_exists(name: str, place: Path, *, create: bool) -> bool:
    """Check the directory of a store; False if it is still to be made."""
    if not os.path.lexists(place):
        if create:
            return False
        raise StoreMismatch(f"The directory of store {name} does not exist; make it, or give --create-store.")
    try:
        found = set(os.listdir(place))
    except OSError as exc:
        raise StoreMismatch(f"The directory of store {name} cannot be read; check it.") from exc
    if INSTANCE_KEY in found:
        raise _occupied(name)
    if found - _HARMLESS:
        raise StoreMismatch(
            f"The directory of store {name} is not empty; choose an empty directory, of its own."
        )
    return True


def _occupied(name: str) -> StoreMismatch:
    return StoreMismatch(
        f"Store {name} holds a MirrorFS volume already; choose an empty place, for init never overwrites."
    )


# --- what is said ----------------------------------------------------------------------------


def _print_outcome(name: str, new: NewVolume, *, label: str, is_software: bool) -> None:
    print(f"Volume {name} is made.")
    print(f"  volume:      {new.config.volume.hex()}")
    print(f"  fingerprint: {format_fingerprint(new.config.fingerprint)}")
    print(f"  token:       {label}")
    for store in new.config.stores:
        print(f"  store:       {store.name}")
    print()
    print("Note down volume and fingerprint: a restore shows them for comparison.")
    print(
        "Only this token together with the password opens the volume: if the token is lost, all is lost."
        f" Add another with `mirrorfs key add {name}`, or print a code with `mirrorfs key recovery {name}`."
    )
    if is_software:
        print(
            "Warning: this is a software token (SoftHSM, swtpm). Whoever copies its files needs only PIN and"
            " password; use a hardware token for anything that matters."
        )
    places = [place for store in new.config.stores if (place := directory_of(store.url)) is not None]
    if len(places) > 1 and len({os.stat(place).st_dev for place in places}) < len(places):
        print("Warning: stores lie on one disk, so that one failure takes them together; move one elsewhere.")
    print(f"Next: mirrorfs mount {name} MOUNTPOINT")
