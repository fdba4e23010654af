"""Steps in turns of the event loop: one each, the latest wins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PySide6.QtCore import QObject, QTimer

from app.plotting.turns import Turns


def steps(seen: list[str], name: str, count: int = 3) -> Iterator[None]:
    for i in range(count):
        seen.append(f"{name}{i}")
        yield
    seen.append(f"{name} end")


def test_each_step_has_a_turn_of_its_own(qapp, qtbot) -> None:
    seen: list[str] = []
    owner = QObject()
    turns = Turns(owner)
    turns.begin(steps(seen, "a"))
    assert seen == ["a0"]
    assert turns.busy
    QTimer.singleShot(0, owner, lambda: seen.append("another timer"))
    qtbot.waitUntil(lambda: not turns.busy)
    assert [s for s in seen if s != "another timer"] == ["a0", "a1", "a2", "a end"]
    assert seen.index("another timer") < seen.index("a end")


def test_the_latest_wins_and_stopping_leaves_out_the_rest(qapp, qtbot) -> None:
    seen: list[str] = []
    owner = QObject()
    turns = Turns(owner)
    turns.begin(steps(seen, "a"))
    turns.begin(steps(seen, "b"))
    qtbot.waitUntil(lambda: not turns.busy)
    assert seen == ["a0", "b0", "b1", "b2", "b end"]
    turns.begin(steps(seen, "c"))
    turns.stop()
    qtbot.wait(20)
    assert seen[-1] == "c0"
    turns.begin(steps(seen, "d"))
    turns.finish()
    assert seen[-1] == "d end"
    assert not turns.busy


def test_a_step_that_fails_is_told_and_leaves_nobody_busy(qapp, qtbot) -> None:
    seen: list[str] = []
    turns = Turns(QObject(qapp))

    def failing() -> Iterator[None]:
        raise ValueError("no picture")
        yield

    with pytest.raises(ValueError, match="no picture"):
        turns.begin(failing())
    assert not turns.busy
    turns.begin(steps(seen, "a", 1))
    turns.finish()
    assert seen == ["a0", "a end"]


def test_a_step_may_begin_something_else(qapp, qtbot) -> None:
    seen: list[str] = []
    owner = QObject()
    turns = Turns(owner)

    def changing() -> Iterator[None]:
        yield
        turns.begin(steps(seen, "b", 1))
        yield
        seen.append("never")

    turns.begin(changing())
    qtbot.waitUntil(lambda: not turns.busy)
    assert seen == ["b0", "b end"]
