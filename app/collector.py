"""Python's garbage collector beside models of many tensors. It looks at every object it knows, and the window stands
still meanwhile: a fifth of a second once a plan of 50,000 tensors is in memory. So it does not look while such a plan
is made, and what was made is set aside afterwards. Plans and outlines hold no cycles: they go when nobody refers to
them. Elsewhere it looks at few objects at a time, and at all of them when nothing is going on.
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
_depth = 0


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
        global _depth
        with _lock:
            _depth += 1
            gc.disable()
        try:
            return task(*args, **kwargs)
        finally:
            with _lock:
                _depth -= 1
                if not _depth:
                    gc.freeze()
                    gc.enable()

    return run
