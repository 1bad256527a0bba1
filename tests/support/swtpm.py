"""swtpm as the TPM of tests: the real reference code in a process of its own, behind a Unix socket.

Tests act as the machine's owner through `admin`, and listen on the wire through `Relay`. Nothing outlives
the block that started it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tpm2_pytss import ESAPI, ESYS_TR, TPM2_CAP, TPM2_PT

START_DEADLINE_S = 30.0
HEADER_SIZE_BYTES = 10
"""Of a TPM command: u16 tag, u32 size, u32 command code."""


class Swtpm:
    """A software TPM with a state of its own, which lasts over its restarts."""

    def __init__(self, directory: Path) -> None:
        self._state = directory / "state"
        self._state.mkdir()
        self.socket = directory / "tpm"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"tpm2:?tcti=swtpm:path={self.socket}"

    def start(self) -> None:
        """Returns once it answers."""
        self._process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}"),
                *("--server", f"type=unixio,path={self.socket}"),
                *("--ctrl", f"type=unixio,path={self.socket}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                for path in (f"{self.socket}.ctrl", str(self.socket)):
                    with socket.socket(socket.AF_UNIX) as probe:
                        probe.connect(path)
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """As when the power fails; its sockets are gone then, too."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for path in (self.socket, self.socket.with_name(f"{self.socket.name}.ctrl")):
            path.unlink(missing_ok=True)

    def restart(self) -> None:
        """In good order, as a machine does."""
        with self.admin() as esys:
            esys.shutdown(0)  # TPM2_SU_CLEAR
        self.kill()
        self.start()

    @contextmanager
    def admin(self) -> Iterator[ESAPI]:
        """The TPM as its owner has it, without any of our code between."""
        with ESAPI(f"swtpm:path={self.socket}") as esys:
            yield esys

    def wrong_tries(self) -> int:
        """How many it counts."""
        with self.admin() as esys:
            _, found = esys.get_capability(TPM2_CAP.TPM_PROPERTIES, TPM2_PT.LOCKOUT_COUNTER, 1)
            (counter,) = found.data.tpmProperties
            assert counter.property == TPM2_PT.LOCKOUT_COUNTER
            return int(counter.value)

    def forgive(self, *, tries_max: int = 3, interval_s: int = 1000) -> None:
        """Forget wrong tries, and set how many it takes and how soon it forgets one."""
        with self.admin() as esys:
            esys.dictionary_attack_parameters(tries_max, interval_s, 1000)
            esys.dictionary_attack_lock_reset(ESYS_TR.LOCKOUT)

    def clear(self) -> None:
        """What `tpm2_clear` does: new seeds, so that nothing sealed before can be undone."""
        with self.admin() as esys:
            esys.clear(ESYS_TR.LOCKOUT)


@contextmanager
def swtpm() -> Iterator[Swtpm]:
    """A new TPM, running, for the length of the block."""
    # Paths of Unix sockets are short, those of pytest's directories are not.
    directory = Path(tempfile.mkdtemp(prefix="swtpm-"))
    tpm = Swtpm(directory)
    try:
        tpm.start()
        yield tpm
    finally:
        tpm.kill()
        shutil.rmtree(directory)


def command_code(command: bytes) -> int:
    return int.from_bytes(command[6:HEADER_SIZE_BYTES], "big")


class Relay:
    """Stands between a program and a TPM, and keeps every byte that passes.

    Args:
        cut_at: command code at which it closes the connection instead of passing the command on.
        alter: command code whose answer is changed in its last byte.
    """

    def __init__(self, tpm: Swtpm, *, cut_at: int | None = None, alter: int | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="relay-"))
        self._tpm = tpm
        self._cut_at = cut_at
        self._alter = alter
        self._listeners: list[socket.socket] = []
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.messages: list[bytes] = []
        """Commands, as they came."""
        self.seen = bytearray()
        """What went either way."""

    @property
    def socket(self) -> Path:
        return self._directory / "tpm"

    @property
    def uri(self) -> str:
        return f"tpm2:?tcti=swtpm:path={self.socket}"

    def __enter__(self) -> Relay:
        for suffix in ("", ".ctrl"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{self.socket}{suffix}")
            listener.listen()
            self._listeners.append(listener)
            self._start(self._accept, listener, f"{self._tpm.socket}{suffix}")
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._listeners, *self._connections):
            try:
                each.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
            except OSError:
                pass  # the other side was faster
        for thread in self._threads:
            thread.join(30)
        for each in (*self._listeners, *self._connections):
            each.close()
        shutil.rmtree(self._directory)
        assert not any(thread.is_alive() for thread in self._threads)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, path: str) -> None:
        is_data = not path.endswith(".ctrl")
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(path)
            self._connections += [near, far]
            self._start(self._pass_on, near, far, is_data)

    def _pass_on(self, near: socket.socket, far: socket.socket, is_data: bool) -> None:
        """One exchange after another: a TPM answers each command before it takes the next."""
        try:
            while command := near.recv(65536):
                code = 0
                if is_data:
                    self.seen += command
                    code = command_code(command)
                    self.messages.append(command)
                if is_data and code == self._cut_at:
                    break
                far.sendall(command)
                answer = far.recv(65536)
                if is_data and code == self._alter:
                    answer = answer[:-1] + bytes([answer[-1] ^ 1])
                if is_data:
                    self.seen += answer
                near.sendall(answer)
        except OSError:
            pass  # one of the two is gone, and so is the connection
        finally:
            for each in (near, far):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
