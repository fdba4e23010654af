"""A plan becomes a file: units handed to an executor, the journal kept, reports added up, the output published.

What happens inside a unit is in task.py, how bytes reach the disk in writer.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.context import SILENT, JobContext
from core.engine.devices import parse_device
from core.engine.executors.threads import default_workers, run_units
from core.engine.journal import Journal, differences, identity, journal_path
from core.engine.memory import PeakMemory
from core.engine.model import Plan, PlannedTensor, Report, TensorReport
from core.engine.preflight import preflight, require
from core.engine.stages import Blocks, Stages, Whole
from core.engine.units import Unit, cut
from core.engine.work import UnitResult, Work
from core.engine.writer import Output, partial_path
from core.errors import Cancelled, CheckpointError, DeviceError, PlanError, TargetError
from core.methods import METHODS

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint

# Finished units are flushed and journalled together, at least this often.
COMMIT_SECONDS = 1.0


def run(
    plan: Plan,
    checkpoint: Checkpoint,
    out: Path | str,
    *,
    device: str = "cpu",
    workers: int | None = None,
    ctx: JobContext = SILENT,
    resume: bool = False,
    force: bool = False,
    measure: bool = True,
    keep_partial: bool = False,
    cluster: str = "",
) -> Report:
    """Writes the planned output to `out`, which appears only when complete, and reports each tensor's error.

    workers       units at the same time; None: one per core (a few for a GPU). The bytes do not depend on it
    ctx           progress in bytes of source; partial(TensorReport) as each tensor is finished
    resume        continue what a stopped run of the same plan left; without such a rest, start from the beginning
    force         replace an existing output
    measure       compute the error of every tensor that is not copied
    keep_partial  when cancelled, or stopped by the disk or device, leave the rest for `resume`; else it is removed.
                  What an earlier run left stays in any case, unless the source or the target is at fault
    cluster       address of a Dask scheduler whose workers do the units, or ""

    raises  PlanError (preflight; nothing was touched), OutputError, DeviceError, CheckpointError, TargetError,
            CalibrationError, MissingExtra, Cancelled
    """
    began = time.perf_counter()
    out = Path(out)
    device = parse_device(device)
    if workers is not None and workers < 1:
        raise PlanError(f"{workers} workers cannot work", "give 1 or more")
    if cluster and plan.calibration is not None:
        raise PlanError("a calibrated run works on one machine", "leave out --cluster, or gather an imatrix first")
    output = Output(plan.layout, out, folder=plan.folder, inputs=checkpoint.files)
    require(preflight(plan, checkpoint, out, device=device, force=force))
    output.check_free(force)
    memory = PeakMemory()
    work = Work.of(plan, checkpoint, device, measure)
    calibrated: Blocks | None = None
    job = _Job(plan, work, cut(plan, checkpoint), output, ctx)
    journal = Journal(journal_path(output.out), identity(plan, device, measure), resume=resume)
    try:
        stages: Stages = Whole(work)
        if plan.calibration is not None:
            stages = calibrated = Blocks(plan, checkpoint, work, out.absolute(), ctx)
        job.begin(journal, resume, stages)
        count = workers or default_workers(device)
        for stage in stages.each(job.units, job.note):
            pending = [unit for unit in stage.units if unit.index not in journal.done]
            if cluster:
                from core.engine.executors.dask import run_units as run_on_cluster

                results = run_on_cluster(cluster, stage.work, pending, output.files.paths, ctx, job.advance)
            else:
                files, advance = output.files, job.advance
                results = run_units(stage.work, pending, checkpoint, files, count, ctx, advance, stage.keep)
            job.collect(results, journal, memory, keep_partial or job.resumed)
        assert len(job.reports) == len(plan.tensors)
        work.check_source()
        ctx.check()
        output.publish(force)
    except BaseException as error:
        output.files.close()
        if (keep_partial or job.resumed) and not isinstance(error, CheckpointError | TargetError):
            journal.close()
        else:
            output.discard()
            journal.remove()
            if calibrated is not None:
                calibrated.remove()
        raise
    finally:
        for method in METHODS:
            method.forget()
    journal.remove()
    if calibrated is not None:
        calibrated.remove()
    return job.report(device, time.perf_counter() - began, memory.peak())


def can_resume(out: Path | str, plan: Plan | None = None, *, device: str = "cpu", measure: bool = True) -> bool:
    """Whether a stopped run left something for `resume` here; with a plan, whether it is a run of that plan."""
    path = Path(out).absolute()
    if not (journal_path(path).is_file() and partial_path(path).exists()):
        return False
    return plan is None or not differences(journal_path(path), identity(plan, device, measure))


class _Tally:
    """One tensor's units as they come in."""

    def __init__(self, planned: PlannedTensor, missing: int) -> None:
        self.planned = planned
        self.missing = missing
        self.results: list[UnitResult] = []

    def report(self) -> TensorReport:
        """raises TargetError when fewer bytes were written than the plan holds"""
        planned = self.planned
        name = planned.tensor.name
        # In the order of rows, so that the sums do not depend on who finished first.
        results = sorted(self.results, key=lambda r: r.index)
        written = sum(r.written for r in results)
        if written < planned.nbytes:
            raise TargetError(
                f"{written} of {planned.nbytes} bytes were written", "this is a fault of Quantbench; report it", name
            )
        fallbacks = dict.fromkeys([planned.reason] if planned.fallback and planned.reason else [])
        for result in results:
            fallbacks.update(dict.fromkeys(result.fallbacks))
        errors = [r.errors for r in results if r.errors is not None]
        base = TensorReport(
            name=name,
            strategy=str(planned.strategy),
            nbytes=planned.nbytes,
            numel=planned.tensor.numel,
            seconds=sum(r.seconds for r in results),
            fallbacks=tuple(fallbacks),
        )
        outputs = [r.outputs for r in results if r.outputs is not None]
        if outputs:
            base = replace(base, output_error=_output_error(outputs))
        return _with_errors(base, errors) if errors else base


