"""Showing something in several turns of the event loop, so that keys, clicks and timers come in between. Numbers, axes
and painting of a plot take some 15 ms each: in one go, that is a window that hangs.
"""

from __future__ import annotations

from collections.abc import Iterator

from PySide6.QtCore import QObject, QTimer, Slot


class Turns(QObject):
    """begin(steps): the first step at once, each other one in a turn of its own; what is done between two `yield`s is
    one step. The latest wins: what was under way before is closed where it stands."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._steps: Iterator[None] | None = None
        self._next = QTimer(self)
        self._next.setSingleShot(True)
        self._next.setInterval(0)
        self._next.timeout.connect(self._step)

    def begin(self, steps: Iterator[None]) -> None:
        self.stop()
        self._steps = steps
        self._step()

    def stop(self) -> None:
        """Leaves out what is left."""
        self._next.stop()
        self._steps = None

    def finish(self) -> None:
        """All that is left, now."""
        while self._steps is not None:
            self._step()

    @property
    def busy(self) -> bool:
        return self._steps is not None

    @Slot()
    def _step(self) -> None:
        steps = self._steps
        if steps is None:
            return
        try:
            next(steps)
        except StopIteration:
            if self._steps is steps:
                self._steps = None
            return
        except Exception:
            if self._steps is steps:
                self._steps = None  # else it would be busy for ever
            raise
        if self._steps is steps:  # a step may have begun something else
            self._next.start()
