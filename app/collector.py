"""Python's garbage collector beside models of many tensors. It looks at every object it knows, and the window stands
still meanwhile: a fifth of a second once a plan of 50,000 tensors is in memory. So it does not look while such a plan
is made, and what was made is set aside afterwards. Plans and outlines hold no cycles: they go when nobody refers to
them.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
_depth = 0


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
