"""The digest of a growing file, hashed behind the writes."""

from __future__ import annotations

import hashlib
import threading

from mirrorfs.engine.running_digest import RunningDigest


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_it_is_that_of_all_bytes_whenever_it_catches_up() -> None:
    digest = RunningDigest()
    assert digest.digest() == sha(b"")
    written = b""
    for number in range(20):
        piece = bytes([number]) * number
        digest.add(piece)
        written += piece
        if number % 3 == 0:
            digest.catch_up()
        if number % 5 == 0:
            assert digest.digest() == sha(written)
    assert digest.digest() == sha(written)


def test_the_marked_digest_is_that_of_the_last_mark() -> None:
    digest = RunningDigest()
    assert digest.marked_digest() == sha(b"")
    digest.add(b"durable")
    digest.mark()
    digest.add(b" and not")
    assert digest.marked_digest() == sha(b"durable")
    assert digest.digest() == sha(b"durable and not")
    assert digest.marked_digest() == sha(b"durable")
    digest.mark()
    assert digest.marked_digest() == sha(b"durable and not")


def test_what_waits_is_counted() -> None:
    digest = RunningDigest()
    digest.add(bytearray(1000))
    digest.add(bytes(24))
    assert digest.waiting_bytes == 1024
    digest.catch_up()
    assert digest.waiting_bytes == 0


def test_bytes_may_be_added_while_another_thread_hashes() -> None:
    digest = RunningDigest()
    pieces = [bytes([number % 256]) * 5000 for number in range(2000)]
    added = threading.Event()

    def hash_on() -> None:
        while not added.is_set():
            digest.catch_up()

    thread = threading.Thread(target=hash_on)
    thread.start()
    for piece in pieces:
        digest.add(piece)
    added.set()
    thread.join()
    assert digest.digest() == sha(b"".join(pieces))
