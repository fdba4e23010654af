"""What every unit of a run needs to know, and what it comes to. The same in a thread and on a cluster's worker."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import core
from core.calibration.folding import Scales
from core.calibration.statistics import TensorStatistics
from core.checkpoints.base import Checkpoint
from core.context import JobContext
from core.engine.model import Plan, PlannedTensor
from core.engine.sharing import bundled
from core.errors import CheckpointError
from core.targets.base import Placed, Target

# The source files are looked at this often. Not for every piece: there may be many files, on a slow network.
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Work:
    """What every unit of a run needs to know. Small and picklable.

    sizes       (path, bytes, mtime_ns) of the source files when the run began
    statistics  by output tensor; what is not known is not in it
    scales      folds that tensors are read with
    together    output tensor → all that must have its scale of the whole tensor, itself among them, as indices
    remarks     output tensor → lines for its report
    """

    source: Path
    fingerprint: str
    sizes: tuple[tuple[str, int, int], ...]
    target: Target
    tensors: tuple[PlannedTensor, ...]
    places: Mapping[str, tuple[Placed, ...]]
    device: str
    measure: bool
    statistics: Mapping[str, TensorStatistics]
    together: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scales: Scales | None = None
    remarks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    version: str = core.__version__

    @classmethod
    def of(cls, plan: Plan, checkpoint: Checkpoint, device: str, measure: bool) -> Work:
        sizes = tuple((str(path), *_stamp(path)) for path in checkpoint.files)
        return cls(
            source=plan.source,
            fingerprint=plan.fingerprint,
            sizes=sizes,
            target=plan.target,
            tensors=plan.tensors,
            places=plan.layout.places,
            device=device,
            measure=measure,
            statistics=plan.known.tensors,
            together=bundled(plan),
        )

    def check_source(self) -> None:
        """Raises CheckpointError when a source file changed under the run. A shortened one must not be touched: its
        missing pages end the process."""
        for path, nbytes, mtime in self.sizes:
            if _stamp(Path(path)) != (nbytes, mtime):
                raise CheckpointError("changed while it was being read", "leave it alone during a run", where=path)


class Guard:
    """The caller's context; its check() also looks at the source files, after a pause in any case."""

    def __init__(self, work: Work, ctx: JobContext) -> None:
        self._work, self._ctx = work, ctx
        self._looked = -LOOK_SECONDS
        self.progress, self.partial = ctx.progress, ctx.partial

    def check(self) -> None:
        self._ctx.check()
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._work.check_source()
            self._looked = now


@dataclass(frozen=True)
class UnitResult:
    """One finished unit.

    errors   ErrorSums as a tuple, None where nothing was measured
    written  bytes put into the output
    outputs  OutputSums as a tuple, None where nothing is known of the inputs' Hessian
    notes    about the run rather than the tensor; not journalled
    """

    index: int
    seconds: float
    written: int
    errors: tuple[float, ...] | None
    fallbacks: tuple[str, ...]
    outputs: tuple[float, ...] | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", where=path) from error
    return found.st_size, found.st_mtime_ns
