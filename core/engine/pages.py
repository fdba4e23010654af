"""Hints about memory-mapped sources: read these rows soon, forget those. Only hints: results never depend on them.

Without them a run over a mapped checkpoint ends with the whole file counted as this process's memory, and a cold file
is read in small steps. Only sources that are a plain `mmap` take hints; everywhere else these calls do nothing.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.targets.base import RowSource

_SOON = getattr(mmap, "MADV_WILLNEED", None)
_NO_MORE = getattr(mmap, "MADV_DONTNEED", None)


def will_read(source: RowSource, checkpoint: Checkpoint, start: int, stop: int) -> None:
    """The kernel may start reading these output rows."""
    name = source.verbatim()
    if name is not None:  # permuted and merged rows lie elsewhere: no hint rather than a wrong one
        _advise(checkpoint.raw(name, start, stop), _SOON)


def was_read(source: RowSource, checkpoint: Checkpoint, start: int, stop: int) -> None:
    """Pages of these output rows leave this process (the file cache keeps them)."""
    name = source.verbatim()
    if name is not None:
        _advise(checkpoint.raw(name, start, stop), _NO_MORE)
        return
    for part in source.names():
        _advise(checkpoint.raw(part), _NO_MORE)


def _advise(view: memoryview, advice: int | None) -> None:
    # `obj` is the mapping itself when the view was sliced from it. Anything else may be ordinary memory, for which
    # "do not need" would mean to lose its contents.
    owner = view.obj
    if advice is None or not isinstance(owner, mmap.mmap) or not view.nbytes:
        return
    import numpy as np

    page = mmap.PAGESIZE
    base = np.frombuffer(owner, np.uint8).ctypes.data
    begin = np.frombuffer(view, np.uint8).ctypes.data - base
    first, last = -(-begin // page) * page, (begin + view.nbytes) // page * page
    if last > first:
        owner.madvise(advice, first, last - first)
