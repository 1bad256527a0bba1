"""Process hardening, seen from a child that applies it, and swap detection on made-up /proc and /sys."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mirrorfs.cli import doctor
from mirrorfs.cli.daemon import say_what_is_not_locked
from mirrorfs.cli.doctor import Verdict
from mirrorfs.drivers import process
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import SYNCS_MAX, ThreadOffload
from mirrorfs.drivers.process import boot_id, hibernation_possible, unencrypted_swap

HARDENED = """
import ctypes, os, resource
from mirrorfs.drivers.process import harden_process
result = harden_process()
libc = ctypes.CDLL(None)
assert libc.prctl(3, 0, 0, 0, 0) == 0, "PR_GET_DUMPABLE"
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert os.umask(0) == 0o077
locked = [line for line in open("/proc/self/status") if line.startswith("VmLck")][0].split()[1]
assert (int(locked) > 0) == result.memory_locked, (locked, result)
assert (libc.prctl(58, 0, 0, 0, 0) == 1) == result.io_flusher, "PR_GET_IO_FLUSHER"
blocks = [bytes(1 << 20) for _ in range(64)]  # memory can still be had
print("hardened")
"""


def test_a_hardened_process() -> None:
    child = subprocess.run([sys.executable, "-c", HARDENED], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (0, "hardened\n", "")


@pytest.mark.parametrize(
    ("limit", "capable", "expected"),
    [(8 << 20, False, 8 << 20), (8 << 20, True, None), (resource.RLIM_INFINITY, False, None)],
)
def test_where_memory_can_be_locked(
    limit: int, capable: bool, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(process, "_has_capability", lambda _: capable)
    assert process.memory_lock_limit() == expected
    finding = doctor._locked_memory()
    assert finding.verdict is (Verdict.OK if expected is None else Verdict.NOTE)
    assert ("8.0 MiB" in finding.text) == (expected is not None)


def test_memory_that_is_not_locked_is_a_note_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mirrorfs"):
        say_what_is_not_locked(process.Hardening(memory_locked=True, io_flusher=False))
        assert caplog.messages == []
        say_what_is_not_locked(process.Hardening(memory_locked=False, io_flusher=False))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "swap" in caplog.text


# --- swap ------------------------------------------------------------------------------------


class Machine:
    """A /proc and a /sys in which one device, that of tmp_path, stands for the swap device."""

    def __init__(self, tmp_path: Path) -> None:
        self.proc = tmp_path / "proc"
        self.sys = tmp_path / "sys"
        self.swap_file = tmp_path / "swap file"
        self.swap_file.touch()
        self.proc.mkdir()
        device = tmp_path.stat().st_dev
        self.device = self.sys / "dev/block" / f"{os.major(device)}:{os.minor(device)}"
        self.swaps(str(self.swap_file).replace(" ", "\\040"))

    def swaps(self, *paths: str) -> None:
        lines = ["Filename\tType\tSize\tUsed\tPriority"] + [f"{path} file 1 0 -2" for path in paths]
        (self.proc / "swaps").write_text("\n".join(lines) + "\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def unencrypted(self) -> bool | None:
        return unencrypted_swap(self.proc, self.sys)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_swap_leaks_nothing(machine: Machine) -> None:
    machine.swaps()
    assert machine.unencrypted() is False


def test_swap_on_a_plain_partition(machine: Machine) -> None:
    machine.device.mkdir(parents=True)
    assert machine.unencrypted() is True


def test_swap_on_dm_crypt(machine: Machine) -> None:
    machine.write(machine.device / "dm/uuid", "CRYPT-LUKS2-0123-swap\n")
    assert machine.unencrypted() is False


def test_swap_on_lvm_over_dm_crypt_and_over_nothing(machine: Machine) -> None:
    machine.write(machine.device / "dm/uuid", "LVM-0123\n")
    machine.write(machine.device / "slaves/dm-0/dm/uuid", "CRYPT-LUKS2-0123-disk\n")
    assert machine.unencrypted() is False
    (machine.device / "slaves/sdb1").mkdir()  # the volume spans a second, plain disk
    assert machine.unencrypted() is True


def test_swap_in_compressed_memory(machine: Machine) -> None:
    machine.write(machine.device / "backing_dev", "none\n")
    assert machine.unencrypted() is False
    machine.write(machine.device / "backing_dev", "/dev/sda3\n")
    assert machine.unencrypted() is True


def test_what_cannot_be_told_is_none_unless_another_area_is_plain(machine: Machine, tmp_path: Path) -> None:
    assert machine.unencrypted() is None  # a device that /sys does not know
    machine.swaps(str(tmp_path / "gone"))
    assert machine.unencrypted() is None
    machine.device.mkdir(parents=True)
    machine.swaps(str(tmp_path / "gone"), str(machine.swap_file).replace(" ", "\\040"))
    assert machine.unencrypted() is True
    assert unencrypted_swap(tmp_path / "nowhere", machine.sys) is None


def test_layers_without_end_are_given_up(machine: Machine) -> None:
    (machine.device / "slaves").mkdir(parents=True)
    (machine.device / "slaves" / "itself").symlink_to(machine.device)
    assert machine.unencrypted() is None


def test_hibernation(machine: Machine) -> None:
    assert hibernation_possible(machine.sys) is None
    machine.write(machine.sys / "power/state", "freeze mem\n")
    assert hibernation_possible(machine.sys) is False
    machine.write(machine.sys / "power/state", "freeze mem disk\n")
    machine.write(machine.sys / "power/disk", "[platform] shutdown reboot\n")
    assert hibernation_possible(machine.sys) is True
    machine.write(machine.sys / "power/disk", "[disabled]\n")
    assert hibernation_possible(machine.sys) is False


# --- clock and threads -----------------------------------------------------------------------


def test_clocks_do_not_run_backwards() -> None:
    clock = SystemClock()
    assert clock.boottime_ns() <= clock.boottime_ns()
    assert clock.now_ns() > 1_700_000_000_000_000_000


async def test_work_and_syncs_do_not_wait_for_each_other() -> None:
    offload = ThreadOffload()
    release = trio.Event()
    running: list[str] = []

    def block(name: str) -> None:
        trio.from_thread.run_sync(running.append, name)
        trio.from_thread.run(release.wait)

    async with trio.open_nursery() as nursery:
        for _ in range(SYNCS_MAX + 2):
            nursery.start_soon(offload.sync, lambda: block("sync"))
        while running.count("sync") < SYNCS_MAX:
            await trio.lowlevel.checkpoint()
        assert await offload.run(lambda: 7) == 7  # all syncs are taken, work is not
        assert running.count("sync") == SYNCS_MAX
        release.set()
    assert running.count("sync") == SYNCS_MAX + 2


async def test_started_work_ends_in_spite_of_cancelling_and_errors_come_through() -> None:
    offload = ThreadOffload()
    ended: list[str] = []

    def work() -> str:
        trio.from_thread.run_sync(scope.cancel)
        ended.append("work")
        return "result"

    with trio.CancelScope() as scope:
        assert await offload.run(work) == "result"
    assert ended == ["work"]

    def fail() -> None:
        raise KeyError("from the thread")

    with pytest.raises(KeyError):
        await offload.sync(fail)


def slowed(seconds: float) -> Callable[[], None]:
    """A sync that takes as long, as the clock of the offload sees it."""
    return lambda: clock_ns.__setitem__(0, clock_ns[0] + int(seconds * 1e9))


clock_ns = [0]


async def test_syncs_are_brief_once_they_have_shown_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.drivers.os_threads.time.monotonic_ns", lambda: clock_ns[0])
    offload = ThreadOffload()
    assert not offload.syncs_are_brief()  # nothing is known
    await offload.sync(slowed(0.0002))
    assert offload.syncs_are_brief()
    offload.sync_here(slowed(0.1))
    assert not offload.syncs_are_brief()  # one slow sync, and the next ones go to threads
    count = 0
    while not offload.syncs_are_brief():
        await offload.sync(slowed(0.0001))
        count += 1
    assert 10 < count < 100


async def test_a_sync_here_gives_result_and_errors_and_counts_both() -> None:
    offload = ThreadOffload()
    assert offload.sync_here(lambda: 7) == 7

    def fail() -> None:
        raise KeyError("from the disk")

    with pytest.raises(KeyError):
        offload.sync_here(fail)


async def test_work_in_threads_is_seen() -> None:
    offload = ThreadOffload()
    seen: list[bool] = []

    def look() -> None:
        trio.from_thread.run_sync(lambda: seen.append(offload.is_working()))

    await offload.run(look)
    await offload.sync(look)
    assert seen == [True, True]
    assert not offload.is_working()


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    # In a process of its own: the setting is for good.
    program = (
        "import ctypes, sys; from mirrorfs.drivers.process import keep_freed_memory\n"
        "kept = keep_freed_memory()\n"
        "assert kept == hasattr(ctypes.CDLL(None), 'mallopt')\n"
        "import resource; faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "bytes(3 << 20); before = faults()\n"
        "for _ in range(50): bytes(3 << 20)\n"
        "print(faults() - before if kept else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 768 * 5  # each would fault in 768 pages


def test_a_boot_has_one_id(tmp_path: Path) -> None:
    """Where it cannot be told, none is taken for another: a lease of before is then watched."""
    assert boot_id() == boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot_id(tmp_path) != boot_id(tmp_path)
    path = tmp_path / "sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True)
    path.write_text("\n")
    assert boot_id(tmp_path) != boot_id(tmp_path)
    path.write_text("one\n")
    assert boot_id(tmp_path) == "one"
