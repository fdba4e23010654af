"""What the window no longer shows is let go in small steps, and never while somebody still holds it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import pytest
from PySide6.QtCore import QObject

from app import leftovers
from app.job_service import JobService
from app.leftovers import SLICE, Leftovers, take_apart
from core.context import SILENT


class Small:
    """One of the many objects in a large thing."""


@dataclass(frozen=True, eq=False)
class Table:
    """A record as a plan is one: large containers, and records in it."""

    rows: tuple[Small, ...]
    by_name: dict[str, Small]
    inner: Table | None = None


def _table(inner: Table | None = None) -> Table:
    rows = tuple(Small() for _ in range(3 * SLICE))
    return Table(rows, {str(i): Small() for i in range(2 * SLICE)}, inner)


def test_everything_in_it_goes_in_steps(monkeypatch) -> None:
    table = _table(_table())
    watched = [weakref.ref(o) for t in (table, table.inner) for o in (*t.rows, *t.by_name.values())]
    left: list[int] = []
    monkeypatch.setattr(leftovers.time, "sleep", lambda _: left.append(sum(w() is not None for w in watched)))
    things = [table]
    del table
    take_apart(things, SILENT)
    assert not things
    assert not any(w() is not None for w in watched)
    steps = [a - b for a, b in zip([len(watched), *left], left, strict=False)]
    assert max(steps) <= SLICE, "so many at once are what this is there to avoid"


def test_what_somebody_holds_stays_whole() -> None:
    table = _table()
    take_apart([table], SILENT)
    assert len(table.rows) == 3 * SLICE
    assert len(table.by_name) == 2 * SLICE


@pytest.fixture
def kept(qapp):
    jobs, owner = JobService(), QObject()
    made = Leftovers(jobs, owner)
    made._timer.setInterval(1)
    yield made
    assert jobs.shutdown() == ()


def test_it_waits_until_nobody_else_holds_it(kept: Leftovers, qtbot) -> None:
    table = _table()
    gone = weakref.ref(table)
    kept.keep(table)
    kept._look()
    assert len(kept) == 1
    del table
    qtbot.waitUntil(lambda: gone() is None, timeout=5000)
    assert len(kept) == 0


def test_what_others_keep_for_good_is_theirs(kept: Leftovers, qtbot) -> None:
    table = _table()
    kept.keep(table)
    qtbot.waitUntil(lambda: len(kept) == 0, timeout=5000)
    assert len(table.rows) == 3 * SLICE


def test_what_two_let_go_of_goes_once_nobody_holds_it(kept, qtbot) -> None:
    table = _table()
    gone = weakref.ref(table.rows[0])
    kept.keep(table)
    kept.keep(table)
    assert len(kept) == 1
    del table
    qtbot.waitUntil(lambda: gone() is None and not len(kept), timeout=5000)
