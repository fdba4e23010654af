"""What can be undone and done again: edits with their inverses, and what each came to in bytes. No Qt; the session
applies them."""

from __future__ import annotations

from dataclasses import dataclass

from app.edits import Document, Edit

LIMIT = 500


@dataclass(slots=True)
class _Entry:
    edit: Edit
    inverse: Edit
    bytes_before: int | None
    bytes_after: int | None = None


class History:
    """One stack for undo, one for redo."""

    def __init__(self) -> None:
        self._undo: list[_Entry] = []
        self._redo: list[_Entry] = []

    def clear(self) -> None:
        self._undo.clear()
        self._redo.clear()

    def add(self, edit: Edit, before: Document, nbytes: int | None) -> None:
        """An edit that was applied to `before`; nbytes: what that was planned to, None where it was not. What people
        would see as one edit becomes one."""
        previous = self._undo[-1] if self._undo else None
        joined = previous.edit.merged(edit) if previous is not None and not self._redo else None
        if previous is not None and joined is not None:
            first = previous.inverse.apply(before)
            previous.edit, previous.inverse, previous.bytes_after = joined, joined.invert(first), None
        else:
            self._undo.append(_Entry(edit, edit.invert(before), nbytes))
            del self._undo[:-LIMIT]
        self._redo.clear()

    def planned(self, nbytes: int) -> None:
        """What the last edit came to."""
        if self._undo and self._undo[-1].bytes_after is None:
            self._undo[-1].bytes_after = nbytes

    def back(self) -> Edit | None:
        """The edit that takes the last one back, or None; it counts as undone."""
        if not self._undo:
            return None
        self._redo.append(self._undo.pop())
        return self._redo[-1].inverse

    def forth(self) -> Edit | None:
        """The edit that was taken back last, or None; it counts as done."""
        if not self._redo:
            return None
        self._undo.append(self._redo.pop())
        return self._undo[-1].edit

    @property
    def undo_label(self) -> str:
        """What undo would take back, with its change in bytes once planned; "" when there is nothing."""
        return _text(self._undo[-1]) if self._undo else ""

    @property
    def redo_label(self) -> str:
        return _text(self._redo[-1]) if self._redo else ""


def _text(entry: _Entry) -> str:
    if entry.bytes_before is None or entry.bytes_after is None:
        return entry.edit.label
    return f"{entry.edit.label} ({signed_bytes(entry.bytes_after - entry.bytes_before)})"


def signed_bytes(delta: int) -> str:
    """−1258291 → "−1.2 MiB"."""
    from core.engine.progress import bytes_text

    if delta == 0:
        return "± 0 B"
    return f"{'+' if delta > 0 else '−'}{bytes_text(abs(delta))}"
