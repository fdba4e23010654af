"""Sizes in a column: one unit for all lines, said once in the header. No Qt."""

from __future__ import annotations

# A unit by its word and its bytes.
Unit = tuple[str, int]
_UNITS: tuple[Unit, ...] = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def unit_of(largest: int) -> Unit:
    """The unit for a column whose largest entry has so many bytes: the one in which that is at least 10."""
    return next((unit for unit in _UNITS if largest >= 10 * unit[1]), _UNITS[-1])


def size_text(nbytes: int, unit: int) -> str:
    """Bytes in a fixed unit, one decimal; what would round to nothing says so."""
    value = nbytes / unit
    return "< 0.1" if 0 < value < 0.05 else f"{value:,.1f}"
