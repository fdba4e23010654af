"""Python's garbage collector beside many objects. It looks at every one it knows, and all threads stand still
meanwhile: a fifth of a second once a plan of 50,000 tensors is in memory, a tenth when a compiled kernel was loaded. So
it does not look while such things are made, and what was made is set aside afterwards. Plans and outlines hold no
cycles: they go when nobody refers to them; kernels stay. Elsewhere it looks at few objects at a time, and in a window
at all of them when nothing is going on.

Whoever pauses it does so here: two who did it by themselves would wake it up for each other.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# New objects are looked at when there are so many of them, and once more at every third such look: 6,000 objects in one
# go at most, 2 to 10 ms. (A run of 50,000 tensors makes millions. With 50,000 and every twentieth, single looks took 30
# to 325 ms.) The rest is looked at by `sweep` alone.
YOUNG, MIDDLE, NEVER = 2_000, 1, 1_000_000
# So many second looks are worth a look at everything.
WORTH = 20

_lock = threading.Lock()
_pauses = 0
_was_on = True
_aside = False  # one of the pauses since the first asked for it


def in_short_looks() -> None:
    """From now on, the collector never looks at many objects in one go by itself."""
    gc.set_threshold(YOUNG, MIDDLE, NEVER)


def sweep() -> bool:
    """Looks at all objects that are not set aside, if many have gathered. Whether it did."""
    if not gc.isenabled() or gc.get_count()[2] < WORTH:
        return False
    gc.collect()
    return True


def without_collections(task: Callable[P, R]) -> Callable[P, R]:
    """The task, with no collection while it runs (in any thread) and its objects set aside when the last one ends."""

    @functools.wraps(task)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        pause()
        try:
            return task(*args, **kwargs)
        finally:
            resume(set_aside=True)

    return run


def pause() -> None:
    """No collection until `resume` was called as often."""
    global _pauses, _was_on, _aside
    with _lock:
        if not _pauses:
            _was_on, _aside = gc.isenabled(), False
            gc.disable()
        _pauses += 1


def resume(*, set_aside: bool) -> None:
    """set_aside: what was made meanwhile stays, or goes without being looked for. Otherwise the next collection goes
    through all of it."""
    global _pauses, _aside
    with _lock:
        _pauses -= 1
        _aside = _aside or set_aside
        if not _pauses:
            if _aside:
                gc.freeze()
            if _was_on:
                gc.enable()
