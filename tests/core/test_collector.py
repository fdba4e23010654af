"""When Python's collector looks at what: in short looks, not at all, or never again. It is one for a whole process,
and a window's threads of an earlier test may still be at work in this one."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from core import collector
from tests.alone import alone


class Ring:
    def __init__(self) -> None:
        self.itself = self


@alone
def test_everything_is_looked_at_by_sweeping_alone() -> None:
    looks: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            looks.append(info["generation"])

    gc.collect()
    assert not collector.sweep(), "nothing has gathered"
    collector.in_short_looks()
    gc.callbacks.append(note)
    try:
        kept = [Ring() for _ in range(collector.YOUNG * (collector.MIDDLE + 2) * (collector.WORTH + 5))]
        assert set(looks) == {0, 1}
        assert collector.sweep()
    finally:
        gc.callbacks.remove(note)
    assert looks[-1] == 2
    assert kept


@alone
def test_it_stands_still_until_the_last_one_resumes() -> None:
    collector.pause()
    collector.pause()
    collector.resume(set_aside=False)
    assert not gc.isenabled(), "somebody else still needs it to stand still"
    collector.resume(set_aside=False)
    assert gc.isenabled()


@alone
def test_who_had_switched_it_off_finds_it_so() -> None:
    gc.disable()
    collector.pause()
    collector.resume(set_aside=True)
    assert not gc.isenabled()


@pytest.mark.parametrize("first", [True, False])
@alone
def test_set_aside_when_one_of_several_asks_for_it(first: bool) -> None:
    before = gc.get_freeze_count()
    collector.pause()
    collector.pause()
    rings = [Ring() for _ in range(100)]
    collector.resume(set_aside=first)
    assert gc.get_freeze_count() == before, "somebody is still at work"
    collector.resume(set_aside=not first)
    assert gc.get_freeze_count() >= before + len(rings)


@alone
def test_without_asking_for_it_garbage_is_found() -> None:
    before = gc.get_freeze_count()
    collector.pause()
    ring = Ring()
    gone = weakref.ref(ring)
    del ring
    collector.resume(set_aside=False)
    assert gc.get_freeze_count() == before
    gc.collect()
    assert gone() is None


@alone
def test_a_task_that_fails_leaves_it_running() -> None:
    @collector.without_collections
    def task() -> None:
        assert not gc.isenabled()
        raise ValueError

    with pytest.raises(ValueError):
        task()
    assert gc.isenabled()


@alone
def test_tasks_side_by_side() -> None:
    begun, go_on = threading.Event(), threading.Event()

    @collector.without_collections
    def long() -> None:
        begun.set()
        go_on.wait(10)

    thread = threading.Thread(target=long)
    thread.start()
    begun.wait(10)
    collector.without_collections(lambda: None)()
    assert not gc.isenabled()
    go_on.set()
    thread.join()
    assert gc.isenabled()
