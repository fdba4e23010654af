"""What was worked out about an outline, kept as long as the outline lives. Outlines are frozen, but have up to hundreds
of thousands of tensors: too many to hash, so they are known by identity."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from core.targets.base import Outline

T = TypeVar("T")


class PerOutline(Generic[T]):
    """`make(outline)` at the first call for an outline, the same value at later ones."""

    def __init__(self, make: Callable[[Outline], T]) -> None:
        self._make = make
        self._known: dict[int, tuple[weakref.ref[Outline], T]] = {}

    def __call__(self, outline: Outline) -> T:
        key = id(outline)
        known = self._known.get(key)
        if known is not None and known[0]() is outline:
            return known[1]
        value = self._make(outline)
        self._known[key] = (weakref.ref(outline, lambda _: self._known.pop(key, None)), value)
        return value
