"""Natural order of names, and sorting that lets other threads in. `list.sort` is one call of C: with the names of
50,000 tensors it holds the interpreter's lock for 30 to 150 ms, and a window in the same process stands still."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")

_DIGITS = re.compile(r"\d+")
# Longer runs of digits are compared as text: int() refuses those of some thousand.
_MAX_DIGITS = 1000
# Items that are sorted in one go: 1 to 2 ms.
PIECE = 4096


def natural_key(name: str) -> str:
    """Sort key that puts layer.2 before layer.10: in front of a number stands how many digits it has, and a NUL, which
    comes before everything else in a name."""
    return _DIGITS.sub(_number, name)


def _number(found: re.Match[str]) -> str:
    return _marked(found.group())


@lru_cache(maxsize=8192)
def _marked(digits: str) -> str:
    if len(digits) > _MAX_DIGITS:
        return digits
    value = str(int(digits))
    return f"\0{len(value):04d}{value}"


def natural_order(items: Iterable[T], name: Callable[[T], str]) -> list[T]:
    """The items in the natural order of their names; equal ones stay as they were."""
    held = list(items)
    keys = [natural_key(name(item)) for item in held]
    return [held[i] for i in order_of(keys)]


def order_of(keys: Sequence[Any]) -> list[int]:
    """Places of the keys in ascending order, equal ones as they were. Sorted piece by piece, then merged two by two:
    what `sorted` does with runs that are in order already."""
    runs = [
        sorted(range(start, min(start + PIECE, len(keys))), key=keys.__getitem__)
        for start in range(0, len(keys), PIECE)
    ]
    while len(runs) > 1:
        runs = [
            sorted([*runs[i], *runs[i + 1]], key=keys.__getitem__) if i + 1 < len(runs) else runs[i]
            for i in range(0, len(runs), 2)
        ]
    return runs[0] if runs else []
