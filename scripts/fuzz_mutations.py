"""How an input of the fuzzer is made from valid ones: bytes, canonical JSON, text, each damaged in its way.

Pure but for the generator that is handed in: the same generator state and inputs give the same bytes, so
that a seed replays. Far more of a parser is reached by a valid document with one wrong field than by noise.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

Mutate = Callable[[Random, bytes, bytes], bytes]
"""(generator, an input, another input) -> a new input."""

INPUT_SIZE_MAX_BYTES = 80 * 1024
"""More than any document: longer inputs only repeat what shorter ones show."""

_BYTES = (0x00, 0x01, 0x0A, 0x20, 0x22, 0x25, 0x2D, 0x2F, 0x30, 0x3B, 0x5B, 0x5C, 0x7B, 0x7F, 0x80, 0xFF)
_NUMBERS = tuple(
    sorted({sign * (1 << bits) + delta for bits in (0, 1, 3, 5, 6, 8, 16, 20, 24, 31, 32, 43, 63, 64)
            for sign in (1, -1) for delta in (-1, 0, 1)})
)  # fmt: skip
_FIELDS = tuple(struct.Struct(form) for form in ("<H", "<I", "<Q", ">I"))
_COUNTS = (2, 16, 17, 32, 33, 64, 65, 300)
_REPEATED_MAX = 8
_TOKENS = (
    "true", "null", "NaN", "-Infinity", "1e5", "1.0", "-0", "00", "+1", "1" * 5000, "9" * 19, "9" * 20,
    "-9223372036854775808", "-9223372036854775809", '"\\ud800"', '"\\uD83D\\uDE00"', '"\\ud83d\\ude00"',
    '"\\u0041"', '"\\u00e9"', '"\\u202e"', '"\\u0000"', '"\\x"', '"\x01"', '"\x7f"', '"é"', "[" * 60_000,
    "[" * 8 + "]" * 8, "[" * 7 + "]" * 7, '{"a":' * 9 + "1" + "}" * 9, '{"a":1,"a":2}', "{}", "[]", '""',
    "", "'", '"' + "a" * 60_000 + '"',
)  # fmt: skip
_PIECES = (
    "%00", "%", "%2", "%ff", "%C3%A9", "%zz", ";", "&", "?", "=", ":", "/", "//", "..", "\n", "\x00", "-",
    "pin-value=1", "token=a", "id=%01", "type=private", "module-path=/a", "pin-source=file:", "?tcti=",
    "device:/", "O", "l", "U", "ß", "\u0131", "\u017f", "\u202e", "\ud800", "😀", "0" * 16, "f" * 16,
    "0000000000000001", "heads/", "segments/", "header/",
)  # fmt: skip
_MARK = "@raw@"


# --- bytes -----------------------------------------------------------------------------------


def mutate_bytes(random: Random, data: bytes, other: bytes) -> bytes:
    """Flip, set, cut, insert, repeat, splice, and write numbers where a length may stand."""
    changed = bytearray(data)
    for _ in range(1 + int(random.random() * 4)):
        size = len(changed)
        at = int(random.random() * (size + 1))
        operation = int(random.random() * 9)
        if operation == 0 and at < size:
            changed[at] ^= 1 << int(random.random() * 8)
        elif operation == 1 and at < size:
            changed[at] = random.choice(_BYTES)
        elif operation == 2:
            del changed[at:]
        elif operation == 3:
            del changed[at : at + int(random.random() * 16)]
        elif operation == 4:
            changed[at:at] = random.randbytes(1 + int(random.random() * 16))
        elif operation == 5:
            changed[at:at] = changed[at : at + int(random.random() * 64)] * random.choice((1, 1, 2, 40))
        elif operation == 6:
            changed[at:] = other[int(random.random() * (len(other) + 1)) :]
        else:
            _write_number(random, changed)
    return bytes(changed[:INPUT_SIZE_MAX_BYTES])


def _write_number(random: Random, changed: bytearray) -> None:
    """A limit, or one more or less than it, little- or big-endian, mostly on a boundary of four bytes."""
    form = random.choice(_FIELDS)
    number = random.choice((*_NUMBERS, len(changed), len(changed) - 8, len(changed) - 316))
    at = int(random.random() * (len(changed) + 1))
    if random.random() < 0.8:
        at &= ~3
    if at + form.size <= len(changed):
        form.pack_into(changed, at, number % (1 << 8 * form.size))


# --- JSON ------------------------------------------------------------------------------------


def mutate_json(random: Random, data: bytes, other: bytes) -> bytes:
    """Change values, names and structure of JSON; written canonically, or nearly so."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(random, data, other)
    tokens: list[str] = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        tree = _mutate_tree(random, tree, tokens)
    text = json.dumps(tree, sort_keys=random.random() < 0.97, separators=(",", ":"))
    for token in tokens:
        text = text.replace(f'"{_MARK}"', token, 1)
    choice = random.random()
    if choice < 0.04:
        text = text.replace("{", '{"format":1,', 1)
    elif choice < 0.08:
        at = int(random.random() * (len(text) + 1))
        text = text[:at] + random.choice((" ", "\n", "\t", ",", "}", "]", '"', "\\")) + text[at:]
    encoded = text.encode("utf-8", "surrogatepass")[:INPUT_SIZE_MAX_BYTES]
    return mutate_bytes(random, encoded, other) if choice > 0.95 else encoded


