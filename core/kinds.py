"""Many things of few kinds: which of them are alike, so that a question is asked once per kind and the answer shared.

A large model has tens of thousands of tensors and a few dozen kinds of them. What makes two alike is for those to say
who know the things (`Outline.kinds`, `Assignments`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


class Kinds:
    """A division of items into kinds, numbered in the order in which they appear.

    of     int64 [items]: the kind of each
    first  of each kind its first item
    """

    def __init__(self, of: np.ndarray) -> None:
        import numpy as np

        _, first, inverse = np.unique(of, return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty(len(first), np.int64)
        number[order] = np.arange(len(first))
        self.of: np.ndarray = number[inverse]
        self.first: list[int] = first[order].tolist()

    @classmethod
    def by(cls, keys: Iterable[Hashable]) -> Kinds:
        """Items with equal keys are of one kind."""
        import numpy as np

        number: dict[Hashable, int] = {}
        return cls(np.array([number.setdefault(key, len(number)) for key in keys], np.int64))

    def __len__(self) -> int:
        """How many kinds there are."""
        return len(self.first)

    def counts(self) -> list[int]:
        """How many items there are of each kind."""
        import numpy as np

        found: list[int] = np.bincount(self.of, minlength=len(self)).tolist()
        return found

    def split(self, *by: np.ndarray) -> Kinds:
        """Finer kinds: of two items of one kind, those also differ in which any of the whole numbers [items] does."""
        code, size = self.of, max(1, len(self))
        for numbers in by:
            if not len(numbers):
                break
            low = int(numbers.min())
            span = int(numbers.max()) - low + 1
            size *= span
            assert size < 1 << 62
            code = code * span + (numbers - low)
        return Kinds(code)

    def share(self, answers: Sequence[T]) -> Shared[T]:
        """One answer per kind as one per item."""
        return Shared(answers, self.of)

    def ask(self, items: Sequence[T], question: Callable[[T], Any]) -> Shared[Any]:
        """What the question says of each item, asked of the first of each kind."""
        return self.share([question(items[i]) for i in self.first])


class Shared(Sequence[T], Generic[T]):
    """One value per item, of which many are one and the same.

    values  the different ones
    of      int64 [items]: which of them each item has
    """

    def __init__(self, values: Sequence[T], of: np.ndarray) -> None:
        self.values = values
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.values[i] for i in self.of[index].tolist()]
        return self.values[self.of[index]]

    def __iter__(self) -> Iterator[T]:
        return map(self.values.__getitem__, self.of.tolist())

    def where(self, wanted: Callable[[T], object]) -> list[int]:
        """The items whose value is wanted, ascending."""
        import numpy as np

        if not len(self.of):
            return []
        taken = np.array([bool(wanted(value)) for value in self.values], bool)
        return np.flatnonzero(taken[self.of]).tolist()