def _with_errors(report: TensorReport, errors: Sequence[tuple[float, ...]]) -> TensorReport:
    from core.analysis.error import ErrorSums

    sums = ErrorSums()
    for values in errors:
        sums = sums + ErrorSums.from_tuple(values)
    return replace(
        report, sqnr_db=sums.sqnr_db, relative_mse=sums.relative_mse, max_abs=sums.max_abs, cosine=sums.cosine
    )


def _output_error(outputs: Sequence[tuple[float, ...]]) -> float | None:
    from core.analysis.output import OutputSums

    sums = OutputSums()
    for values in outputs:
        sums = sums + OutputSums(*values)
    return sums.relative


class _Job:
    """The state of one run outside of its units."""

    def __init__(self, plan: Plan, work: Work, units: tuple[Unit, ...], output: Output, ctx: JobContext) -> None:
        self.plan, self.work, self.units, self.output, self.ctx = plan, work, units, output, ctx
        counts = [0] * len(plan.tensors)
        for unit in units:
            counts[unit.tensor] += 1
        self.tallies = [_Tally(planned, n) for planned, n in zip(plan.tensors, counts, strict=True)]
        self.reports: dict[int, TensorReport] = {}
        self.notes: dict[str, str] = {}
        self.total = sum(unit.source_bytes for unit in units)
        self.done = 0
        self.weights = 0
        self.resumed = False
        self._lock = threading.Lock()

    def begin(self, journal: Journal, resume: bool, stages: Stages) -> None:
        """The partial file ready, what an earlier run finished taken over."""
        if journal.done and not self.output.reopen():
            journal.restart()
        done = stages.still_done(self.units, journal.done)
        if journal.done and not done:
            journal.restart()
        journal.done = done
        self.resumed = bool(journal.done)
        if self.resumed:
            self.notes["resumed"] = f"{len(journal.done)} of {len(self.units)} slices were done by an earlier run"
        else:
            if resume:
                self.notes["resumed"] = "nothing to resume: started from the beginning"
            elif self.output.partial.exists():
                self.notes["discarded"] = "the rest of a stopped run was removed; --resume would have continued it"
            self.output.create()
        for index, tally in enumerate(self.tallies):
            if not tally.missing:
                self._complete(index)
        for unit in self.units:
            if unit.index in journal.done:
                self._take(journal.done[unit.index])
                self.done += unit.source_bytes
        self.ctx.progress(self.done, self.total)

    def note(self, text: str) -> None:
        """What is done meanwhile, where no bytes of source are."""
        with self._lock:
            self.ctx.progress(self.done, self.total, text)

    def advance(self, nbytes: int, name: str) -> None:
        with self._lock:
            self.done += nbytes
            self.ctx.progress(self.done, self.total, name)

    def collect(self, results: Iterator[list[UnitResult]], journal: Journal, memory: PeakMemory, keep: bool) -> None:
        """Takes every result; journals them in batches, each after its bytes were flushed.

        keep  a stopped run is to be continued: what it finished last is journalled too
        """
        waiting: list[UnitResult] = []
        last = time.monotonic()

        def commit() -> None:
            nonlocal last
            if waiting:
                self.output.files.sync()
                journal.write(waiting)
                waiting.clear()
            last = time.monotonic()

        try:
            for batch in results:
                for result in batch:
                    self._take(result)
                    self.weights += self._weights(result.index)
                    waiting.append(result)
                if batch:
                    memory.sample()
                if time.monotonic() - last >= COMMIT_SECONDS:
                    commit()
            commit()
        except (Cancelled, DeviceError):
            if keep:
                commit()
            raise
        finally:
            results.close()  # type: ignore[attr-defined]

    def _weights(self, index: int) -> int:
        unit = self.units[index]
        return (unit.stop - unit.start) * self.plan.tensors[unit.tensor].tensor.columns

    def _take(self, result: UnitResult) -> None:
        index = self.units[result.index].tensor
        tally = self.tallies[index]
        tally.results.append(result)
        tally.missing -= 1
        for note in result.notes:
            self.notes.setdefault("memory", note)
        if not tally.missing:
            self._complete(index)

    def _complete(self, index: int) -> None:
        tally = self.tallies[index]
        report = tally.report()
        tally.results = []
        self.reports[index] = report
        self.ctx.partial(report)

    def report(self, device: str, seconds: float, peak: int) -> Report:
        tensors = tuple(self.reports[i] for i in range(len(self.plan.tensors)))
        return Report(
            out=self.output.out,
            nbytes=self.plan.nbytes,
            seconds=seconds,
            weights=self.weights,
            peak_rss_bytes=peak,
            device=device,
            tensors=tensors,
            fallbacks=tuple(f"{t.name}: {text}" for t in tensors for text in t.fallbacks),
            notes=self.notes,
        )
