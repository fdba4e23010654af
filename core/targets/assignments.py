"""The assignments of a whole output, and what of them is asked once per kind instead of once per tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

from core.kinds import Kinds, Shared
from core.targets.base import Assignment, StoredTensor, Target

T = TypeVar("T")


class Assignments(Sequence[Assignment]):
    """What is stored of every output tensor, in the container's order.

    kinds  which are alike: their tensors are (`OutputTensor.kind`), and the rest is the same. Found here if not given
    """

    def __init__(self, items: Sequence[Assignment], kinds: Kinds | None = None) -> None:
        self._items = items
        self.kinds = kinds or Kinds.by((a.tensor.kind(), *a[1:]) for a in items)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Assignment: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Assignment]: ...
    def __getitem__(self, index: int | slice) -> Assignment | Sequence[Assignment]:
        return self._items[index]

    def __iter__(self) -> Iterator[Assignment]:
        return iter(self._items)

    @property
    def samples(self) -> list[Assignment]:
        """The first of each kind, in order."""
        return [self._items[i] for i in self.kinds.first]

    def ask(self, question: Callable[[Assignment], T]) -> Shared[T]:
        """The answer for each, asked once per kind: it must not depend on the numbers in a name."""
        return self.kinds.share([question(a) for a in self.samples])

    def where(self, question: Callable[[Assignment], object]) -> list[Assignment]:
        """Those to which the answer is yes, in order."""
        return [self._items[i] for i in self.ask(question).where(bool)]


def named(assignments: Assignments, target: Target) -> list[tuple[str, tuple[StoredTensor, ...]]]:
    """Output tensor name → `Target.stored` of it, in order: asked once per kind, and named after each tensor."""
    each = assignments.ask(lambda a: _endings(a.tensor.name, target.stored(a)))
    return [(a.tensor.name, _stored(a.tensor.name, entries)) for a, entries in zip(assignments, each, strict=True)]


# Of one stored tensor: how many characters of the output tensor's name give way, to what; dtype, shape, bytes.
_Ending = tuple[int, str, str, tuple[int, ...], int]


def _endings(name: str, stored: tuple[StoredTensor, ...]) -> tuple[_Ending, ...]:
    found = []
    for entry in stored:
        same = next((i for i, (a, b) in enumerate(zip(name, entry.name, strict=False)) if a != b), None)
        same = min(len(name), len(entry.name)) if same is None else same
        found.append((len(name) - same, entry.name[same:], entry.dtype, entry.shape, entry.nbytes))
    return tuple(found)


def _stored(name: str, endings: tuple[_Ending, ...]) -> tuple[StoredTensor, ...]:
    # A list first: from a generator this takes twice as long.
    return tuple(
        [
            StoredTensor((name[:-cut] if cut else name) + ending, dtype, shape, nbytes)
            for cut, ending, dtype, shape, nbytes in endings
        ]
    )
