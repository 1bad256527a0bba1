"""A smart card service of the tests' own: pcscd with vpcd readers, where the machine's own is out of reach.

Everything runs in a network and a mount namespace made by unshare(1): there /run is empty, so that pcscd's
socket is nobody else's, and the loopback interface carries nothing but the cards' connections. No machine's
pcscd, reader or card is seen from there, and none of its software sees the virtual ones. Without root the
namespaces lie in a user namespace; where that is forbidden, `SmartCardRoom` says so and the tests fail.

Each program is a direct child of the process of the tests, put into the namespaces by nsenter(1), and ends
with it: by the end of its input, or for pcscd by the signal at the parent's death.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from mirrorfs.format.slot_token import TokenFields
from mirrorfs.keys.token import AskPin, Enrolment

REPOSITORY = Path(__file__).parents[2]
READER_NAME = "Yubico virtual reader"
"""ykcs11 looks only at readers whose name contains Yubico."""
PORTS = (35963, 35964)
"""vpcd makes two readers, each with a port of its own."""
DEADLINE_S = 20.0
_INSERTIONS_MAX = 5

_DRIVER = "/usr/lib/pcsc/drivers/serial/libifdvpcd.so"
_INTERFACE_FLAGS_SET = 0x8914  # SIOCSIFFLAGS of <linux/sockios.h>
_IS_UP = 0x1
_EMPTY, _PRESENT = 0x10, 0x20  # SCARD_STATE_EMPTY, SCARD_STATE_PRESENT


def own_copy(pattern: str, folder: Path) -> Path:
    """A copy of a PKCS#11 module that the caller owns.

    In a user namespace the files of the real root seem to belong to nobody, from whom the driver loads
    no module.
    """
    found = sorted(glob.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{pattern} is missing; scripts/setup.sh installs it")
    copy = folder / Path(found[0]).name
    shutil.copyfile(found[0], copy)
    copy.chmod(0o644)
    return copy


def eventually(holds: Callable[[], bool], *, what: str, deadline_s: float = DEADLINE_S) -> float:
    """Wait until something holds. Returns: the seconds it took."""
    start_s = time.monotonic()
    while not holds():
        if time.monotonic() - start_s > deadline_s:
            raise TimeoutError(f"after {deadline_s:g} s still not: {what}")
        time.sleep(0.02)
    return time.monotonic() - start_s


class SmartCardRoom:
    """The namespaces, and in them a pcscd that may be started and stopped."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: empty; for pcscd's configuration and log."""
        self._folder = folder
        self._pcscd: subprocess.Popen[bytes] | None = None
        identity = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._enter = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self._keeper = subprocess.Popen(
            ["unshare", *identity, "--mount", "--net", sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},  # nsenter leaves the directory
            text=True,
        )
        assert self._keeper.stdout is not None and self._keeper.stderr is not None
        if self._keeper.stdout.readline() != "ready\n":
            reason = self._keeper.stderr.read().strip() or f"exit status {self._keeper.wait()}"
            self.close()
            raise RuntimeError(
                "the virtual smart card needs a network and a mount namespace of its own, which this machine"
                f" refuses to {'root' if os.geteuid() == 0 else 'users'}: {reason}"
            )

    @property
    def pid(self) -> int:
        """A process in the room: /proc/PID/root is its file system."""
        return self._keeper.pid

    def command(self, *arguments: str) -> list[str]:
        """What to run so that a program runs in here, with the same process id."""
        return ["nsenter", f"--target={self._keeper.pid}", *self._enter, "--mount", "--net", *arguments]

    def start_pcscd(self, *, with_readers: bool) -> None:
        """Start the service; return when programs can reach it."""
        assert self._pcscd is None
        configuration = self._folder / "reader.conf.d"
        configuration.mkdir(exist_ok=True)
        (configuration / "vpcd").unlink(missing_ok=True)
        if with_readers:
            (configuration / "vpcd").write_text(
                f'FRIENDLYNAME "{READER_NAME}"\nDEVICENAME /dev/null:{PORTS[0]:#x}\n'
                f"LIBPATH {_DRIVER}\nCHANNELID {PORTS[0]:#x}\n"
            )
        program = shutil.which("pcscd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if program is None:
            raise FileNotFoundError("pcscd is missing; scripts/setup.sh installs it")
        told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
        # There is no D-Bus in here that a newer pcscd could ask who may use cards.
        options = ["--disable-polkit"] if "--disable-polkit" in told else []
        with open(self._folder / "pcscd.log", "ab") as log:
            self._pcscd = subprocess.Popen(
                self.command(
                    *("setpriv", "--pdeathsig", "KILL"),
                    *(program, "--foreground", "--config", str(configuration), *options),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self._is_reachable, what="pcscd accepts connections")

    def _is_reachable(self) -> bool:
        assert self._pcscd is not None
        if self._pcscd.poll() is not None:
            raise RuntimeError("pcscd ended: " + (self._folder / "pcscd.log").read_text())
        # Its socket lies in the other mount namespace; /proc leads there.
        return Path(f"/proc/{self._keeper.pid}/root/run/pcscd/pcscd.comm").exists()

    def reader_state(self, reader: int) -> str:
        """What pcscd knows of the reader: "empty", "card" that has power, or "unclear"."""
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.write(f"{READER_NAME} 00 {reader:02x}\n")
        self._keeper.stdin.flush()
        return self._keeper.stdout.readline().strip()

    def stop_pcscd(self) -> None:
        if self._pcscd is not None:
            self._pcscd.kill()
            self._pcscd.wait(DEADLINE_S)
            self._pcscd = None

    def close(self) -> None:
        """End pcscd; the namespaces end with the last program in them."""
        self.stop_pcscd()
        for pipe in (self._keeper.stdin, self._keeper.stdout, self._keeper.stderr):
            assert pipe is not None
            pipe.close()
        self._keeper.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()


class Card:
    """A virtual card, still out of its reader."""

    def __init__(self, room: SmartCardRoom, keys: Mapping[int, str], *, serial: int) -> None:
        """Args: keys: "ec" or "rsa" by PIV slot."""
        self._process = subprocess.Popen(
            room.command(sys.executable, "-m", "tests.support.piv_card"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},  # nsenter leaves the directory
            text=True,
        )
        slots = {f"{slot:x}": kind for slot, kind in keys.items()}
        self._tell({"keys": slots, "serial": serial})
        self.serial = serial
        self._room = room

    def _tell(self, line: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def _order(self, what: str, **details: Any) -> dict[str, Any]:
        self._tell({"do": what, **details})
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def insert(self, *, reader: int = 0) -> None:
        """Put it into the first or second reader, and return when pcscd has noticed.

        pcscd looks at a reader every 0.4 s, and gives no power to a card that was away for less than
        that while somebody used it. No hand is so quick, so this waits; a slow machine gets new tries.
        """
        for _ in range(_INSERTIONS_MAX):
            eventually(lambda: self._room.reader_state(reader) == "empty", what="an empty reader")
            self._order("insert", port=PORTS[reader])
            try:
                eventually(lambda: self._room.reader_state(reader) == "card", what="power", deadline_s=2.0)
            except TimeoutError:
                self.remove()
            else:
                return
        raise TimeoutError("pcscd gives the card no power")

    def remove(self) -> None:
        """Take it out, also in the middle of a session; pcscd notices up to 0.4 s later."""
        self._order("remove")

    def vanish(self, *, at: int | None = None, after: int | None = None) -> None:
        """Have it leave the reader, unanswered: at a command of that instruction, or after so many."""
        self._order("set", at=at, after=after)

    def set_tries_left(self, count: int) -> None:
        self._order("set", tries_left=count)

    @property
    def tries_left(self) -> int:
        return int(self._order("look")["tries_left"])

    @property
    def pins_received(self) -> int:
        """PINs that were ever sent to it."""
        return int(self._order("look")["pins_received"])

    @property
    def commands(self) -> int:
        """Commands of any kind that were ever sent to it."""
        return int(self._order("look")["commands"])

    @property
    def is_inserted(self) -> bool:
        return bool(self._order("look")["is_inserted"])

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(DEADLINE_S)


class Driver:
    """A process in the room that calls the token driver (tests/support/piv_child.py)."""

    def __init__(self, room: SmartCardRoom) -> None:
        with ExitStack() as stack:
            ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
            self._process = subprocess.Popen(
                room.command(sys.executable, "-m", "tests.support.piv_child", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},  # nsenter leaves the directory
            )
            self._connection = Connection(os.dup(ours.fileno()))

    def call(self, method: str, *, uri: str = "", ask_pin: AskPin | None = None, **arguments: Any) -> Any:
        """Make one call there; what it raises is raised here."""
        self._connection.send((method, uri, arguments))
        while True:
            if not self._connection.poll(DEADLINE_S):
                raise TimeoutError(f"{method} has not returned after {DEADLINE_S:g} s")
            kind, value = self._connection.recv()
            if kind == "result":
                return value
            if kind == "error":
                raise value
            assert ask_pin is not None, f"a PIN was asked for by {method}"
            label, final_try, tries_left = value
            self._connection.send(ask_pin(label, final_try=final_try, tries_left=tries_left))

    def resources(self) -> tuple[int, int]:
        """Open file descriptors and threads of the process."""
        count: tuple[int, int] = self.call("resources")
        return count

    def close(self) -> None:
        self._connection.close()
        self._process.wait(DEADLINE_S)


class RemoteToken:
    """`Pkcs11Token` as a driver process has it; the PIN is asked for here."""

    def __init__(self, driver: Driver, uri: str, *, ask_pin: AskPin | None = None) -> None:
        self._driver = driver
        self._uri = uri
        self._ask_pin = ask_pin

    def enrol(self, *, volume: bytes, create: bool = False) -> Enrolment:
        made = self._driver.call("enrol", uri=self._uri, ask_pin=self._ask_pin, volume=volume, create=create)
        assert isinstance(made, Enrolment)
        return made

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        chosen: TokenFields = self._driver.call("choose", uri=self._uri, candidates=candidates)
        return chosen

    def secret_for(self, fields: TokenFields, *, volume: bytes) -> bytes:
        secret = self._driver.call(
            "secret_for", uri=self._uri, ask_pin=self._ask_pin, fields=fields, volume=volume
        )
        assert isinstance(secret, bytes)
        return secret

    def is_present(self, fields: TokenFields) -> bool:
        present = self._driver.call("is_present", uri=self._uri, fields=fields)
        assert isinstance(present, bool)
        return present


class _ReaderState(ctypes.Structure):
    """SCARD_READERSTATE of PC/SC lite."""

    _fields_: ClassVar = [
        ("reader", ctypes.c_char_p),
        ("user_data", ctypes.c_void_p),
        ("current", ctypes.c_ulong),
        ("event", ctypes.c_ulong),
        ("atr_size", ctypes.c_ulong),
        ("atr", ctypes.c_ubyte * 33),
    ]


def _state(library: ctypes.CDLL, reader: str) -> str:
    """Ask pcscd, as any program would, for what it knows of a reader."""
    context = ctypes.c_long()
    if library.SCardEstablishContext(ctypes.c_ulong(2), None, None, ctypes.byref(context)):
        return "unclear"
    state = _ReaderState(reader=reader.encode())
    failed = library.SCardGetStatusChange(context, ctypes.c_ulong(0), ctypes.byref(state), ctypes.c_ulong(1))
    library.SCardReleaseContext(context)
    if not failed and state.event & _EMPTY:
        return "empty"
    # Without an answer to reset there is no power yet.
    return "card" if not failed and state.event & _PRESENT and state.atr_size else "unclear"


def main() -> None:
    """Keep the namespaces that this process was started in until the end of input.

    Each line of input names a reader; the answer is what pcscd knows of it.
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", _IS_UP)
        fcntl.ioctl(any_socket, _INTERFACE_FLAGS_SET, request)
    print("ready", flush=True)
    library = ctypes.CDLL("libpcsclite.so.1")
    for line in sys.stdin:
        print(_state(library, line.strip()), flush=True)


if __name__ == "__main__":
    main()
