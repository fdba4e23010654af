"""How a task talks to whoever runs it: progress, partial results, interruption. The window, the command line and the
tests each bring their own; `SILENT` is for callers who do not care."""

from __future__ import annotations

from typing import Any, Protocol


class JobContext(Protocol):
    """Passed to every long task. All three calls are cheap and safe from any thread."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """done and total in bytes of source read (or samples; the task's docstring says)."""

    def partial(self, value: Any) -> None:
        """A result that is final for one piece (a TensorReport, a coarse histogram)."""

    def check(self) -> None:
        """Raises Cancelled when the job was cancelled; blocks while it is paused."""


class _Silent:
    def progress(self, done: int, total: int, note: str = "") -> None:
        pass

    def partial(self, value: Any) -> None:
        pass

    def check(self) -> None:
        pass


SILENT: JobContext = _Silent()
