"""Units on the workers of a Dask cluster. Every worker opens the checkpoint by its path and writes into the same output
file, so both must lie on a file system that all of them share. Needs the extra `cluster`.
"""

from __future__ import annotations

import gc
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import core
from core import errors
from core.context import SILENT, JobContext
from core.engine.task import process
from core.engine.units import Unit
from core.engine.work import Guard, UnitResult, Work
from core.engine.writer import Files
from core.errors import CheckpointError, DeviceError, MissingExtra, WorkbenchError

if TYPE_CHECKING:
    from distributed import Client, Future

    from core.checkpoints.base import Checkpoint

CONNECT_SECONDS = 15
# Times a unit is given to another worker after something unexpected (a full disk is expected, a lost worker is not).
RETRIES = 2
_TICK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error of ours on its way from a worker: retrying would not help."""

    kind: str
    message: str
    hint: str
    where: str

    @classmethod
    def of(cls, error: WorkbenchError) -> _Failure:
        return cls(type(error).__name__, error.message, error.hint, error.where)

    def error(self) -> WorkbenchError:
        kind = getattr(errors, self.kind, None)
        known = isinstance(kind, type) and issubclass(kind, WorkbenchError)
        made: WorkbenchError = (kind if known else WorkbenchError)(self.message, self.hint, self.where)  # type: ignore
        return made


def run_units(
    address: str,
    work: Work,
    units: Sequence[Unit],
    paths: Sequence[Path],
    ctx: JobContext,
    advance: Callable[[int, str], None],
) -> Iterator[list[UnitResult]]:
    """Results as workers finish units, in any order.

    raises  MissingExtra, DeviceError (no scheduler, no workers, workers lost), or what a unit raised
    """
    client = _connect(address)
    upcoming = iter(units)
    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    pending: dict[Any, tuple[Future, Unit]] = {}
    where = tuple(str(path) for path in paths)
    try:
        limit = _slots(client)
        while True:
            ctx.check()
            # Twice the workers' threads: the next unit is there when one is finished, the scheduler's list stays short.
            while len(pending) < limit and (unit := next(upcoming, None)) is not None:
                future = client.submit(_task, *_alone(work, unit), where, pure=False, retries=RETRIES)
                pending[future.key] = (future, unit)
                future.add_done_callback(finished.put)
            if not pending:
                return
            try:
                future = finished.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                limit = _slots(client)  # workers come and go
                yield []
                continue
            _, unit = pending.pop(future.key)
            result = _result(future, address, work.tensors[unit.tensor].tensor.name)
            advance(unit.source_bytes, work.tensors[unit.tensor].tensor.name)
            yield [replace(result, index=unit.index)]
    finally:
        client.cancel([future for future, _ in pending.values()])
        client.close()


def _connect(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingExtra("a cluster needs the package distributed", 'pip install "quantbench[cluster]"') from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        _finalize(error)
        raise DeviceError(
            "no Dask scheduler answers", "start one with `dask scheduler`, workers with `dask worker`", address
        ) from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError as error:
        client.close()
        raise DeviceError("the Dask scheduler has no workers", f"start one: dask worker {address}", address) from error
    return client


def _finalize(error: BaseException) -> None:
    """Ends the client that could not connect, here and now. Left to a later garbage collection, which may come while
    distributed holds one of its locks, its finalizer waits for that very lock, for ever."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    gc.collect()


def _slots(client: Client) -> int:
    return 2 * max(1, sum(client.nthreads().values()))


def _alone(work: Work, unit: Unit) -> tuple[Work, Unit]:
    """The unit with only the tensor it speaks of, so that a message has kilobytes whatever the model."""
    planned = work.tensors[unit.tensor]
    name = planned.tensor.name
    statistics = {name: work.statistics[name]} if name in work.statistics else {}
    alone = replace(work, tensors=(planned,), places={name: work.places[name]}, statistics=statistics)
    return alone, replace(unit, tensor=0)


def _result(future: Future, address: str, tensor: str) -> UnitResult:
    from distributed import KilledWorker

    try:
        answer: UnitResult | _Failure = future.result()
    except KilledWorker as error:
        raise DeviceError(
            f"the cluster lost its worker {RETRIES + 1} times or more while doing {tensor}",
            "look at the workers' own logs: they may have run out of memory",
            address,
        ) from error
    except ImportError as error:
        raise DeviceError(
            f"a worker lacks something: {errors.one_line(error)}", "install Quantbench there too", address
        ) from error
    except Exception as error:
        raise DeviceError(f"a worker failed at {tensor}: {errors.one_line(error)}", where=address) from error
    if isinstance(answer, _Failure):
        raise answer.error()
    return answer


def _do(work: Work, unit: Unit, paths: tuple[str, ...]) -> UnitResult | _Failure:
    """Runs on a worker."""
    try:
        if work.version != core.__version__:
            raise DeviceError(f"a worker has Quantbench {core.__version__}, this is {work.version}")
        _share_cores()
        checkpoint = _opened(str(work.source), work.fingerprint)
        files = Files([Path(path) for path in paths])
        try:
            result = process(work, unit, checkpoint, files.write, Guard(work, SILENT), _ignore)
            files.sync()
        finally:
            files.close()
        return result
    except WorkbenchError as error:
        return _Failure.of(error)


# What is sent to the workers; tests send something that breaks.
_task = _do


def _ignore(nbytes: int, name: str) -> None:
    pass


@lru_cache(maxsize=1)
def _opened(source: str, fingerprint: str) -> Checkpoint:
    from core.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(Path(source))
    if checkpoint.fingerprint() != fingerprint:
        raise CheckpointError("a worker sees another file than the one planned", "use a shared file system", source)
    return checkpoint


def _share_cores() -> None:
    """Torch's threads times the worker's threads are no more than the machine's cores."""
    import torch
    from distributed import get_worker

    from core.engine.devices import usable_cores

    worker: Any = get_worker()
    torch.set_num_threads(max(1, usable_cores() // max(1, worker.state.nthreads)))
