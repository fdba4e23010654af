"""A recipe that nobody has written yet, as a checkpoint: every tensor is quantized when it is read, by the engine's own
code for the plan's units, and comes back as a reader of the output would get it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from core.checkpoints.base import Checkpoint
from core.context import SILENT, JobContext
from core.engine.devices import usable_cores
from core.engine.model import Plan
from core.engine.stages import Sink
from core.engine.task import process
from core.engine.units import Unit, cut
from core.engine.work import Guard, Work
from core.errors import PlanError

if TYPE_CHECKING:
    import torch

# Quantized tensors that were read are kept up to here, to be read again.
_KEPT_BYTES = 1 << 30


class Simulated(Checkpoint):
    """The checkpoint of a plan, its weights replaced. Not safe from several threads.

    raises  PlanError when the plan has errors
    """

    kind = "simulated"

    def __init__(self, plan: Plan, checkpoint: Checkpoint, device: str = "cpu", ctx: JobContext = SILENT) -> None:
        assert plan.calibration is None
        first = next((p for p in plan.problems if p.severity == "error"), None)
        if first is not None:
            raise PlanError(str(first))
        self.path, self.files = checkpoint.path, checkpoint.files
        self.tensors, self.config, self.metadata = checkpoint.tensors, checkpoint.config, checkpoint.metadata
        self._plan, self._checkpoint = plan, checkpoint
        self._work = Work.of(plan, checkpoint, device, measure=False)
        self._guard = Guard(self._work, ctx)
        self._units: dict[int, list[Unit]] = {}
        for unit in cut(plan, checkpoint):
            self._units.setdefault(unit.tensor, []).append(unit)
        self._outputs: dict[str, list[int]] = {}
        for n, planned in enumerate(plan.tensors):
            if planned.quantized and not planned.copy:
                for name in planned.tensor.source.names():
                    self._outputs.setdefault(name, []).append(n)
        self._unread: dict[str, torch.Tensor] = {}
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def folder(self) -> Path:
        return self._checkpoint.folder()

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError("what is not written has no stored bytes")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        if name not in self._outputs:
            return self._checkpoint.read(name, start, stop)
        made = self._unread.pop(name, None)
        if made is None:
            made = self._kept.pop(name, None)
        if made is None:
            made = self._quantize(name)
        self._kept[name] = made
        while len(self._kept) > 1 and sum(4 * t.numel() for t in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return made[start:stop]

    def _quantize(self, name: str) -> torch.Tensor:
        """One tensor. Others that come of the same output tensors wait to be read."""
        outputs = self._outputs[name]
        sink = Sink(self._checkpoint)
        units = [unit for n in outputs for unit in self._units[n]]
        self._run(units, sink)
        names = dict.fromkeys(n for o in outputs for n in self._plan.tensors[o].tensor.source.names())
        for other in names:
            made = sink.get(other)
            # A tensor that is split between several outputs is whole only when all of them were done.
            if other != name and made is not None and set(self._outputs[other]) <= set(outputs):
                self._unread[other] = made
        found = sink.get(name)
        assert found is not None, name
        return found

    def _run(self, units: Sequence[Unit], sink: Sink) -> None:
        def one(unit: Unit) -> None:
            process(self._work, unit, self._checkpoint, _drop, self._guard, _unsaid, sink.keep)

        workers = min(len(units), usable_cores()) if self._work.device == "cpu" else 1
        if workers < 2:
            for unit in units:
                one(unit)
            return
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(one, unit) for unit in units]:
                future.result()

    @property
    def nbytes(self) -> int:
        """Of the output, its headers and side files."""
        return self._plan.nbytes

    def fingerprint(self) -> str:
        return f"{self._checkpoint.fingerprint()} by {self._plan.recipe.name}"


def _drop(file: int, offset: int, data: memoryview | bytes) -> None:
    pass


def _unsaid(nbytes: int, name: str) -> None:
    pass
