"""Every error a user can meet, and nothing else.

    WorkbenchError
    ├── CheckpointError          the input
    │   ├── UnsupportedFormat    not a kind of file, tensor type or model we read
    │   ├── CorruptFile          it says what it is, and is not (offset of the first wrong byte)
    │   └── RowError             weights that a format cannot take (the row)
    │       ├── NonFinite        they are NaN or infinite
    │       └── OutOfRange       they are too large for its scales
    ├── RecipeError              a rule, pattern, format or parameter that makes no sense
    ├── CalibrationError         statistics that cannot be gathered
    ├── EvaluationError          a model that cannot be judged, or two that cannot be compared
    ├── TargetError              the container cannot carry what was asked
    ├── PlanError                preflight found problems; nothing was written
    ├── OutputError              the place to write to
    ├── DeviceError              the device to compute on
    └── MissingExtra             an optional dependency that is not installed

`Cancelled` stands apart: it is an outcome, never a failure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_ROW = re.compile(r"\brow (\d+)")


class WorkbenchError(Exception):
    """One clear line: where, what, what to try.

    message  what is wrong, a sentence without its full stop
    hint     what to try, or empty
    where    file, tensor or rule concerned, or empty
    """

    def __init__(self, message: str, hint: str = "", where: str | Path = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = str(where)

    def __str__(self) -> str:
        line = f"{self.where}: {self.message}" if self.where else self.message
        if self.hint:
            line = f"{line}; {self.hint}"
        return " ".join(line.split())


class CheckpointError(WorkbenchError):
    """The input cannot be used."""


class UnsupportedFormat(CheckpointError):
    """A kind of file, tensor type or architecture that we do not read."""


class CorruptFile(CheckpointError):
    """A file that contradicts itself. `offset` is the byte where it shows, or None."""

    def __init__(self, message: str, hint: str = "", where: str | Path = "", offset: int | None = None) -> None:
        super().__init__(message, hint, where)
        self.offset = offset


class RowError(CheckpointError):
    """Weights that a format cannot take. `row` is the first such row of the matrix that was handed over."""

    def __init__(self, message: str, hint: str = "", where: str | Path = "", row: int = -1) -> None:
        super().__init__(message, hint, where)
        self.row = row

    def counted_from(self, start: int) -> None:
        """The matrix was a part of a tensor, from row `start` on: message and row speak of the tensor from now on."""
        self.message = _ROW.sub(lambda found: f"row {int(found[1]) + start}", self.message, count=1)
        self.row += start if self.row >= 0 else 0


class NonFinite(RowError):
    """Weights that are NaN or infinite."""


class OutOfRange(RowError):
    """Finite weights that a format cannot hold: its largest scale is too small."""


class RecipeError(WorkbenchError):
    """A rule, pattern, format name or parameter that makes no sense."""


class CalibrationError(WorkbenchError):
    """Statistics that a method needs cannot be gathered."""


class EvaluationError(WorkbenchError):
    """A model cannot be judged on a text, or two cannot be compared."""


class TargetError(WorkbenchError):
    """The container cannot carry what was asked."""


class PlanError(WorkbenchError):
    """Preflight found problems; nothing was written. `problems` lists them all."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        where: str | Path = "",
        problems: Sequence[object] = (),
    ) -> None:
        super().__init__(message, hint, where)
        self.problems = tuple(problems)


class OutputError(WorkbenchError):
    """The place to write to: missing, forbidden, full, or the input itself."""


class DeviceError(WorkbenchError):
    """The device to compute on is not there, or has no memory left."""


class MissingExtra(WorkbenchError):
    """An optional dependency is not installed."""


class Cancelled(Exception):
    """The user stopped a job. An outcome, never shown as a failure."""


def one_line(error: BaseException) -> str:
    """The single line a user reads for any exception, ours or foreign."""
    if isinstance(error, WorkbenchError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
