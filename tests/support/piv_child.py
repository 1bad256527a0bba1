"""The token driver in a process of its own, beside the smart card service that it shall see.

`python -m tests.support.piv_child FD` answers over the socket of that number: a call on a token in, its
result or its error out, and while it lasts the questions for a PIN, which the test answers
(tests/support/pcsc.py, `RemoteToken`). One process answers any number of calls, and has one object for
all calls with the same URI, as a mount would.
"""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from typing import Any

from mirrorfs.errors import MirrorfsError
from mirrorfs.keys.pkcs11_token import Pkcs11Token
from mirrorfs.keys.pkcs11_uri import parse_pkcs11_uri


def _unasked() -> bytes:
    raise AssertionError("a PKCS#11 token has no need of the password")


def _resources() -> tuple[int, int]:
    """Open file descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def _answer(token: Pkcs11Token, method: str, arguments: dict[str, Any]) -> Any:
    if method == "enrol":
        arguments = {**arguments, "entropy": os.urandom}
    if method in ("enrol", "secret_for"):
        arguments = {**arguments, "authorise": _unasked}
    return getattr(token, method)(**arguments)


def main() -> None:
    connection = Connection(int(sys.argv[1]))

    def ask_pin(label: str, *, final_try: bool, tries_left: int | None = None) -> str:
        connection.send(("ask_pin", (label, final_try, tries_left)))
        answer = connection.recv()
        assert isinstance(answer, str)
        return answer

    tokens: dict[tuple[str, bool], Pkcs11Token] = {}
    while True:
        try:
            method, uri, arguments = connection.recv()
        except EOFError:
            return
        if method == "resources":
            connection.send(("result", _resources()))
            continue
        create = arguments.pop("create", False)
        if (uri, create) not in tokens:
            parsed = parse_pkcs11_uri(uri, local=True)
            tokens[uri, create] = Pkcs11Token(parsed, ask_pin=ask_pin, create=create)
        try:
            result = _answer(tokens[uri, create], method, arguments)
        except MirrorfsError as exc:
            connection.send(("error", exc))
        else:
            connection.send(("result", result))


if __name__ == "__main__":
    main()
