"""Folding in a calibrated run: of one block, which scales its methods choose, what they change, and that the block
still computes the same. Kept beside the walk, so that a run that goes on has the very same.

How folds are found is in core/calibration/tracing.py, what they are in core/calibration/folding.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration import folding
from core.calibration.folding import Fold, Folded, Part, Scaled, Scales, folded_statistics
from core.calibration.statistics import TensorStatistics
from core.calibration.tracing import find_folds
from core.engine.known import as_tensors, trace
from core.engine.model import PlannedTensor
from core.methods import get_method
from core.parameters import check_parameters

if TYPE_CHECKING:
    import torch

    from core.calibration.walk import Walk
    from core.checkpoints.base import Checkpoint
    from core.methods.base import Consumer, Method

# Relative difference of a block's outputs: exact but for float32 sums, or where a norm's bias was rounded to 16 bits.
_EXACT, _ROUNDED = 1e-4, 1e-2


@dataclass(frozen=True, eq=False)
class BlockFolds:
    """What folds change in one block.

    scales   by checkpoint tensor
    remarks  output tensor → lines about scales that its method wanted and could not have
    """

    scales: Scales
    remarks: Mapping[str, Sequence[str]]

    def statistics(self, known: Mapping[str, TensorStatistics], checkpoint: Checkpoint) -> dict[str, TensorStatistics]:
        """Statistics of the block's inputs as those of the folded block's inputs."""
        return folded_statistics(known, self.scales, checkpoint)


def folding_method(planned: PlannedTensor) -> Method | None:
    """The tensor's method where it moves scales."""
    if not planned.quantized:
        return None
    method = get_method(planned.strategy.method)
    return method if method.folds and dict(planned.strategy.params).get("scale", True) else None


def not_folded(tensors: Sequence[PlannedTensor], why: str) -> dict[str, list[str]]:
    """Remarks for tensors outside of blocks."""
    return {t.tensor.name: [_unscaled(t, why)] for t in tensors if folding_method(t) is not None}


def _unscaled(planned: PlannedTensor, why: str) -> str:
    return f"{planned.strategy.method}: its inputs are not scaled, {why}"


@dataclass
class Folder:
    """Folds of all blocks, one after the other.

    tensors  of the plan, each with the block it is quantized with
    folder   for what is chosen
    """

    checkpoint: Checkpoint
    walk: Walk
    tensors: Sequence[PlannedTensor]
    stage_of: Sequence[int]
    folder: Path

    def block(self, block: int, known: Mapping[str, TensorStatistics]) -> BlockFolds | None:
        """None when no tensor of the block has a method that moves scales. raises as Walk.gather does

        known  statistics of the block's inputs, by checkpoint tensor
        """
        mine = [t for t, n in zip(self.tensors, self.stage_of, strict=True) if n == block]
        if not any(folding_method(t) for t in mine):
            return None
        path = self.folder / f"fold-{block}.npz"
        kept = folding.load(path)
        if kept is None:
            kept = _Block(self, block, mine, known).choose()
            folding.save(path, *kept)
        return BlockFolds(*kept)


