"""Ways to a server on loopback: a proxy that tunnels, a front that speaks TLS with a self-made authority."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PART_BYTES = 64 * 1024
HEAD_BYTES_MAX = 16 * 1024


@dataclass(frozen=True, slots=True)
class Authority:
    """Files of a self-made certificate authority, and of a server on 127.0.0.1 that it vouches for."""

    bundle: Path
    chain: Path
    key: Path


def make_authority(directory: Path, *, host: str = "127.0.0.1") -> Authority:
    """Make both; `host` is the address that the server's certificate is for."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("test authority", "server")
    )

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
    authority = certificate(ca_name, ca_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    authority = authority.add_extension(usage, critical=True)
    server = certificate(name, key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
    )
    pem = serialization.Encoding.PEM
    made = Authority(directory / "authority.pem", directory / "server.pem", directory / "server.key")
    made.bundle.write_bytes(authority.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    made.chain.write_bytes(server.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    made.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


@dataclass(slots=True)
class Road:
    """A listener that passes connections on."""

    port: int
    tunnels: list[str] = field(default_factory=list)
    """HOST:PORT of each CONNECT, of a proxy."""
    password: str | None = None
    """USER:PASSWORD that a proxy wants."""


@contextlib.contextmanager
def tunnel_proxy() -> Iterator[Road]:
    """An HTTP proxy that knows CONNECT and nothing else."""

    def open_tunnel(client: socket.socket, road: Road) -> tuple[socket.socket, socket.socket] | None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
            part = client.recv(PART_BYTES)
            if not part:
                return None
            head += part
        method, place = head.decode("latin-1").split()[:2]
        if road.password is not None and not _is_let_in(head, road):
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return None
        if method != "CONNECT":
            client.sendall(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n")
            return None
        road.tunnels.append(place)
        host, _, port = place.rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return client, server

    with _listening(open_tunnel) as road:
        yield road


@contextlib.contextmanager
def tls_front(target_port: int, authority: Authority) -> Iterator[Road]:
    """Speaks TLS, and passes what it says on to a port of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.chain, authority.key)

    def unwrap(client: socket.socket, road: Road) -> tuple[socket.socket, socket.socket] | None:
        try:
            secured = context.wrap_socket(client, server_side=True)
        except OSError:
            return None  # the client broke the handshake off
        return secured, socket.create_connection(("127.0.0.1", target_port))

    with _listening(unwrap) as road:
        yield road


def _is_let_in(head: bytes, road: Road) -> bool:
    wanted = base64.b64encode(str(road.password).encode())
    return b"\r\nproxy-authorization: basic " + wanted.lower() in head.lower()


Opening = Callable[[socket.socket, Road], tuple[socket.socket, socket.socket] | None]


@contextlib.contextmanager
def _listening(opening: Opening) -> Iterator[Road]:
    listener = socket.create_server(("127.0.0.1", 0))
    road = Road(listener.getsockname()[1])
    threads: list[threading.Thread] = []
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        client.settimeout(10)
        with client:
            pair = opening(client, road)
            if pair is not None:
                with pair[0], pair[1]:
                    _pump(*pair, ended)

    def accept() -> None:
        while not ended.is_set():
            if _readable(listener):
                threads.append(threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True))
                threads[-1].start()

    threads.append(threading.Thread(target=accept, daemon=True))
    threads[0].start()
    try:
        yield road
    finally:
        ended.set()
        threads[0].join()
        for thread in threads:
            thread.join()
        listener.close()


def _readable(*sockets: socket.socket) -> list[socket.socket]:
    """Those that have something to read, after a moment. Unlike select(), of any number of descriptors."""
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        ready = {key.fileobj for key, _ in selector.select(0.05)}
        return [one for one in sockets if one in ready]


def _pump(client: socket.socket, server: socket.socket, ended: threading.Event) -> None:
    """Pass bytes both ways until one end closes."""
    other = {client: server, server: client}
    while not ended.is_set():
        waiting = isinstance(client, ssl.SSLSocket) and client.pending()
        ready = [client] if waiting else _readable(client, server)
        for source in ready:
            try:
                part = source.recv(PART_BYTES)
                other[source].sendall(part)
            except OSError:
                return
            if not part:
                return
