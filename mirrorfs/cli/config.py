"""Where a volume's configuration and state lie, and reading and writing the configuration.

    $MIRRORFS_CONFIG_HOME/VOLUME.toml     0600 in 0700; no secrets, but it says where data goes
    $MIRRORFS_STATE_HOME/VOLUME/          0700; the local log, index, lock, control socket

Without these variables the directories are XDG_CONFIG_HOME/mirrorfs and XDG_STATE_HOME/mirrorfs. What
others can write is refused: a configuration names libraries to load and places to send data to.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.config_limits import LimitsConfig
from mirrorfs.cli.config_lock import LockConfig
from mirrorfs.cli.config_retention import policy_from, policy_lines
from mirrorfs.cli.config_table import Table, quoted
from mirrorfs.core.retention import Policy
from mirrorfs.core.sizes import format_size
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.cache import CACHE_SIZE, CACHE_SIZE_MIN
from mirrorfs.errors import ConfigError, FormatError, UsageError
from mirrorfs.format.header import check_store_name
from mirrorfs.format.kdf import format_fingerprint

CONFIG_FORMAT = 1
CONFIG_SIZE_MAX_BYTES = 64 * 1024
NAME_LENGTH_MAX = 64
STORES_MAX = 16
MIRROR_DELAY_MIN_S = 0.1
TOKENS_MAX = 32
MIRROR_DELAY_MAX_S = 3600.0
DEFAULT_MIRROR_DELAY_S = 10.0

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def check_volume_name(name: str) -> None:
    """Raises: UsageError: not 1..64 letters, digits, '.', '_' or '-', or a dot or dash first."""
    if len(name) > NAME_LENGTH_MAX or _NAME.fullmatch(name) is None:
        raise UsageError(
            "A volume's name has 1 to 64 letters, digits, dots, dashes and underscores, and begins with none"
            " of the first two; choose such a name."
        )


# --- places ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VolumePaths:
    """Where everything local of one volume lies."""

    name: str
    config: Path
    state: Path
    view: str = ""
    """Identifies a read-only mount, of which there may be several beside a writable one; empty for that."""

    @property
    def run(self) -> Path:
        """What belongs to one mount: the state directory itself, or that of a read-only view."""
        return self.views / self.view if self.view else self.state

    @property
    def views(self) -> Path:
        """Directories of read-only views, to be thrown away with them."""
        return self.state / "views"

    @property
    def lock(self) -> Path:
        """Locked (flock) as long as the mount exists."""
        return self.run / "lock"

    @property
    def change_lock(self) -> Path:
        return self.state / "change.lock"

    @property
    def socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def log(self) -> Path:
        """What the daemon has to say; no names of files, no secrets."""
        return self.run / "mirrorfs.log"

    @property
    def headers(self) -> Path:
        return self.state / "objects" / "header"


def _home(environment: Mapping[str, str], *, own: str, xdg: str, default: str) -> Path:
    if environment.get(own):
        path = Path(environment[own])
    elif environment.get(xdg):
        path = Path(environment[xdg]) / "mirrorfs"
    else:
        path = Path.home() / default / "mirrorfs"
    if not path.is_absolute():
        raise UsageError(f"The directory named by {own} or {xdg} is not an absolute path; correct it.")
    return path


def config_home(environment: Mapping[str, str]) -> Path:
    """Raises: UsageError: the variable holds a relative path."""
    return _home(environment, own="MIRRORFS_CONFIG_HOME", xdg="XDG_CONFIG_HOME", default=".config")


def state_home(environment: Mapping[str, str]) -> Path:
    """Raises: UsageError: the variable holds a relative path."""
    return _home(environment, own="MIRRORFS_STATE_HOME", xdg="XDG_STATE_HOME", default=".local/state")


def volume_paths(name: str, environment: Mapping[str, str]) -> VolumePaths:
    """Raises: UsageError: no name of a volume."""
    check_volume_name(name)
    return VolumePaths(
        name=name,
        config=config_home(environment) / f"{name}.toml",
        state=state_home(environment) / name,
    )


def configured_volumes(environment: Mapping[str, str]) -> list[str]:
    """Names of all volumes that have a configuration, sorted."""
    try:
        found = os.listdir(config_home(environment))
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise ConfigError("The configuration directory cannot be read; check its permissions.") from exc
    names = (name.removesuffix(".toml") for name in found if name.endswith(".toml"))
    return sorted(name for name in names if len(name) <= NAME_LENGTH_MAX and _NAME.fullmatch(name))


def check_private_directory(path: Path, *, what: str) -> None:
    """Refuse a directory that others could have changed.

    Raises: ConfigError: not a directory, of another user, or writable by group or others.
    """
    try:
        found = os.stat(path)
    except OSError as exc:
        raise ConfigError(f"The {what} directory cannot be read; check that it exists and is yours.") from exc
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"The {what} directory is not a directory; remove what is there.")
    _check_owner(found, what=f"{what} directory")


def _check_owner(found: os.stat_result, *, what: str) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"The {what} belongs to another user; take ownership of it first.")
    if found.st_mode & 0o022:
        raise ConfigError(f"The {what} can be written by others; run 'chmod go-w' on it first.")


# --- values ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One store of a volume."""

    name: str
    url: str
    instance: bytes
    """UUID of the store's instance, 16 bytes."""
    rotating: bool = False
    """It may be away for long, and catches up when it is back."""
    append_only: bool = False
    """This PC deletes nothing there: another machine prunes it."""


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """How the token is reached when the command line does not say."""

    uri: str
    module_path: str | None = None


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """The configuration of one volume; holds no secret."""

    volume: bytes
    """The volume's UUID, 16 bytes."""
    fingerprint: bytes
    """Pinned: a header whose key has another is refused."""
    stores: tuple[StoreConfig, ...]
    tokens: tuple[TokenConfig, ...]
    """In the order in which they are tried."""
    mirror_delay_s: float = DEFAULT_MIRROR_DELAY_S
    cache_bytes: int = CACHE_SIZE
    """Bound of what is kept locally of segments that every store holds."""
    prefetch: bool = True
    """Whether the local cache is filled in the background."""
    deduplicate: bool = True
    """Whether what all stores have is referred to when it is written again."""
    history_directory: bool = True
    """Whether a mount has its history below `.mirrorfs`."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    lock: LockConfig = field(default_factory=LockConfig)
    retention: Policy | None = None
    """Which moments are kept; None: all."""

    def to_toml(self) -> str:
        """The text of the file."""
        lines = [
            "# A MirrorFS volume, written by `mirrorfs init`. It holds no secrets.",
            f"format = {CONFIG_FORMAT}",
            f"volume = {quoted(self.volume.hex())}",
            f"fingerprint = {quoted(format_fingerprint(self.fingerprint))}",
            f"mirror_delay_s = {self.mirror_delay_s!r}",
            f"cache_size = {quoted(format_size(self.cache_bytes))}",
            f"prefetch = {str(self.prefetch).lower()}",
            f"deduplicate = {str(self.deduplicate).lower()}",
            f"history_directory = {str(self.history_directory).lower()}",
        ]
        for token in self.tokens:
            lines += ["", "[[token]]", f"uri = {quoted(token.uri)}"]
            if token.module_path is not None:
                lines.append(f"module_path = {quoted(token.module_path)}")
        for store in self.stores:
            lines += [
                "",
                "[[store]]",
                f"name = {quoted(store.name)}",
                f"url = {quoted(store.url)}",
                f"instance = {quoted(store.instance.hex())}",
                *(["rotating = true"] if store.rotating else []),
                *(["append_only = true"] if store.append_only else []),
            ]
        # [limits] is the last: its own tables follow it.
        lines += (
            policy_lines(self.retention)
            + self.alarm.to_lines()
            + self.lock.to_lines()
            + self.limits.to_lines()
        )
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> VolumeConfig:
        """Raises: ConfigError: malformed, or a field that is missing, unknown or out of range."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError("The volume's configuration is not valid TOML; correct the file.") from exc
        read = Table(table, where="", known={"format", "volume", "fingerprint", "mirror_delay_s"})
        read.known |= {"cache_size", "prefetch", "deduplicate", "token", "store", "alarm", "limits", "lock"}
        read.known |= {"retention", "history_directory"}
        read.check()
        version = table.get("format")
        if version != CONFIG_FORMAT:
            raise ConfigError("The volume's configuration is of another version; use that MirrorFS.")
        delay_s = table.get("mirror_delay_s", DEFAULT_MIRROR_DELAY_S)
        if not isinstance(delay_s, int | float) or isinstance(delay_s, bool):
            raise ConfigError("mirror_delay_s in the volume's configuration is not a number of seconds.")
        if not MIRROR_DELAY_MIN_S <= delay_s <= MIRROR_DELAY_MAX_S:
            raise ConfigError("mirror_delay_s in the volume's configuration must be from 0.1 to 3600.")
        return cls(
            volume=read.identifier("volume"),
            fingerprint=read.identifier("fingerprint"),
            stores=_stores(table.get("store")),
            tokens=_tokens(table.get("token")),
            mirror_delay_s=float(delay_s),
            cache_bytes=read.size("cache_size", default=CACHE_SIZE, least=CACHE_SIZE_MIN),
            prefetch=read.switch("prefetch", default=True),
            deduplicate=read.switch("deduplicate", default=True),
            history_directory=read.switch("history_directory", default=True),
            alarm=AlarmConfig.from_table(table.get("alarm")),
            limits=LimitsConfig.from_table(table.get("limits")),
            lock=LockConfig.from_table(table.get("lock")),
            retention=policy_from(table.get("retention")),
        )