class _Block:
    """The choice for one block.

    changed  what its folds make of the tensors so far
    exact    whether nothing had to be rounded
    """

    def __init__(
        self, folder: Folder, block: int, mine: Sequence[PlannedTensor], known: Mapping[str, TensorStatistics]
    ) -> None:
        self.walk, self.checkpoint = folder.walk, folder.checkpoint
        self.block, self.mine, self.known = block, mine, known
        self.here = {t.tensor.name for t in mine}
        # Every output tensor that reads a checkpoint tensor, those of other stages too.
        self.readers: dict[str, list[PlannedTensor]] = {}
        for t in folder.tensors:
            for name in t.tensor.source.names():
                self.readers.setdefault(name, []).append(t)
        self.changed = Scales()
        self.exact = True
        self.why: dict[str, str] = {}

    def choose(self) -> tuple[Scales, dict[str, list[str]]]:
        """Scales of the whole block, and remarks by output tensor."""
        import torch

        name = self.walk.skeleton.blocks[self.block]
        with self.walk.loaded(self.block) as forward:
            before = forward().clone()
            folds = find_folds(self.walk.skeleton, name, forward)
        scaled: set[str] = set()
        for fold in folds:
            if self._take(fold):
                scaled |= {part.name for part in fold.consumers}
        with self.walk.loaded(self.block, Folded(self.checkpoint, self.changed).changed) as forward:
            after = forward()
        difference = float((after.double() - before.double()).norm() / before.double().norm().clamp(min=1e-300))
        if not difference <= (_EXACT if self.exact else _ROUNDED) or not bool(torch.isfinite(after).all()):
            why = f"as the block would compute something else (by {difference:.1e})"
            return Scales(), not_folded(self.mine, why)
        remarks: dict[str, list[str]] = {}
        for t in self.mine:
            missing = [source for source in t.tensor.source.names() if source not in scaled]
            if missing and folding_method(t) is not None:
                remarks[t.tensor.name] = [_unscaled(t, self.why.get(missing[0], "nothing before it can take scales"))]
        return self.changed, remarks

    def _take(self, fold: Fold) -> bool:
        """Chooses scales for a fold, and enters what they change. Whether it can be had: an answer of all ones can."""
        import torch

        why = self._obstacle(fold)
        wanting = [(part, planned) for part in fold.consumers if (planned := self._wanting(part, fold)) is not None]
        if not wanting:
            return False
        consumers = [] if why else self._consumers(wanting)
        if why or not consumers:
            why = why or "as no token of the calibration text reached it"
            self.why.update({part.name: why for part in fold.consumers})
            return False
        strategy = wanting[0][1].strategy
        method = get_method(strategy.method)
        params = check_parameters(method.all_parameters, dict(strategy.params), wanting[0][0].name)
        tied = torch.tensor(fold.index, device=self.walk.device) if fold.index else None
        chosen = method.scaling(consumers, tied, params, self.walk.ctx).scales.cpu()
        if bool((chosen == 1).all()):
            return True
        scales = chosen
        if fold.index:
            scales = torch.ones(fold.size).scatter_(0, torch.tensor(fold.index), chosen)
        scales = self._into_producers(fold, scales)
        by = fold.spread(scales).numpy()
        for part in fold.consumers:
            self.changed.multiply(self.checkpoint, part, by, outputs=False)
        return True

    def _obstacle(self, fold: Fold) -> str:
        """Why the output cannot hold this fold, or empty."""
        for part in (*fold.producers, *fold.consumers):
            readers = self.readers.get(part.name, [])
            if not readers or any(t.tensor.name not in self.here for t in readers):
                return f"as {part.name} is not this block's alone"
            if any(t.copy for t in readers):
                return f"as {part.name} goes over as it is stored"
            if self.checkpoint.tensors[part.name].alias:
                return f"as {part.name} is shared"
        return ""

    def _wanting(self, part: Part, fold: Fold) -> PlannedTensor | None:
        """The output tensor of a consumer whose method wants such a fold."""
        for planned in self.readers.get(part.name, []):
            method = folding_method(planned)
            if method is None or fold.through not in method.folds:
                continue
            # Its columns must be the inputs: a Conv1D that is stored as it is has them as rows.
            if trace(planned.tensor.source, self.checkpoint, 0).transposed == part.turned:
                return planned
        return None

    def _consumers(self, wanting: Sequence[tuple[Part, PlannedTensor]]) -> list[Consumer]:
        from core.methods.base import Consumer

        found = []
        folded = Folded(self.checkpoint, self.changed)
        for part, planned in wanting:
            known = self.known.get(part.name)
            if known is not None and known.stacked and part.expert is not None:
                known = known.of_expert(part.expert)
            method = get_method(planned.strategy.method)
            stats = as_tensors(known, self.walk.device)
            if known is None or method.needs - stats.keys() or not any(known.counts):
                continue
            info = self.checkpoint.tensors[part.name]
            each = info.rows // info.shape[0] if len(info.shape) == 3 else info.rows
            at = (part.expert or 0) * each
            w = folded.read(part.name, at, at + each).to(self.walk.device).float()
            w = w.T.contiguous() if part.turned else w
            if planned.format.misfit((w.shape[0], w.shape[1])):
                continue
            found.append(Consumer(w, planned.format, stats, int(known.counts[0])))
        return found

    def _into_producers(self, fold: Fold, scales: torch.Tensor) -> torch.Tensor:
        """Enters the producers' new values; returns the scales that their rounding made of these."""
        import torch

        exact = scales.clone()
        for part in fold.producers:
            if not part.vector:
                self.changed.multiply(self.checkpoint, part, (1 / scales).numpy(), outputs=True)
                continue
            entry = self.changed.tensors.get(part.name)
            old = self.checkpoint.read(part.name).float().reshape(-1)
            old = old.clone() if entry is None or entry.values is None else torch.from_numpy(entry.values).clone()
            run = slice(part.first, part.first + fold.size)
            new = old.clone()
            new[run] = (old[run] + part.shift) / scales - part.shift
            new = self._as_stored(part.name, new)
            if fold.through == "norm" and part is fold.producers[0]:
                # Its rounding is made good in the weights.
                ratio = (old[run] + part.shift) / (new[run] + part.shift)
                scales = torch.where(ratio.isfinite() & (ratio > 0), ratio, exact)
            self.changed.tensors[part.name] = Scaled(values=new.numpy())
        return scales

    def _as_stored(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Values as the output can hold them: rounded where it has 16 bits."""
        planned = self.readers[name][0]
        if planned.tensor.source.verbatim() is None or planned.format.name == "f32":
            return values
        shape = (1, values.numel())
        stored = planned.format.quantize(values.reshape(shape)).dequantize().reshape(-1)
        self.exact = self.exact and bool((stored == values).all())
        return stored
