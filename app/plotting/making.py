"""Building what takes a while in steps: between events while nobody waits for it, the rest at once when somebody does.
A plot of pyqtgraph takes some 20 ms for each of its parts. No Qt here, and no pyqtgraph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


class Making:
    """steps: what is done between two `yield`s is one step; it is asked for once, at the first."""

    def __init__(self, steps: Callable[[], Iterator[None]]) -> None:
        self._steps = steps
        self._under_way: Iterator[None] | None = None
        self.done = False

    def step(self) -> bool:
        """The next step. False when there was none left."""
        if self.done:
            return False
        if self._under_way is None:
            self._under_way = self._steps()
        try:
            next(self._under_way)
        except StopIteration:
            self.done, self._under_way = True, None
        return not self.done

    def finish(self) -> None:
        """All that is left."""
        while self.step():
            pass