def _mutate_tree(random: Random, tree: Any, tokens: list[str]) -> Any:
    """Change one place, found by a random walk from the root."""
    holder: Any = None
    place: Any = None
    found = tree
    while isinstance(found, dict | list) and found and (holder is None or random.random() < 0.75):
        holder = found
        place = random.choice(list(found)) if isinstance(found, dict) else int(random.random() * len(found))
        found = holder[place]
    if holder is None:
        return _other_value(random, tree, tokens)
    operation = random.random()
    if operation < 0.08:
        del holder[place]
    elif operation < 0.16 and isinstance(holder, dict):
        holder[random.choice((str(place) + "x", "unknown", "é", "format", "version"))] = holder.pop(place)
    elif operation < 0.3 and isinstance(holder, list) and len(holder) <= _REPEATED_MAX:
        holder[:] = holder * random.choice(_COUNTS)
    else:
        holder[place] = _other_value(random, found, tokens)
    return tree


def _other_value(random: Random, value: Any, tokens: list[str]) -> Any:
    if random.random() < 0.25:
        tokens.append(random.choice(_TOKENS))
        return _MARK
    if isinstance(value, str):
        return _other_string(random, value)
    if isinstance(value, int) and random.random() < 0.8:
        return random.choice((value + 1, value - 1, value * 2, -value, random.choice(_NUMBERS)))
    if isinstance(value, list) and random.random() < 0.5:
        return random.choice(([], value[::-1], value[:-1], value + value))
    return random.choice((0, 1, "", [], {}, "00", random.choice(_NUMBERS), [value], {"a": value}))


def _other_string(random: Random, value: str) -> str:
    at = int(random.random() * (len(value) + 1))
    operation = int(random.random() * 8)
    if operation == 0:
        return value[:at]
    if operation == 1:
        return value[:at] + random.choice("0aAgzé\x00\u202e😀\ud800 ") + value[at + 1 :]
    if operation == 2:
        return value + value
    if operation == 3:
        return value.upper()
    if operation == 4:
        return value[:at] + "00" * random.choice((1, 1, 32, 300, 3000)) + value[at:]
    if operation == 5:
        return random.choice(
            ("writer", "pkcs11", "fido2", "tpm2", "recovery", "rsa-pkcs1", "ecdh-p256", "argon2id")
        )
    if operation == 6:
        return random.randbytes(int(random.random() * 64)).hex()
    return value[:at] + value[at + 2 :]


# --- documents -------------------------------------------------------------------------------

_DOCUMENT_PREFIX = struct.Struct("<8sB3sI")
_DOCUMENT_TAIL_SIZE_BYTES = 64 + 32


def mutate_document(random: Random, data: bytes, other: bytes) -> bytes:
    """Mostly change the JSON and let the envelope's length fit it; sometimes let it lie."""
    choice = random.random()
    start, end = _DOCUMENT_PREFIX.size, len(data) - _DOCUMENT_TAIL_SIZE_BYTES
    if choice < 0.15 or end < start:
        return mutate_bytes(random, data, other)
    body = mutate_json(random, data[start:end], other)
    size = len(body) if choice < 0.95 else random.choice((*_NUMBERS, len(body) + 1)) % (1 << 32)
    return data[: start - 4] + struct.pack("<I", size) + body + data[end:]


# --- text ------------------------------------------------------------------------------------


def mutate_text(random: Random, data: bytes, other: bytes) -> bytes:
    """Insert, remove, repeat and exchange pieces that mean something in names, codes and URIs."""
    if random.random() < 0.2:
        return mutate_bytes(random, data, other)
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(1 + int(random.random() * 3)):
        at = int(random.random() * (len(text) + 1))
        operation = int(random.random() * 7)
        if operation == 0:
            text = text[:at] + random.choice(_PIECES) + text[at:]
        elif operation == 1:
            text = text[:at] + random.choice(_PIECES) + text[at + 1 :]
        elif operation == 2:
            text = text[:at] + text[at + 1 + int(random.random() * 4) :]
        elif operation == 3:
            text = text[:at] + chr(32 + int(random.random() * 95)) + text[at + 1 :]
        elif operation == 4:
            text = random.choice((text.upper(), text.lower(), text.swapcase(), " " + text, text + "\n"))
        elif operation == 5:
            text = text[:at] + text[at : at + 20] * random.choice((2, 3, 300)) + text[at:]
        else:
            text = text[:at] + other[int(random.random() * (len(other) + 1)) :].decode(
                "utf-8", "surrogateescape"
            )
    return text.encode("utf-8", "surrogatepass")[:INPUT_SIZE_MAX_BYTES]
