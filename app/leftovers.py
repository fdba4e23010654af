"""What the window no longer shows: plans, tables and checkpoints of many tensors. Whoever drops the last reference to
one pays for all its small objects in one go, a twentieth of a second for 50,000 tensors, and that was the window. So
such things are kept until nobody else holds them, and a job takes them apart, a few objects at a time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import fields, is_dataclass
from typing import Any

from PySide6.QtCore import QObject, QTimer, Slot

from app.job_service import JobService
from core.context import JobContext

LOOK_MS = 700
# What is still held after so many looks belongs to somebody who keeps it, a finished run say, and is theirs to drop.
LOOKS = 8
# Containers of fewer objects go at once; of larger ones so many at a time, which takes less than a millisecond.
SMALL, SLICE = 256, 1000
PAUSE_SECONDS = 0.001
# A table's cells hold a plan, which holds a layout, which holds the list of its tensors.
DEPTH = 4


class Leftovers(QObject):
    """keep(thing) instead of dropping it. Things are records (dataclasses) or containers."""

    def __init__(self, jobs: JobService, parent: QObject) -> None:
        super().__init__(parent)
        self._jobs = jobs
        self._kept: list[list[Any]] = []  # [thing, looks]
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(LOOK_MS)
        self._timer.timeout.connect(self._look)

    def __len__(self) -> int:
        return len(self._kept)

    @Slot(object)
    def keep(self, thing: object) -> None:
        for entry in self._kept:
            if entry[0] is thing:
                entry[1] = 0  # held twice here, it would never be alone
                break
        else:
            self._kept.append([thing, 0])
        self._timer.start()

    @Slot()
    def _look(self) -> None:
        alone, held = [], []
        for entry in self._kept:
            entry[1] += 1
            # The entry's own reference, and that of the question.
            if sys.getrefcount(entry[0]) <= 2:
                alone.append(entry.pop(0))
            elif entry[1] < LOOKS:
                held.append(entry)
        self._kept = held
        if alone:
            self._jobs.submit(take_apart, alone, title="Let go", lane="preview", waited_for=False)
        if held:
            self._timer.start()


def take_apart(things: list[Any], ctx: JobContext) -> None:
    """Empties the list and frees what was in it, in small steps. What somebody else still holds stays whole."""
    inside = [(things.pop(), DEPTH) for _ in range(len(things))]
    while inside:
        ctx.check()
        thing, depth = inside.pop()
        if is_dataclass(thing):
            values = [getattr(thing, f.name) for f in fields(thing)]
            inside += [(value, depth - 1) for value in values if depth > 1 and _is_large(value)]
            del thing, values
            continue
        objects = [*thing, *thing.values()] if isinstance(thing, dict) else list(thing)
        del thing  # the container goes, its objects wait for their turn
        while objects:
            del objects[-SLICE:]
            time.sleep(PAUSE_SECONDS)


def _is_large(value: object) -> bool:
    """Whether it is worth opening: a record, or a container of many objects."""
    if isinstance(value, list | tuple | dict | set | frozenset):
        return len(value) > SMALL
    return is_dataclass(value)
