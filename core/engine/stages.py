"""In which order a run does its units: all at once, or block by block with calibration between.

A calibrated run lets the samples into one decoder block after the other. What a block's inputs are is gathered behind
blocks that are quantized already; then its tensors are quantized, in the usual way, and the samples go on through what
a reader of the output will get. All other tensors come last, the head with the statistics of its own inputs; what
stands before the blocks, the embedding above all, is the original throughout.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration import kept
from core.calibration.folding import Folded
from core.calibration.runner import ALL
from core.calibration.statistics import Statistic, Statistics, TensorStatistics
from core.context import JobContext
from core.engine.folds import Folder, not_folded
from core.engine.journal import calibration_identity, identity
from core.engine.known import bind, numbers
from core.engine.model import Plan, PlannedTensor
from core.engine.task import Keep
from core.engine.units import Unit
from core.engine.work import UnitResult, Work
from core.parameters import STATIC
from core.targets.base import STATIC_NEEDS

if TYPE_CHECKING:
    import torch

    from core.calibration.walk import Walk
    from core.checkpoints.base import Checkpoint

_WEIGHT = (1 << 40) - 1


@dataclass(frozen=True)
class Stage:
    """Units that may be done in any order. keep: takes what was quantized, or None."""

    work: Work
    units: Sequence[Unit]
    keep: Keep | None = None


class Stages(ABC):
    """The order of a run."""

    @abstractmethod
    def still_done(self, units: Sequence[Unit], done: dict[int, UnitResult]) -> dict[int, UnitResult]:
        """Of what an earlier run finished, the units that need not be done again."""

    @abstractmethod
    def each(self, units: Sequence[Unit], say: Callable[[str], None]) -> Iterator[Stage]:
        """The stages. The next one is asked for when all units of one are done and journalled."""


class Whole(Stages):
    """Everything at once."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def still_done(self, units: Sequence[Unit], done: dict[int, UnitResult]) -> dict[int, UnitResult]:
        return done

    def each(self, units: Sequence[Unit], say: Callable[[str], None]) -> Iterator[Stage]:
        yield Stage(self._work, units)


