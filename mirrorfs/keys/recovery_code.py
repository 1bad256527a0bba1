"""The recovery code: 256 random bits as people write them down and type them back.

56 symbols in 14 groups of four: 32 bytes, then 3 bytes of a hash of them, which notice a slip of the pen.
The alphabet is Crockford's base 32, without I, L, O and U: what is read as one of the first three is taken
for the digit it looks like. Case, spaces and dashes do not count.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from mirrorfs.errors import UsageError

CODE_SIZE_BYTES: Final = 32
SYMBOLS: Final = 56

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOK_ALIKES: Final = str.maketrans({"O": "0", "I": "1", "L": "1"})
_CHECK_SIZE_BYTES: Final = 3
_GROUP: Final = 4
_GROUPS_PER_LINE: Final = 7


def format_code(code: bytes) -> str:
    """Two lines of seven groups of four symbols.

    Args:
        code: 32 random bytes.
    """
    assert len(code) == CODE_SIZE_BYTES
    number = int.from_bytes(code + _check(code))
    symbols = "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(SYMBOLS)))
    groups = [symbols[start : start + _GROUP] for start in range(0, SYMBOLS, _GROUP)]
    lines = (groups[:_GROUPS_PER_LINE], groups[_GROUPS_PER_LINE:])
    return "\n".join("-".join(line) for line in lines)


def parse_code(text: str) -> bytes:
    """The 32 bytes of a code that was typed.

    Raises: UsageError: it is not one; the message says what is wrong, and nothing of what was typed.
    """
    symbols = "".join(text.upper().split()).replace("-", "").translate(_LOOK_ALIKES)
    for place, symbol in enumerate(symbols[:SYMBOLS]):
        if symbol not in _ALPHABET:
            group = place // _GROUP + 1
            raise UsageError(f"Group {group} of the recovery code has a character that no code has; look.")
    if len(symbols) != SYMBOLS:
        raise UsageError(
            f"The recovery code has {SYMBOLS} letters and digits, and {len(symbols)} were entered; look."
        )
    number = 0
    for symbol in symbols:
        number = number << 5 | _ALPHABET.index(symbol)
    data = number.to_bytes(CODE_SIZE_BYTES + _CHECK_SIZE_BYTES)
    code, check = data[:CODE_SIZE_BYTES], data[CODE_SIZE_BYTES:]
    if not hmac.compare_digest(check, _check(code)):
        raise UsageError("The recovery code has a mistake in it; compare it group by group with the sheet.")
    return code


def _check(code: bytes) -> bytes:
    return hashlib.sha256(b"mirrorfs v1 recovery code" + code).digest()[:_CHECK_SIZE_BYTES]