def _tokens(value: object) -> tuple[TokenConfig, ...]:
    # A single table is what programs wrote that knew one token.
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not 1 <= len(items) <= TOKENS_MAX:
        raise ConfigError(f"The volume's configuration must have 1 to {TOKENS_MAX} [[token]] tables.")
    return tuple(_token(item) for item in items)


def _token(value: object) -> TokenConfig:
    if not isinstance(value, dict):
        raise ConfigError("A [[token]] of the volume's configuration is not a table.")
    read = Table(value, where="token.", known={"uri", "module_path"})
    read.check()
    path = read.text("module_path") if "module_path" in value else None
    if path is not None and not path.startswith("/"):
        raise ConfigError("Field token.module_path of the volume's configuration must be an absolute path.")
    return TokenConfig(uri=read.text("uri"), module_path=path)


def _stores(value: object) -> tuple[StoreConfig, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= STORES_MAX:
        raise ConfigError(f"The volume's configuration must have 1 to {STORES_MAX} [[store]] tables.")
    stores = []
    for item in value:
        if not isinstance(item, dict):
            raise ConfigError("A [[store]] of the volume's configuration is not a table.")
        read = Table(item, where="store.", known={"name", "url", "instance", "rotating", "append_only"})
        read.check()
        name = read.text("name")
        check_configured_store_name(name)
        flags = [read.switch(flag, default=False) for flag in ("rotating", "append_only")]
        stores.append(StoreConfig(name, read.text("url"), read.identifier("instance"), *flags))
    if len({store.name for store in stores}) != len(stores):
        raise ConfigError("Two stores of the volume's configuration have one name; correct it.")
    if all(store.rotating for store in stores):
        raise ConfigError(
            "All stores of the volume's configuration rotate; one at least must always be there."
        )
    return tuple(stores)


def check_configured_store_name(name: str) -> None:
    """Raises: ConfigError: the format does not allow such a name for a store."""
    try:
        check_store_name(name)
    except FormatError as exc:
        raise ConfigError(str(exc)) from exc


# --- files -----------------------------------------------------------------------------------


def load_config(paths: VolumePaths) -> VolumeConfig:
    """Read a volume's configuration.

    Raises: ConfigError: there is none, it is malformed, or others could have written it.
    """
    try:
        fd = os.open(paths.config, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"No volume {paths.name} is configured here; `mirrorfs status` lists those that are."
        ) from exc
    except OSError as exc:
        raise ConfigError(f"The configuration of volume {paths.name} cannot be read; check it.") from exc
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"The configuration of volume {paths.name} is not a file; correct it.")
        _check_owner(found, what=f"configuration of volume {paths.name}")
        check_private_directory(paths.config.parent, what="configuration")
        data = file.read(CONFIG_SIZE_MAX_BYTES + 1)
    if len(data) > CONFIG_SIZE_MAX_BYTES:
        raise ConfigError(f"The configuration of volume {paths.name} is too long; correct it.")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"The configuration of volume {paths.name} is not UTF-8; correct it.") from None
    return VolumeConfig.from_toml(text)


def write_config(paths: VolumePaths, config: VolumeConfig) -> None:
    """Write a configuration atomically and durably, 0600 in a directory of 0700.

    Raises: ConfigError: others could change it there. DiskError.
    """
    text = config.to_toml()
    assert VolumeConfig.from_toml(text) == config
    make_private_directory(paths.config.parent, what="configuration")
    LocalDisk(paths.config.parent).write_whole(paths.config.name, text.encode())


def make_private_directory(path: Path, *, what: str) -> None:
    """Make a directory with its parents (0700) if it is not there, and check it. Raises: ConfigError."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    try:
        for place in reversed(missing):
            place.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"The {what} directory cannot be made; check the place above it.") from exc
    check_private_directory(path, what=what)
