"""`mirrorfs key rotate` by the real command line: what an old header opens, other PCs, and kills."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import trio

from mirrorfs.cli.config import TokenConfig
from mirrorfs.cli.tokens import SecretSources, make_tokens
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.format.header import parse_header
from tests.cli.test_key import add_spare, every_header, headers, refused
from tests.golden.independent_log import Reader
from tests.golden.independent_reader import read_tree
from tests.support.mounted import CHEAP, PASSWORD, Mounted, mounted_volume
from tests.support.softhsm import MODULE


def write(volume: Mounted, name: str) -> None:
    volume.mount()
    (volume.mountpoint / name).write_text(f"contents of {name}")
    volume.umount()


def names_in(folder: Path) -> list[str]:
    for path in folder.iterdir():
        assert path.read_text() == f"contents of {path.name}"
    return sorted(path.name for path in folder.iterdir())


def test_an_old_header_and_a_removed_token_open_nothing_new(tmp_path: Path) -> None:
    with mounted_volume(tmp_path, mount=False) as volume:
        spare = add_spare(volume)
        write(volume, "before")
        kept = tmp_path / "kept"
        shutil.copytree(volume.stores["b"] / "header", kept)
        said = volume.must("key", "remove", volume.name, "spare")
        assert "key generation 2" in said
        write(volume, "after")

        # With the whole store of today, an old header, that token and the password:
        command = ("restore", "--token", spare.uri(), "--yes", "--store")
        stolen = tmp_path / "stolen"
        shutil.copytree(volume.stores["b"], stolen)
        shutil.rmtree(stolen / "header")
        shutil.copytree(kept, stolen / "header")
        said = refused(volume, *command, f"file://{stolen}", str(tmp_path / "opened"), code=5)
        assert "There are newer commits that cannot be restored" in said
        assert names_in(tmp_path / "opened") == ["before"]

        # The store as it is says that this token was removed.
        said = refused(volume, *command, f"file://{volume.stores['b']}", str(tmp_path / "none"), code=3)
        assert "No slot that was asked for" in said
        for store in volume.stores:
            volume.must(
                "restore", "--yes", "--token", "pkcs11:token=practice",
                "--store", f"file://{volume.stores[store]}", str(tmp_path / f"all-{store}"),
            )  # fmt: skip
            assert names_in(tmp_path / f"all-{store}") == ["after", "before"]
        assert "all good" in volume.must("verify", volume.name, "--deep")

        # A reader that was written from the specification alone reads it, too.
        objects = trio.run(objects_in, volume.stores["a"])
        reader = Reader(objects, PASSWORD, token_secret(volume, objects))
        assert set(read_tree(reader, from_checkpoint=False)) == {"/", "/after", "/before"}
        assert sorted(reader.generations) == [1, 2]


async def objects_in(place: Path) -> dict[str, bytes]:
    """Every object of a directory store."""
    store = DirectoryStore("a", place)
    found: dict[str, bytes] = {}
    while page := await store.list("", start_after=max(found, default="")):
        for info in page:
            found[info.key] = await store.get(info.key)
    await store.aclose()
    return found


def token_secret(volume: Mounted, objects: dict[str, bytes]) -> bytes:
    """What the token yields for the slot `first`."""
    header = parse_header(objects[max(key for key in objects if key.startswith("header/"))])
    (token,) = make_tokens(
        [TokenConfig("pkcs11:token=practice", MODULE)],
        SecretSources(None, volume.env["MIRRORFS_PIN_FILE"], {}),
    )
    (slot,) = (slot for slot in header.slots if slot.name == "first")
    return token.secret_for(slot.token, volume=header.volume, authorise=bytes)


def test_rotation_waits_for_nobody_and_needs_everybody(tmp_path: Path) -> None:
    with mounted_volume(tmp_path) as volume:
        said = refused(volume, "key", "rotate", volume.name, code=2)
        assert "unmount it first" in said
        said = volume.must(
            "key",
            "passwd",
            volume.name,
            CHEAP,
            "--new-password-file",
            volume.env["MIRRORFS_PASSWORD_FILE"],
        )
        assert "until the keys are rotated: unmount" in said
        (volume.mountpoint / "before").write_text("contents of before")
        volume.umount()
        away = volume.stores["b"].rename(tmp_path / "away")
        generations = [header.generation for header in headers(volume.stores["a"])]
        said = refused(volume, "key", "rotate", volume.name, code=4)
        assert "Keys are rotated when every store answers" in said
        assert [header.generation for header in headers(volume.stores["a"])] == generations
        away.rename(volume.stores["b"])
        assert "key generation 2" in volume.must("key", "rotate", volume.name)


def pinned_in(config: Path) -> str:
    found = re.search(r'fingerprint = "(.*)"', config.read_text())
    assert found is not None
    return found[1]


def test_another_pc_follows_the_new_keys(tmp_path: Path) -> None:
    with mounted_volume(tmp_path, mount=False) as volume:
        spare = add_spare(volume)
        write(volume, "before")
        here = dict(volume.env)
        there = here | {
            "MIRRORFS_CONFIG_HOME": str(tmp_path / "config-2"),
            "MIRRORFS_STATE_HOME": str(tmp_path / "state-2"),
        }
        stores = [f"--store=file://{place}" for place in volume.stores.values()]
        volume.env = there
        volume.must("attach", volume.name, *stores, "--yes", "--token", "pkcs11:token=practice")
        volume.env = here
        volume.must("key", "rotate", volume.name)
        write(volume, "after")
        volume.env = there
        pinned = pinned_in(tmp_path / "config-2" / f"{volume.name}.toml")
        volume.must("mount", volume.name, str(volume.mountpoint))
        assert names_in(volume.mountpoint) == ["after", "before"]
        (volume.mountpoint / "there").write_text("contents of there")
        volume.must("umount", volume.name)
        now = pinned_in(tmp_path / "config-2" / f"{volume.name}.toml")
        assert pinned != now == pinned_in(volume.config)

        # A PC whose token was left out is told so.
        volume.env = here
        volume.must("key", "remove", volume.name, "spare")
        volume.env = there
        said = refused(volume, "key", "check", volume.name, "--token", spare.uri(), code=3)
        assert "No slot that was asked for" in said
        said = refused(volume, "mount", volume.name, str(volume.mountpoint), "--token", spare.uri(), code=3)
        assert "No slot that was asked for" in said


def test_what_another_pc_wrote_offline_meanwhile_is_exported(tmp_path: Path) -> None:
    with mounted_volume(tmp_path, mount=False) as volume:
        write(volume, "before")
        here = dict(volume.env)
        there = here | {
            "MIRRORFS_CONFIG_HOME": str(tmp_path / "config-2"),
            "MIRRORFS_STATE_HOME": str(tmp_path / "state-2"),
        }
        stores = [f"--store=file://{place}" for place in volume.stores.values()]
        volume.env = there
        volume.must("attach", volume.name, *stores, "--yes", "--token", "pkcs11:token=practice")
        write(volume, "there")
        for place in volume.stores.values():
            place.rename(f"{place}.away")
        volume.must("mount", volume.name, str(volume.mountpoint))
        (volume.mountpoint / "offline").write_text("contents of offline")
        volume.must("umount", volume.name, "--no-wait")
        for place in volume.stores.values():
            Path(f"{place}.away").rename(place)
        volume.env = here
        volume.must("key", "rotate", volume.name)
        write(volume, "after")
        volume.env = there
        said = refused(volume, "mount", volume.name, str(volume.mountpoint), code=5)
        assert "Another machine went on from an earlier state than this one's" in said
        assert "restore --from-state" in said
        volume.must("restore", "--from-state", volume.name, str(tmp_path / "exported"), "--yes")
        assert names_in(tmp_path / "exported") == ["before", "offline", "there"]
        assert (tmp_path / "exported" / "offline").read_text() == "contents of offline"
        volume.must("attach", "--again", volume.name, *stores, "--yes", "--token", "pkcs11:token=practice")
        volume.must("mount", volume.name, str(volume.mountpoint))
        assert names_in(volume.mountpoint) == ["after", "before", "there"]
        volume.must("umount", volume.name)


KILLING = """
import importlib, os, signal, sys
module, name = sys.argv.pop(1).rsplit(".", 1)
def stand_in(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(importlib.import_module(module), name, stand_in)
from mirrorfs.__main__ import main
sys.exit(main())
"""
"""Runs a command that is killed instead of calling a function."""


def test_killed_at_every_step_it_goes_on(tmp_path: Path) -> None:
    with mounted_volume(tmp_path, mount=False) as volume:
        add_spare(volume)
        write(volume, "0")
        places = (volume.state / "objects", *volume.stores.values())
        steps = ("rotate_keys", "keep_header", "write_config", "spread_header", "_remove_index", "_flush")
        for number, step in enumerate(steps, start=1):
            killed = [sys.executable, "-c", KILLING, f"mirrorfs.cli.key_rotation.{step}"]
            outcome = subprocess.run(
                [*killed, "key", "rotate", volume.name],
                env=volume.env,
                cwd="/",
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            assert outcome.returncode == -9, outcome.stderr
            assert "Slot first opens" in volume.must("key", "check", volume.name), step
            write(volume, str(number))
            newest = {headers(place)[-1].key_generation for place in places}
            assert len(newest) == 1, f"after {step} and a mount every place has the same header"
        assert len(every_header(places[:1])) == 2 + len(steps) - 2
        volume.must("key", "rotate", volume.name)
        for name, place in volume.stores.items():
            volume.must(
                "restore", "--yes", "--token", "pkcs11:token=spare",
                "--store", f"file://{place}", str(tmp_path / f"restored-{name}"),
            )  # fmt: skip
            assert names_in(tmp_path / f"restored-{name}") == [
                str(number) for number in range(len(steps) + 1)
            ]
        assert "all good" in volume.must("verify", volume.name, "--deep")
