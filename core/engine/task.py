"""What is done with one unit: read rows, quantize, measure, write. The same code in a thread and on a cluster's worker.

No order, no journal, no threads here (pipeline.py, executors/).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.calibration.folding import Folded
from core.calibration.statistics import Statistic, TensorStatistics
from core.context import JobContext
from core.engine.devices import out_of_memory, to_cpu, to_device
from core.engine.known import as_tensors, rows_of_expert
from core.engine.model import PlannedTensor
from core.engine.pages import was_read
from core.engine.sharing import largest
from core.engine.units import Unit, row_multiple, rows_within
from core.engine.work import UnitResult, Work
from core.errors import (
    CalibrationError,
    CheckpointError,
    DeviceError,
    RowError,
    TargetError,
    WorkbenchError,
)
from core.parameters import STATIC
from core.targets.base import STATIC_NEEDS

if TYPE_CHECKING:
    import torch

    from core.analysis.error import ErrorSums
    from core.analysis.output import OutputSums
    from core.checkpoints.base import Checkpoint
    from core.formats.base import Grid, Quantized

Write = Callable[[int, int, "memoryview | bytes"], None]
# (output tensor, first row, row behind the last, float32 [rows, columns] as a reader of the output gets them)
Keep = Callable[["PlannedTensor", int, int, "torch.Tensor"], None]

# On the CPU a unit is worked through in pieces of this many weights: they stay in the cache, memory stays small, and
# the time between two looks at the stop button short. A GPU takes a whole unit at once.
PIECE_WEIGHTS = 1 << 20
COPY_BYTES = 1 << 23


def process(
    work: Work,
    unit: Unit,
    checkpoint: Checkpoint,
    write: Write,
    ctx: JobContext,
    advance: Callable[[int, str], None],
    keep: Keep | None = None,
) -> UnitResult:
    """Does one unit. advance(source bytes, tensor name) is called as pieces finish, keep with what was quantized.

    raises  Cancelled; any WorkbenchError, with the tensor's name in it
    """
    ctx.check()
    planned = work.tensors[unit.tensor]
    if work.scales is not None:
        checkpoint = Folded(checkpoint, work.scales)
    began = time.perf_counter()
    try:
        task = _Task(work, unit, planned, checkpoint, write, ctx, advance, keep)
        task.copy() if planned.copy else task.quantize()
        was_read(planned.tensor.source, checkpoint, unit.start, unit.stop)
    except WorkbenchError as error:
        if isinstance(error, CheckpointError) and not error.where:
            error.where = planned.tensor.name
        raise
    except Exception as error:
        if out_of_memory(error):
            raise DeviceError(
                f"{planned.tensor.name}: {_device_words(work.device)} has no memory left",
                "use fewer --workers, close other programs, or use --device cpu",
            ) from error
        raise
    seconds = time.perf_counter() - began
    errors = task.sums.to_tuple() if task.sums is not None else None
    outputs = task.outputs.to_tuple() if task.outputs is not None else None
    return UnitResult(unit.index, seconds, task.written, errors, tuple(task.fallbacks), outputs, tuple(task.notes))


class _Task:
    """One unit in the making."""

    def __init__(
        self,
        work: Work,
        unit: Unit,
        planned: PlannedTensor,
        checkpoint: Checkpoint,
        write: Write,
        ctx: JobContext,
        advance: Callable[[int, str], None],
        keep: Keep | None,
    ) -> None:
        self.work, self.unit, self.planned = work, unit, planned
        self.checkpoint, self.ctx = checkpoint, ctx
        self.places = {place.stored.name: place for place in work.places[planned.tensor.name]}
        self.written = 0
        self.sums: ErrorSums | None = None
        self.outputs: OutputSums | None = None
        # Dicts keep order and drop repetitions.
        self.fallbacks: dict[str, None] = dict.fromkeys(work.remarks.get(planned.tensor.name, ()))
        self.known = work.statistics.get(planned.tensor.name) if planned.quantized else None
        self.notes: dict[str, None] = {}
        self._write, self._advance = write, advance
        self._keep = keep if planned.quantized else None

    def put(self, stored: str, offset: int, data: memoryview | bytes) -> None:
        place = self.places[stored]
        nbytes = memoryview(data).nbytes
        if offset < 0 or offset + nbytes > place.stored.nbytes:
            raise TargetError(
                f"{self.work.target.name} would write outside {stored}: {nbytes} bytes at {offset} of "
                f"{place.stored.nbytes}",
                "this is a fault of Quantbench; please report it",
                self.planned.tensor.name,
            )
        self._write(place.file, place.offset + offset, data)
        self.written += nbytes

    def advance(self, start: int, stop: int) -> None:
        rows = self.unit.stop - self.unit.start
        total = self.unit.source_bytes
        a, b = start - self.unit.start, stop - self.unit.start
        self._advance(total * b // rows - total * a // rows, self.planned.tensor.name)

    def copy(self) -> None:
        """Stored bytes go over as they are."""
        tensor = self.planned.tensor
        source, place = tensor.source.verbatim(), self.places[tensor.name]
        assert source is not None, tensor.name
        if self.unit.start == 0:
            for name in tensor.source.beside():
                self.put(name, 0, self.checkpoint.raw(name))
        rows, nbytes = self.planned.tensor.rows, place.stored.nbytes
        step = max(1, COPY_BYTES * rows // max(1, nbytes))
        for start in range(self.unit.start, self.unit.stop, step):
            self.ctx.check()
            stop = min(self.unit.stop, start + step)
            begin, end = nbytes * start // rows, nbytes * stop // rows
            data = self.checkpoint.raw(source, start, stop)
            if data.nbytes != end - begin:
                raise TargetError(
                    f"rows {start} to {stop} hold {data.nbytes} bytes, the output has room for {end - begin}",
                    "this is a fault of Quantbench; please report it",
                    self.planned.tensor.name,
                )
            self.put(place.stored.name, begin, data)
            self.advance(start, stop)

    def quantize(self) -> None:
        """Rows become codes. After the device ran out of memory once, pieces are half as large; twice is an error."""
        self._share()
        multiple = row_multiple(self.planned, self.work.target.row_multiple)
        each = rows_of_expert(self.planned.tensor, self.known)
        if self.known is not None and self.known.stacked and (not multiple or each % multiple):
            self.known = None
            self.fallbacks["statistics of its experts unused: the format's blocks run across them"] = None
            each = self.planned.tensor.rows
        step = self.unit.stop - self.unit.start
        grid = None if multiple else self._common_grid()
        if grid is not None:
            multiple = self.work.target.row_multiple
        sliceable = multiple > 0 and self.planned.strategy.method == "nearest"
        if sliceable and self.work.device == "cpu":
            step = min(step, rows_within(PIECE_WEIGHTS, self.planned.tensor.columns, multiple))
        half = step // 2 // multiple * multiple if sliceable else 0
        start = self.unit.start
        while start < self.unit.stop:
            self.ctx.check()
            stop = min(self.unit.stop, start + step, (start // each + 1) * each)
            try:
                self._piece(start, stop, grid)
            except Exception as error:
                if not half or not out_of_memory(error):
                    raise
                step, half = half, 0
            else:
                self.advance(start, stop)
                start = stop
                continue
            # Outside of `except`: what the failed attempt held is free only when its error is gone.
            _empty_cache(self.work.device)
            device = _device_words(self.work.device)
            self.notes[f"{self.planned.tensor.name}: {device} ran out of memory; done in slices of {step} rows"] = None
        if not self.unit.start and self.planned.inputs == STATIC:
            self._store_inputs()

    def _share(self) -> None:
        """One scale of the tensor for it and those that clients compute it with: from the largest weight of all."""
        members = self.work.together.get(self.planned.tensor.name, ())
        if members:
            tensors = [self.work.tensors[index].tensor for index in members]
            absmax = max(largest(tensor, self.checkpoint, self.ctx) for tensor in tensors)
            fate = replace(self.planned.fate, format=self.planned.format.sharing(absmax))
            self.planned = replace(self.planned, fate=fate)

    def _store_inputs(self) -> None:
        """What clients need to round this layer's inputs. Without it they would compute nonsense: no fall-back."""
        known = as_tensors(self.known, "cpu")
        if not known.keys() >= STATIC_NEEDS:
            raise CalibrationError(
                f"the range of its inputs is not known{_reach(self.known, '')}",
                "give a longer calibration text, or inputs=dynamic",
                self.planned.tensor.name,
            )
        for name, offset, data in self.work.target.store_inputs(self.planned.assignment, known):
            self.put(name, offset, data)

    def _common_grid(self) -> Grid | None:
        """The grid of a tensor that has a single one, such as one scale for all its weights. Fitted to the whole, it
        lets rows be worked through in pieces all the same."""
        planned = self.planned
        small = planned.tensor.numel <= PIECE_WEIGHTS
        if small or self.work.device != "cpu" or planned.strategy.method != "nearest":
            return None
        from core.methods.options import as_fitted

        w = planned.tensor.source.read(self.checkpoint, self.unit.start, self.unit.stop)
        fmt = as_fitted(planned.format, dict(planned.strategy.params))
        grid = fmt.fit(w, as_tensors(self.known, "cpu").get(Statistic.IMPORTANCE))
        return grid if all(part.shape[0] == 1 for part in grid.parts.values()) else None

    def _piece(self, start: int, stop: int, grid: Grid | None) -> None:
        planned, work = self.planned, self.work
        w = to_device(planned.tensor.source.read(self.checkpoint, start, stop), work.device)
        known = self._known_of(start)
        stats = as_tensors(known, work.device)
        try:
            quantized = self._quantized(w, known, stats, grid)
        except RowError as error:
            error.counted_from(start)
            raise
        if work.measure or self._keep is not None:
            stored = quantized.dequantize()
            if self._keep is not None:
                self._keep(planned, start, stop, stored)
        if work.measure:
            from core.analysis.error import ErrorSums

            # float8 has no arithmetic of its own; anything else is widened inside the sums.
            wide = w.float() if w.element_size() == 1 else w
            sums = ErrorSums().add(wide, stored)
            self.sums = sums if self.sums is None else self.sums + sums
            if Statistic.HESSIAN in stats:
                from core.analysis.output import OutputSums

                more = OutputSums.of(w, stored, stats[Statistic.HESSIAN])
                self.outputs = more if self.outputs is None else self.outputs + more
        self.fallbacks.update(dict.fromkeys(quantized.fallbacks))
        here = quantized if work.device == "cpu" else to_cpu(quantized)
        for name, offset, data in work.target.store(planned.assignment, here, start, stop):
            self.put(name, offset, data)

    def _known_of(self, start: int) -> TensorStatistics | None:
        """What is known of the inputs of rows from `start` on, which are one expert's where there are any."""
        known = self.known
        if known is not None and known.stacked:
            return known.of_expert(start // rows_of_expert(self.planned.tensor, known))
        return known

    def _quantized(
        self,
        w: torch.Tensor,
        known: TensorStatistics | None,
        stats: Mapping[Statistic, torch.Tensor],
        grid: Grid | None,
    ) -> Quantized:
        planned = self.planned
        if grid is not None:
            from core.formats.base import Quantized

            codes = planned.format.encode(w, grid)
            return Quantized(planned.format, (w.shape[0], w.shape[1]), codes=codes, grid=grid)
        if not planned.quantized:
            return planned.format.quantize(w)
        from core.methods import get_method
        from core.parameters import check_parameters

        method = get_method(planned.strategy.method)
        missing = method.needs - stats.keys()
        if missing:
            words = ", ".join(sorted(kind.value for kind in missing))
            self.fallbacks[f"{method.name} → nearest: no {words}{_reach(known)}"] = None
            return get_method("nearest").quantize(w, planned.format, stats, {}, self.ctx)
        given = dict(planned.strategy.params)
        params: dict[str, Any] = check_parameters(method.all_parameters, given, planned.tensor.name)
        return method.quantize(w, planned.format, stats, params, self.ctx)


def _reach(known: TensorStatistics | None, otherwise: str = " of its inputs is known") -> str:
    """Why a statistic that was gathered is not there."""
    return ", as no token reached it" if known is not None and not any(known.counts) else otherwise


def _device_words(device: str) -> str:
    return "this machine" if device == "cpu" else device


def _empty_cache(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
