"""mirrorfs.cli.control: requests and answers over a real socket, and who and what is turned away."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mirrorfs.cli.control import CONNECTIONS_MAX, Connection, ControlServer
from mirrorfs.cli.control_protocol import (
    PATH_SIZE_MAX_BYTES,
    ControlClient,
    Message,
    NotMounted,
    decode_line,
    encode_line,
    reachable_path,
)
from mirrorfs.cli.failures import RemoteError
from mirrorfs.errors import MirrorfsError, StoreUnavailable, UsageError


async def echo(connection: Connection) -> Message:
    await connection.send({"type": "progress", "step": 1})
    return {"heard": connection.request.get("word")}


async def fail(connection: Connection) -> Message:
    await trio.lowlevel.checkpoint()
    raise StoreUnavailable("Store a is away.")


async def fail_in_a_nursery(connection: Connection) -> Message:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail, connection)
        await trio.sleep_forever()
    raise AssertionError


async def until_hung_up(connection: Connection) -> Message:
    await connection.send({"type": "prepared"})
    await connection.wait_closed()
    HUNG_UP.append(True)
    return {}


HUNG_UP: list[bool] = []
HANDLERS = {"echo": echo, "fail": fail, "nursery": fail_in_a_nursery, "wait": until_hung_up}


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[ControlServer]:
    async with trio.open_nursery() as nursery:
        server = ControlServer(path, HANDLERS)
        await nursery.start(server.serve)
        yield server
        with trio.fail_after(5):
            await server.drain()
        nursery.cancel_scope.cancel()


def ask(path: Path, command: str, **fields: object) -> list[Message]:
    with ControlClient(path, volume="v") as client:
        client.send(command, **fields)
        return list(client.answers())


async def in_thread(path: Path, command: str, **fields: object) -> list[Message]:
    return await trio.to_thread.run_sync(lambda: ask(path, command, **fields))


async def test_request_progress_and_answer(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with served(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answers = await in_thread(path, "echo", word="hello")
        assert answers == [{"type": "progress", "step": 1}, {"type": "done", "heard": "hello"}]
    assert not path.exists()
    with pytest.raises(NotMounted):
        ask(path, "echo")


@pytest.mark.parametrize("command", ["fail", "nursery"])
async def test_errors_keep_sentence_and_exit_code(tmp_path: Path, command: str) -> None:
    path = tmp_path / "control.sock"
    async with served(path):
        with pytest.raises(RemoteError, match=r"^Store a is away\.$") as caught:
            await in_thread(path, command)
        assert caught.value.exit_code == 4
        with pytest.raises(RemoteError, match="does not know this command") as caught:
            await in_thread(path, "keys")
        assert caught.value.exit_code == 2


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(NotMounted):
        ask(path, "echo")
    async with served(path):
        assert (await in_thread(path, "echo"))[-1]["type"] == "done"


async def test_hanging_up_reaches_the_handler(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    HUNG_UP.clear()

    def hang_up() -> None:
        with ControlClient(path, volume="v") as client:
            client.send("wait")
            assert next(client.answers())["type"] == "prepared"

    async with served(path) as server:
        await trio.to_thread.run_sync(hang_up)
        with trio.fail_after(5):
            await server.drain()
        assert HUNG_UP == [True]


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"[]\n",
        b"not json\n",
        b"\xff\xfe\n",
        b'{"protocol":2,"command":"echo"}\n',
        b'{"command":"echo"}\n',
        b"x" * 10_000 + b"\n",
        b"[" * 4000 + b"\n",
    ],
)
async def test_what_is_no_request_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "control.sock"
    async with served(path):
        stream = await trio.open_unix_socket(path)
        await stream.send_all(data)
        answer = b""
        with trio.fail_after(5):
            while not answer.endswith(b"\n"):
                answer += await stream.receive_some(4096)
        assert decode_line(answer)["exit_code"] == 2
        await stream.aclose()
        assert (await in_thread(path, "echo"))[-1]["type"] == "done"


async def test_no_more_than_so_many_clients(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with served(path):
        clients = [await trio.open_unix_socket(path) for _ in range(CONNECTIONS_MAX)]
        for client in clients:
            await client.send_all(encode_line({"protocol": 1, "command": "wait"}))
            assert await client.receive_some(4096)
        with trio.fail_after(5):
            one_more = await trio.open_unix_socket(path)
            assert await one_more.receive_some(1) == b""
        for client in (*clients, one_more):
            await client.aclose()


async def test_another_user_gets_no_answer(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "the tests run as root"
    # A place that the other user can reach, and a socket that he may connect to: the kernel's word counts.
    path = Path(f"/tmp/mirrorfs-test-{os.getpid()}.sock")
    code = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "try:\n"
        '    s.sendall(b\'{"protocol":1,"command":"echo"}\\n\'); answer = s.recv(100)\n'
        "except (BrokenPipeError, ConnectionResetError): answer = b''\n"
        "print(len(answer))\n"
    )

    def connect() -> subprocess.CompletedProcess[str]:
        path.chmod(0o666)
        return subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=30, check=False
        )

    async with served(path):
        ended = await trio.to_thread.run_sync(connect)
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_long_paths_are_reachable(tmp_path: Path) -> None:
    directory = tmp_path.joinpath(*["long-directory-name"] * 8)
    directory.mkdir(parents=True)
    path = directory / "control.sock"
    assert len(str(path)) > PATH_SIZE_MAX_BYTES
    before = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        with reachable_path(path) as name:
            listener.bind(name)
        listener.listen()
        assert path.is_socket() and os.getcwd() == before
        client = ControlClient(path, volume="v")
        client.close()


def test_a_daemon_that_dies_is_told(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with ControlClient(path, volume="v") as client:
            accepted, _ = listener.accept()
            client.send("flush")
            accepted.sendall(b'{"type":"progress"}\n{"type":')
            accepted.close()
            answers = client.answers()
            assert next(answers) == {"type": "progress"}
            with pytest.raises(MirrorfsError, match="ended before it was done"):
                next(answers)


def test_lines() -> None:
    assert decode_line(encode_line({"a": "é\n"})) == {"a": "é\n"}
    assert encode_line({"a": "é\n"}).count(b"\n") == 1
    with pytest.raises(UsageError):
        decode_line(b"1")
