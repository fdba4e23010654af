"""Hints about memory-mapped sources: read these rows soon, forget those. Only hints: results never depend on them.

Without them a run over a mapped checkpoint ends with the whole file counted as this process's memory, and a cold file
is read in small steps. Only sources that are a plain `mmap` take hints; everywhere else these calls do nothing.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from core.errors import UnsupportedFormat

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.targets.base import RowSource

_SOON = getattr(mmap, "MADV_WILLNEED", None)
_NO_MORE = getattr(mmap, "MADV_DONTNEED", None)


def will_read(source: RowSource, checkpoint: Checkpoint, start: int, stop: int) -> None:
    """The kernel may start reading these output rows."""
    name = source.verbatim()
    if name is not None:  # permuted and merged rows lie elsewhere: no hint rather than a wrong one
        _advise(checkpoint, name, start, stop, _SOON)


def was_read(source: RowSource, checkpoint: Checkpoint, start: int, stop: int) -> None:
    """Pages of these output rows leave this process (the file cache keeps them)."""
    name = source.verbatim()
    if name is not None:
        _advise(checkpoint, name, start, stop, _NO_MORE)
        return
    for part in source.names():
        _advise(checkpoint, part, 0, None, _NO_MORE)


def _advise(checkpoint: Checkpoint, name: str, start: int, stop: int | None, advice: int | None) -> None:
    try:
        view = checkpoint.raw(name, start, stop)
    except UnsupportedFormat:
        return  # read back from several pieces, so without bytes of its own
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
