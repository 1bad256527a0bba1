"""The faults that tests/support/faulty_proxy.py can cause, and rules that say which request meets which."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

FOR_EVER = float("inf")


class Kind(StrEnum):
    """What can happen to an exchange; tests/support/faulty_proxy.py says what each is."""

    PASS = "pass"
    BUSY = "busy"
    CUT_REQUEST = "cut-request"
    STALL_REQUEST = "stall-request"
    LOSE_ANSWER = "lose-answer"
    CUT_ANSWER = "cut-answer"
    TRUNCATE = "truncate"
    STALL_ANSWER = "stall-answer"
    TRUNCATE_HEAD = "truncate-head"
    CLOSE = "close"


FAULTS = tuple(kind for kind in Kind if kind is not Kind.PASS)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one exchange."""

    kind: Kind = Kind.PASS
    after_bytes: int = 0
    """Of the body (TRUNCATE_HEAD: the head); less where it is shorter: the fault comes before its end."""
    stall_s: float = FOR_EVER


@dataclass(frozen=True, slots=True)
class Request:
    """An exchange as a rule sees it."""

    number: int
    """From 0, in the order of arrival since the proxy started."""
    method: str
    target: str


@dataclass(slots=True)
class Exchange:
    """What became of a request; `FaultyProxy.exchanges` has them all."""

    request: Request
    fault: Fault
    sent_bytes: int = 0
    """Of the body, to the server."""
    answered_bytes: int = 0
    """Of the body, to the client."""
    acted: bool = False
    """The server has answered: it had the whole request."""


Rule = Callable[[Request], Fault]
"""Called on the proxy's thread, once for each request."""


@dataclass(frozen=True, slots=True)
class Link:
    """What the wire does to every exchange."""

    latency_s: float = 0.0
    bandwidth_bytes_s: float = float("inf")


class Always:
    """A rule: one fault for every request, or for the first `times` that one of `methods` makes."""

    def __init__(
        self, fault: Fault, *, methods: frozenset[str] | None = None, times: int | None = None
    ) -> None:
        self._fault = fault
        self._methods = methods
        self._left = times

    def __call__(self, request: Request) -> Fault:
        """See Rule."""
        if self._left == 0 or (self._methods is not None and request.method not in self._methods):
            return Fault()
        if self._left is not None:
            self._left -= 1
        return self._fault


@dataclass(frozen=True, slots=True)
class Mix:
    """A rule: each request draws its fault, by shares that sum up to at most 1."""

    seed: int
    shares: Mapping[Kind, float]
    after_bytes_max: int = 64 * 1024
    stall_s: float = FOR_EVER

    def __call__(self, request: Request) -> Fault:
        """See Rule."""
        draw = random.Random(f"{self.seed}/{request.number}")
        point = draw.random()
        # Evenly over the orders of magnitude: heads, first bytes and late ones alike are met.
        after_bytes = int(2 ** draw.uniform(0, self.after_bytes_max.bit_length())) - 1
        for kind, share in self.shares.items():
            point -= share
            if point < 0:
                return Fault(kind, after_bytes, self.stall_s)
        return Fault()


def passes(request: Request) -> Fault:
    """A rule: nothing happens."""
    return Fault()
