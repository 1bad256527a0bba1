"""cli/stores.py: one bad store stops no mount while another one is good; when all are bad, it says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.cli import stores as looking
from mirrorfs.cli.config import StoreConfig
from mirrorfs.cli.stores import StoreLook, check_instances, look_at_stores
from mirrorfs.engine.retry import RetryingStore
from mirrorfs.errors import StoreDenied, StoreError, StoreMismatch, StoreTooNew
from mirrorfs.format.control import INSTANCE_KEY, Instance, seal_control
from mirrorfs.format.kdf import VolumeKeys
from tests.support.volumes import HEADER, KEY_SET, KEYS

Harm = Callable[[Path], None]


def document(name: str, instance: bytes, *, keys: VolumeKeys = KEYS) -> bytes:
    return seal_control(Instance(store=name, instance=instance), keys=keys, seed=KEY_SET.writer)


def rot(place: Path) -> None:
    data = bytearray((place / INSTANCE_KEY).read_bytes())
    data[-3] ^= 1
    (place / INSTANCE_KEY).write_bytes(data)


def bloat(place: Path) -> None:
    (place / INSTANCE_KEY).write_bytes(bytes(1 << 20))


def make_foreign(place: Path) -> None:
    other = VolumeKeys.derive(KEY_SET.root, volume=b"another volume!!", generation=1)
    (place / INSTANCE_KEY).write_bytes(document(place.name, b"\x21" * 16, keys=other))


@pytest.fixture
def configs(tmp_path: Path) -> list[StoreConfig]:
    for entry in HEADER.stores:
        (tmp_path / entry.name).mkdir()
        (tmp_path / entry.name / INSTANCE_KEY).write_bytes(document(entry.name, entry.instance))
    return [
        StoreConfig(entry.name, f"file://{tmp_path / entry.name}", entry.instance) for entry in HEADER.stores
    ]


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> dict[str, StoreError]:
    """What the stores of these names answer instead of a document."""
    found: dict[str, StoreError] = {}
    real = looking._look

    async def look(store: RetryingStore, config: StoreConfig) -> StoreLook:
        if config.name in found:
            raise found[config.name]
        return await real(store, config)

    monkeypatch.setattr(looking, "_look", look)
    return found


def check(looks: list[StoreLook]) -> list[str]:
    return check_instances(looks, keys=KEYS, writer=HEADER.public_keys.writer)


async def test_good_stores(configs: list[StoreConfig]) -> None:
    looks = await look_at_stores(configs)
    assert [look.unreachable for look in looks] == [None, None]
    assert check(looks) == []


@pytest.mark.parametrize("bad", ["home", "s3"])
@pytest.mark.parametrize("harm", [rot, bloat])
async def test_one_rotten_document(bad: str, harm: Harm, configs: list[StoreConfig], tmp_path: Path) -> None:
    harm(tmp_path / bad)
    looks = await look_at_stores(configs)
    said = [look.unreachable for look in looks if look.unreachable] + check(looks)
    assert [bad in sentence for sentence in said] == [True]


@pytest.mark.parametrize("harm", [rot, bloat])
async def test_all_documents_rotten(harm: Harm, configs: list[StoreConfig], tmp_path: Path) -> None:
    for config in configs:
        harm(tmp_path / config.name)
    with pytest.raises(StoreMismatch, match="Store home does not"):
        check(await look_at_stores(configs))


async def test_one_store_denies(configs: list[StoreConfig], errors: dict[str, StoreError]) -> None:
    errors["s3"] = StoreDenied("Store s3 refuses these credentials.")
    looks = await look_at_stores(configs)
    assert [look.unreachable for look in looks] == [None, "Store s3 refuses these credentials."]
    assert check(looks) == []


async def test_all_stores_deny(configs: list[StoreConfig], errors: dict[str, StoreError]) -> None:
    for config in configs:
        errors[config.name] = StoreDenied(f"Store {config.name} refuses these credentials.")
    with pytest.raises(StoreDenied, match="Store home"):
        await look_at_stores(configs)


async def test_one_denies_and_the_other_is_empty(
    configs: list[StoreConfig], errors: dict[str, StoreError], tmp_path: Path
) -> None:
    errors["s3"] = StoreDenied("Store s3 refuses these credentials.")
    (tmp_path / "home" / INSTANCE_KEY).unlink()
    with pytest.raises(StoreDenied):
        await look_at_stores(configs)


async def test_a_newer_store_still_stops(configs: list[StoreConfig], errors: dict[str, StoreError]) -> None:
    errors["s3"] = StoreTooNew("Store s3 was written by a newer MirrorFS; use that version.")
    with pytest.raises(StoreTooNew):
        await look_at_stores(configs)


async def test_another_volume_or_instance_is_a_wrong_configuration(
    configs: list[StoreConfig], tmp_path: Path
) -> None:
    (tmp_path / "s3" / INSTANCE_KEY).write_bytes(document("s3", b"\x22" * 16))
    with pytest.raises(StoreMismatch, match="another store of this volume"):
        check(await look_at_stores(configs))
    make_foreign(tmp_path / "s3")
    with pytest.raises(StoreMismatch, match="does not belong to this volume"):
        check(await look_at_stores(configs))
