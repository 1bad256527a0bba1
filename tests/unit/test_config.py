"""mirrorfs.cli.config: places, strict reading, atomic writing, and what others may not have touched."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.cli.config import (
    StoreConfig,
    TokenConfig,
    VolumeConfig,
    check_volume_name,
    configured_volumes,
    load_config,
    volume_paths,
    write_config,
)
from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.config_limits import LimitsConfig
from mirrorfs.cli.init import parse_stores
from mirrorfs.cli.new_volume import PlannedStore
from mirrorfs.core.timetable import Rates, Timetable, Window
from mirrorfs.errors import ConfigError, MirrorfsError, UsageError

CONFIG = VolumeConfig(
    volume=bytes(range(16)),
    fingerprint=bytes(range(16, 32)),
    stores=(
        StoreConfig("home", "file:///mnt/disk/volume", b"\x01" * 16),
        StoreConfig("s3", 's3://bucket/prefix?endpoint=https://host:9000&region="x\\y"', b"\x02" * 16),
    ),
    tokens=(TokenConfig("pkcs11:token=card", "/usr/lib/module.so"),),
    mirror_delay_s=2.5,
    cache_bytes=20 << 30,
    deduplicate=True,
    alarm=AlarmConfig(max_lag_s=60, max_pending_bytes=5 << 30, command=("/bin/mail", 'a "b"'), user="x"),
    limits=LimitsConfig(
        Timetable(
            Rates(2 << 20, 0),
            (
                Window(frozenset(range(5)), 8 * 60, 19 * 60, Rates(500 << 10, 1 << 20)),
                Window(frozenset(range(7)), 22 * 60 + 30, 6 * 60, Rates()),
            ),
        ),
        parallel=2,
    ),
)
TEXT = CONFIG.to_toml()


def environment(directory: Path) -> dict[str, str]:
    return {
        "MIRRORFS_CONFIG_HOME": str(directory / "config"),
        "MIRRORFS_STATE_HOME": str(directory / "state"),
    }


def test_text_and_back() -> None:
    assert VolumeConfig.from_toml(TEXT) == CONFIG
    bare = replace(CONFIG, tokens=(TokenConfig("pkcs11:"),))
    assert VolumeConfig.from_toml(bare.to_toml()) == bare
    usb = StoreConfig("usb", "file:///media/usb", b"\x03" * 16, rotating=True, append_only=True)
    rotating = replace(
        CONFIG,
        stores=(*CONFIG.stores, usb),
        alarm=AlarmConfig(max_absent_days=60, max_drill_days=35, drill_every_days=30, max_encrypted_files=0),
    )
    assert (
        "max_absent_days = 60\nmax_drill_days = 35\ndrill_every_days = 30\nmax_encrypted_files = 0"
        in rotating.to_toml()
    )
    assert VolumeConfig.from_toml(rotating.to_toml()) == rotating
    assert "rotating" not in TEXT
    off = replace(CONFIG, deduplicate=False)
    assert "deduplicate = false" in off.to_toml()
    assert VolumeConfig.from_toml(off.to_toml()) == off
    assert VolumeConfig.from_toml(TEXT.replace("deduplicate = true\n", "")) == CONFIG


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rotating = 1", "true or false"),
        ("rotates = true", "unknown"),
        ("rotating = true", "always be there"),
    ],
)
def test_stores_that_rotate(line: str, words: str) -> None:
    text = TEXT.replace(f'instance = "{"01" * 16}"', f'instance = "{"01" * 16}"\n{line}')
    text = text.replace(f'instance = "{"02" * 16}"', f'instance = "{"02" * 16}"\n{line}')
    assert text.count(line) == 2
    with pytest.raises(ConfigError, match=words):
        VolumeConfig.from_toml(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format = 1", "format = 2", "another version"),
        ("format = 1", "format = ", "TOML"),
        ("format = 1", "format = 1\nhook = 'rm'", "unknown field hook"),
        ("[[token]]", "[[token]]\npin = '1'", "unknown field token.pin"),
        ('name = "home"', 'name = "home"\nsize = 1', "unknown field store.size"),
        ('name = "home"', 'name = "../home"', "name"),
        ('name = "home"', 'name = "s3"', "one name"),
        ('name = "home"', "name = 7", "must be text"),
        (bytes(range(16)).hex(), bytes(range(15)).hex(), "32 hexadecimal digits"),
        ("mirror_delay_s = 2.5", "mirror_delay_s = 0", "0.1 to 3600"),
        ('cache_size = "20GiB"', 'cache_size = "20 buckets"', "cache_size"),
        ('cache_size = "20GiB"', 'cache_size = "1MiB"', "64MiB to 1024TiB"),
        ('cache_size = "20GiB"', "cache_size = 5", "must be text"),
        (
            "prefetch = true",
            'prefetch = "yes"',
            "prefetch of the volume's configuration must be true or false",
        ),
        (
            "deduplicate = true",
            "deduplicate = 1",
            "deduplicate of the volume's configuration must be true or false",
        ),
        ("mirror_delay_s = 2.5", "mirror_delay_s = true", "number of seconds"),
        ('"/usr/lib/module.so"', '"module.so"', "absolute"),
        ('uri = "pkcs11:token=card"', "", "token.uri"),
        ("[[token]]", "[[tokens]]", "unknown field tokens"),
    ],
)
def test_what_is_refused(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError, match=words):
        VolumeConfig.from_toml(TEXT.replace(old, new, 1))


@given(st.text(max_size=400))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    for candidate in (text, TEXT + text, text + TEXT):
        try:
            VolumeConfig.from_toml(candidate)
        except MirrorfsError as error:
            assert error.exit_code == 2


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "_x", "x" * 64])
def test_names(name: str) -> None:
    check_volume_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "é", "x" * 65, "a+b"])
def test_names_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        check_volume_name(name)


def test_homes(tmp_path: Path) -> None:
    paths = volume_paths("v", {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"})
    assert (paths.config, paths.state) == (Path("/c/mirrorfs/v.toml"), Path("/s/mirrorfs/v"))
    own = volume_paths("v", {"XDG_CONFIG_HOME": "/c", **environment(tmp_path)})
    assert own.config == tmp_path / "config" / "v.toml"
    assert volume_paths("v", {}).config == Path.home() / ".config/mirrorfs/v.toml"
    with pytest.raises(UsageError, match="absolute"):
        volume_paths("v", {"MIRRORFS_CONFIG_HOME": "relative"})


def test_a_view_has_its_own_lock_and_socket(tmp_path: Path) -> None:
    paths = volume_paths("v", environment(tmp_path))
    view = replace(paths, view="0123abcd")
    assert view.state == paths.state
    assert {paths.lock, paths.socket, paths.log}.isdisjoint({view.lock, view.socket, view.log})


def test_write_and_load(tmp_path: Path) -> None:
    paths = volume_paths("v", environment(tmp_path))
    assert configured_volumes(environment(tmp_path)) == []
    with pytest.raises(ConfigError, match="No volume v"):
        load_config(paths)
    write_config(paths, CONFIG)
    assert load_config(paths) == CONFIG
    assert stat.S_IMODE(paths.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(paths.config.parent.stat().st_mode) == 0o700
    assert os.listdir(paths.config.parent) == ["v.toml"]
    (paths.config.parent / ".hidden.toml").touch()
    (paths.config.parent / "notes.txt").touch()
    assert configured_volumes(environment(tmp_path)) == ["v"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    paths = volume_paths("v", environment(tmp_path))
    write_config(paths, CONFIG)
    paths.config.chmod(mode)
    with pytest.raises(ConfigError, match="written by others"):
        load_config(paths)


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    paths = volume_paths("v", environment(tmp_path))
    write_config(paths, CONFIG)
    paths.config.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="written by others"):
        load_config(paths)


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "the tests run as root"
    paths = volume_paths("v", environment(tmp_path))
    write_config(paths, CONFIG)
    os.chown(paths.config, 65534, 65534)
    with pytest.raises(ConfigError, match="another user"):
        load_config(paths)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    paths = volume_paths("v", environment(tmp_path))
    paths.config.parent.mkdir(mode=0o700, parents=True)
    os.mkfifo(paths.config)
    with pytest.raises(ConfigError, match="not a file"):
        load_config(paths)


def test_stores_of_the_command_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    one.symlink_to(two)
    stores = parse_stores([f"a=file://{tmp_path}/x", "b=s3://bucket/prefix"])
    assert stores == [PlannedStore("a", f"file://{tmp_path}/x"), PlannedStore("b", "s3://bucket/prefix")]
    with pytest.raises(UsageError, match="one place"):
        parse_stores([f"a=file://{one}", f"b=file://{two}"])
    with pytest.raises(UsageError, match="one place"):
        parse_stores(["a=s3://bucket/prefix", "b=s3://bucket/prefix/"])