class Blocks(Stages):
    """Block by block. A stopped run goes on with the block that was not finished, from its beginning.

    raises  CalibrationError: the model cannot be run block by block; MissingExtra, OutputError
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint, work: Work, out: Path, ctx: JobContext) -> None:
        from core.calibration.runner import Counted
        from core.calibration.walk import Walk

        assert plan.calibration is not None
        self._plan, self._checkpoint, self._work = plan, checkpoint, work
        same = identity(plan, work.device, work.measure)
        folder = kept.folder_of("blocks", str(out), sorted(same.items()))
        kinds = wanted(plan)
        samples, words = plan.calibration, calibration_identity(plan)
        self._told = Counted(ctx)
        self._walk: Walk = Walk(checkpoint, samples, folder, words, kinds, work.device, self._told)
        self._stage_of = self._assigned()
        self._folder = Folder(checkpoint, self._walk, plan.tensors, self._stage_of, folder)

    def _assigned(self) -> list[int]:
        """For every output tensor the block with which it is quantized; the number of blocks for all the rest."""
        block_of = {name: n for n in range(self._walk.count) for name in self._walk.sources(n)}
        rest = self._walk.count
        return [
            max((block_of.get(name, rest) for name in t.tensor.source.names()), default=rest)
            for t in self._plan.tensors
        ]

    def still_done(self, units: Sequence[Unit], done: dict[int, UnitResult]) -> dict[int, UnitResult]:
        before = [unit for unit in units if self._stage_of[unit.tensor] < self._walk.next]
        if any(unit.index not in done for unit in before):
            self._walk.restart()
            return {}
        return {unit.index: done[unit.index] for unit in before}

    def each(self, units: Sequence[Unit], say: Callable[[str], None]) -> Iterator[Stage]:
        walk, told = self._walk, self._told
        told.say = lambda share, text: say(text)
        for block in range(walk.next, walk.count):
            mine = [unit for unit in units if self._stage_of[unit.tensor] == block]
            name = walk.skeleton.blocks[block]
            sink = Sink(self._checkpoint)
            if any(self._plan.tensors[unit.tensor].quantized for unit in mine):
                told.doing = "gathering"
                say(f"{name}: gathering")
                found = walk.gather(block)
                folds = self._folder.block(block, found)
                work = self._work
                if folds is not None:
                    folded = Folded(self._checkpoint, folds.scales)
                    sink = Sink(folded)
                    if Statistic.RANGE in walk.kinds and folds.scales.tensors:
                        found = walk.gather(block, replace=folded.changed)
                    else:
                        found = folds.statistics(found, self._checkpoint)
                    work = replace(work, scales=folds.scales, remarks=folds.remarks)
                yield Stage(self._with(found, block, work), mine, sink.keep)
            else:
                yield Stage(self._work, mine)
            told.doing = "going on"
            say(f"{name}: samples go on")
            walk.advance(block, sink.get)
        rest = [unit for unit in units if self._stage_of[unit.tensor] == walk.count]
        found = {}
        if any(self._plan.tensors[unit.tensor].quantized for unit in rest):
            told.doing = "gathering"
            say("the head: gathering")
            found = walk.head()
        outside = not_folded([self._plan.tensors[unit.tensor] for unit in rest], "nothing before it can take scales")
        yield Stage(self._with(found, walk.count, replace(self._work, remarks=outside)), rest)

    def _with(self, found: Mapping[str, TensorStatistics], stage: int, work: Work) -> Work:
        outline = self._plan.outline
        mine = tuple(t for t, n in zip(outline.tensors, self._stage_of, strict=True) if n == stage)
        assert outline.statistics is not None
        known = bind(Statistics(outline.statistics, found), replace(outline, tensors=mine), self._checkpoint)
        return replace(work, statistics=known.tensors)

    def remove(self) -> None:
        """Nothing to continue."""
        self._walk.close()
        kept.remove(self._folder.folder)


def wanted(plan: Plan) -> frozenset[Statistic]:
    """The statistics that a plan's methods and static inputs use; importance, which formats use, always."""
    from core.methods import get_method

    methods = [get_method(name) for name in {t.strategy.method for t in plan.tensors if t.quantized}]
    needs = frozenset[Statistic]().union(*(m.needs | m.uses for m in methods))
    if any(t.inputs == STATIC for t in plan.tensors):
        needs |= STATIC_NEEDS
    return (needs | {Statistic.IMPORTANCE}) & ALL


class Sink:
    """Takes the rows of quantized output tensors and gives back checkpoint tensors, rows and columns in their old
    places: what permuting, merging and transposing moved is moved back. Safe from several threads."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._made: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def keep(self, planned: PlannedTensor, start: int, stop: int, values: torch.Tensor) -> None:
        """values: float32 [stop - start, columns], on any device"""
        source = planned.tensor.source
        values = values.cpu()
        name = source.verbatim()
        if name is not None:
            self._tensor(name)[start:stop] = values
            return
        places = numbers(source, self._checkpoint, start, stop)
        for n, part in enumerate(source.names()):
            here = (places >> 40) == n
            if bool(here.any()):
                self._tensor(part).view(-1)[places[here] & _WEIGHT] = values[here]

    def _tensor(self, name: str) -> torch.Tensor:
        """float32 [rows, columns]; what no output tensor quantizes stays as it was."""
        with self._lock:
            if name not in self._made:
                self._made[name] = self._checkpoint.read(name).float().clone()
            return self._made[name]

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor as a reader of the output gets it; None where it is as it was."""
        made = self._made.get(name)
        return made if made is not None or not isinstance(self._checkpoint, Folded) else self._checkpoint.changed(name)
