"""Units in threads of this process. Reading, kernels and writing release the GIL, so threads are enough."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.context import JobContext
from core.engine.devices import usable_cores
from core.engine.pages import will_read
from core.engine.task import Keep, process
from core.engine.units import Unit
from core.engine.work import Guard, UnitResult, Work
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
    keep: Keep | None = None,
) -> Iterator[list[UnitResult]]:
    """Results as units finish, in any order; an empty list now and then while none does.

    At most `workers` units are in memory. raises what the first failing unit raised, after all others have stopped
    """
    guard = _Stoppable(work, ctx)
    positions = iter(range(len(units)))
    taking = threading.Lock()
    # Results, errors, and None from a worker that leaves.
    said: queue.SimpleQueue[UnitResult | BaseException | None] = queue.SimpleQueue()

    def worker() -> None:
        try:
            while True:
                with taking:
                    position = next(positions, None)
                if position is None:
                    return
                if position + workers < len(units):
                    _announce(work, units[position + workers], checkpoint)
                said.put(process(work, units[position], checkpoint, files.write, guard, advance, keep))
        except BaseException as error:
            guard.stop.set()
            said.put(error)
        finally:
            said.put(None)

    threads = [
        threading.Thread(target=worker, name=f"quantbench-{n}", daemon=True) for n in range(min(workers, len(units)))
    ]
    with _torch_threads(max(1, usable_cores() // workers)):
        try:
            for thread in threads:
                thread.start()
            working, errors = len(threads), []
            while working:
                heard = _heard(said)
                working -= heard.count(None)
                errors += [item for item in heard if isinstance(item, BaseException)]
                yield [item for item in heard if isinstance(item, UnitResult)]
            if errors:
                # The failure rather than the stops that it caused.
                raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
        finally:
            guard.stop.set()
            for thread in threads:
                thread.join()


def _heard(said: queue.SimpleQueue[UnitResult | BaseException | None]) -> list[UnitResult | BaseException | None]:
    """All there is, after waiting a little for the first."""
    items = []
    try:
        items.append(said.get(timeout=_TICK_SECONDS))
        while True:
            items.append(said.get_nowait())
    except queue.Empty:
        return items


def _announce(work: Work, unit: Unit, checkpoint: Checkpoint) -> None:
    will_read(work.tensors[unit.tensor].tensor.source, checkpoint, unit.start, unit.stop)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch's own threads are `count` at most, and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)
