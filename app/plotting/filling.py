"""A plot that is filled in several turns of the event loop, and painted when all of it is there. Panels with one plot
share this: when it is hidden, whether the view of the tensor before stays, and that a plot is never left held back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject

from app.plotting.turns import Turns

if TYPE_CHECKING:
    from app.plotting.plot import Plot


class Filling:
    """The latest wins: what was being filled in before is left where it stands."""

    def __init__(self, parent: QObject) -> None:
        self._turns = Turns(parent)
        self._framed: object = None  # whose home view is set

    @property
    def busy(self) -> bool:
        return self._turns.busy

    def begin(
        self, plot: Plot, fill: Callable[[], Generator[None, None, bool]], after: Callable[[], None] | None = None
    ) -> None:
        """Shows the plot. fill: its curves, in steps; False when there is nothing to show any more. after: what follows
        when it is painted."""
        self._turns.begin(_held(plot, fill, after))

    def frame(self, plot: Plot, of: object, name: str) -> bool:
        """Whether the view goes home: another picture, or nobody zoomed. of: equal for pictures of the same; name: of
        exported files."""
        fresh, self._framed = of != self._framed, of
        plot.name = name
        return fresh or plot.at_home

    def hide(self, plot: Plot | None) -> None:
        self._turns.stop()
        if plot is not None:
            plot.put_away()


def _held(
    plot: Plot, fill: Callable[[], Generator[None, None, bool]], after: Callable[[], None] | None
) -> Iterator[None]:
    plot.hold()
    plot.show()
    yield
    try:
        filled = yield from fill()
        yield
        if filled:
            plot.prepare()
            yield
    except Exception:
        plot.release()  # what went wrong is told elsewhere: the plot must go on
        raise
    plot.release()
    if filled and after is not None:
        yield
        after()
