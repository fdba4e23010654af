"""Units in threads of this process. Reading, kernels and writing release the GIL, so threads are enough."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from core.context import JobContext
from core.engine.devices import usable_cores
from core.engine.pages import will_read
from core.engine.units import Unit
from core.engine.work import Guard, UnitResult, Work, process
from core.engine.writer import Files
from core.errors import Cancelled

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint

# Enough to read, compute and write at the same time; the device itself does one thing after the other.
GPU_WORKERS = 3
_TICK_SECONDS = 0.2


def default_workers(device: str) -> int:
    return usable_cores() if device == "cpu" else min(GPU_WORKERS, usable_cores())


class _Stoppable(Guard):
    """Also stops when another worker failed."""

    def __init__(self, work: Work, ctx: JobContext) -> None:
        super().__init__(work, ctx)
        self.stop = threading.Event()

    def check(self) -> None:
        if self.stop.is_set():
            raise Cancelled
        super().check()
        if self.stop.is_set():  # while it was paused
            raise Cancelled


def run_units(
    work: Work,
    units: Sequence[Unit],
    checkpoint: Checkpoint,
    files: Files,
    workers: int,
    ctx: JobContext,
    advance: Callable[[int, str], None],
) -> Iterator[list[UnitResult]]:
    """Results as units finish, in any order; an empty list now and then while none does.

    At most `workers` units are in memory. raises what the first failing unit raised, after all others have stopped
    """
    guard = _Stoppable(work, ctx)
    upcoming = iter(units)
    position = {unit.index: n for n, unit in enumerate(units)}

    def one(unit: Unit) -> UnitResult:
        ahead = position[unit.index] + workers
        if ahead < len(units):
            later = units[ahead]
            planned = work.tensors[later.tensor]
            will_read(planned.tensor.source, checkpoint, later.start, later.stop)
        return process(work, unit, checkpoint, files.write, guard, advance)

    with _torch_threads(max(1, usable_cores() // workers)), ThreadPoolExecutor(workers, "quantbench") as pool:
        pending: set[Future[UnitResult]] = set()
        try:
            while True:
                # Two more than there are workers: nobody waits for this loop. Waiting units hold no memory.
                while len(pending) < workers + 2 and (unit := next(upcoming, None)) is not None:
                    pending.add(pool.submit(one, unit))
                if not pending:
                    return
                finished, pending = wait(pending, _TICK_SECONDS, FIRST_COMPLETED)
                yield _results(finished)
        finally:
            guard.stop.set()
            for future in pending:
                future.cancel()


def _results(finished: set[Future[UnitResult]]) -> list[UnitResult]:
    """Their results; raises the error that says most: a failure rather than the stops it caused."""
    errors = [error for future in finished if (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
    return [future.result() for future in finished]


class _torch_threads:  # noqa: N801 (a context manager, read as a verb)
    """Torch's own threads set to `count` at most, and back afterwards."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        import torch

        self._before = torch.get_num_threads()
        torch.set_num_threads(min(self._before, self._count))

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._before)
