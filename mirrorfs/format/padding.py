"""How many bytes a sealed frame shows to a store (docs/FORMAT.md, "Padding"; security.md 15)."""

from __future__ import annotations

_BUCKETS = (256, 512, 1024, 2048, 4096)


def padme(size: int) -> int:
    """Padmé: the next size with at most log2(log2(size)) significant bits; at most 12 % larger.

    Source: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with
    PURBs", 2019.
    """
    if size < 2:
        return size
    exponent = size.bit_length() - 1
    free_bits = exponent - exponent.bit_length()
    mask = (1 << max(free_bits, 0)) - 1
    return (size + mask) & ~mask


def bucket(size: int) -> int:
    """Journal frames: 256, 512, 1024, 2048 or 4096 bytes, then multiples of 4096."""
    for limit in _BUCKETS:
        if size <= limit:
            return limit
    return (size + 4095) & ~4095
