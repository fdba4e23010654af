"""Statistics meet the tensors of an output: found by name through renaming, merging and transposing, and cut to the
rows at work. How they were gathered is core/calibration's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.calibration.imatrix import require_columns
from core.calibration.statistics import Provenance, Statistic, Statistics, TensorStatistics, stack, together
from core.checkpoints.base import Checkpoint
from core.errors import CalibrationError, TargetError
from core.targets import get_target
from core.targets.base import Outline, OutputTensor, RowSource

if TYPE_CHECKING:
    import torch

_NOTHING: Mapping[str, TensorStatistics] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Known:
    """Statistics of a plan's output tensors.

    tensors     by output name; what is missing is not in it
    provenance  None: nothing is known
    strangers   entries that no tensor took, by their own name
    """

    tensors: Mapping[str, TensorStatistics] = field(default_factory=lambda: _NOTHING)
    provenance: Provenance | None = None
    strangers: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        return self.provenance.identity if self.provenance is not None else ""

    @property
    def kinds(self) -> frozenset[Statistic]:
        return frozenset(kind for t in self.tensors.values() for kind in t.values)


def by_source(statistics: Statistics, checkpoint: Checkpoint, gguf: Outline | None = None) -> Statistics:
    """Statistics under GGUF names as those of the checkpoint's own tensors.

    gguf    the outline of the checkpoint as a GGUF, where the caller has it
    raises  CalibrationError: no entry has a tensor here, or the sizes say that they belong to another model
    """
    if gguf is None and not any(name in checkpoint.tensors for name in statistics.tensors):
        try:
            gguf = get_target("gguf").outline(checkpoint)
        except TargetError as error:
            raise CalibrationError(
                f"its tensors are named as in GGUF, and this model is none that we write as GGUF ({error.message})",
                "convert it with llama.cpp and quantize the GGUF",
                statistics.provenance.file,
            ) from error
    found: dict[str, list[TensorStatistics]] = {}
    outputs = {t.name: t for t in gguf.tensors} if gguf is not None else {}
    taken = 0
    for name, known in statistics.tensors.items():
        output = outputs.get(name)
        if output is None:
            if name in checkpoint.tensors:
                found.setdefault(name, []).append(known)
                taken += 1
            continue
        taken += 1
        for source, part in _parted(output, known, checkpoint):
            found.setdefault(source, []).append(part)
    if not taken:
        raise CalibrationError(
            f"none of its {len(statistics.tensors):,} tensors is in this model",
            "give the importance matrix of this model",
            statistics.provenance.file,
        )
    merged = {name: together(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}
    return Statistics(statistics.provenance, merged)


def by_gguf(statistics: Statistics, checkpoint: Checkpoint) -> tuple[Statistics, bool]:
    """Statistics by checkpoint name as an importance matrix names them; and whether GGUF has names for this model.
    Where it has not, the checkpoint's own stay."""
    try:
        outline = get_target("gguf").outline(checkpoint)
    except TargetError:
        return statistics, False
    return Statistics(statistics.provenance, bind(statistics, outline, checkpoint).tensors), True


def bind(statistics: Statistics, outline: Outline, checkpoint: Checkpoint) -> Known:
    """Statistics by checkpoint name as those of output tensors.

    raises  CalibrationError when sizes say that they belong to another model
    """
    tensors: dict[str, TensorStatistics] = {}
    used: set[str] = set()
    for output in outline.tensors:
        names = output.source.names()
        if not any(name in statistics.tensors for name in names):
            continue
        used.update(names)
        made = _merged(output, statistics.tensors, checkpoint)
        if made is not None:
            tensors[output.name] = require_columns(output.name, made, output.columns, _experts(output))
    strangers = tuple(name for name in statistics.tensors if name not in used)
    return Known(tensors, statistics.provenance, strangers)


def rows_of_expert(output: OutputTensor, known: TensorStatistics | None) -> int:
    """Rows that share their statistics: one expert's, or all."""
    if known is None or not known.stacked:
        return max(1, output.rows)
    return output.rows // len(known.counts)


def _experts(output: OutputTensor) -> int:
    return output.shape[0] if len(output.shape) == 3 else 0


def _parted(
    output: OutputTensor, known: TensorStatistics, checkpoint: Checkpoint
) -> Iterable[tuple[str, TensorStatistics]]:
    """What an entry for an output tensor says of the checkpoint tensors it is made from."""
    experts = _experts(output)
    known = require_columns(output.name, known, output.columns, experts)
    names = output.source.names()
    if len(names) == 1:
        turned = trace(output.source, checkpoint, 0).transposed
        yield names[0], TensorStatistics(known.values, known.counts, known.stacked, turned)
        return
    if not known.stacked:
        for name in names:
            yield name, known
        return
    each = output.rows // experts
    whole: dict[str, dict[int, TensorStatistics]] = {}
    for expert in range(experts):
        part = known.of_expert(expert)
        for row in sorted({expert * each, expert * each + each - 1}):
            seen = trace(output.source, checkpoint, row)
            whole.setdefault(seen.name, {})[expert] = part
    for name, parts in whole.items():
        stacked = len(checkpoint.tensors[name].shape) == 3 and len(parts) == checkpoint.tensors[name].shape[0]
        values = [parts[expert] for expert in sorted(parts)]
        yield name, stack(values) if stacked else together(values)


def _merged(
    output: OutputTensor, known: Mapping[str, TensorStatistics], checkpoint: Checkpoint
) -> TensorStatistics | None:
    """The statistics of an output tensor from those of its sources; None where its columns are not their inputs."""
    names = output.source.names()
    if len(names) == 1:
        one = known[names[0]]
        if output.source.verbatim() is not None:
            return None if one.transposed else one
        return one if trace(output.source, checkpoint, 0).transposed == one.transposed else None
    experts = _experts(output)
    if not experts:
        parts = [known[name] for name in names if name in known]
        return together(parts) if len(parts) == len(names) and not any(p.stacked for p in parts) else None
    each = output.rows // experts
    found: list[TensorStatistics] = []
    for expert in range(experts):
        seen = {trace(output.source, checkpoint, row) for row in (expert * each, expert * each + each - 1)}
        parts = [known[s.name] for s in seen if s.name in known and known[s.name].transposed == s.transposed]
        if len(parts) < len({s.name for s in seen}):
            return None
        found.append(together([p.of_expert(expert) if p.stacked else p for p in parts]))
    return stack(found)


# Tracing: where a row of an output tensor comes from, found by reading numbers instead of weights


@dataclass(frozen=True)
class Origin:
    """The checkpoint tensor that a row's first weight is read from.

    transposed  the row runs down a column of it
    """

    name: str
    transposed: bool


class Numbered(Checkpoint):
    """A checkpoint whose every weight is its own number, int64: the tensor's position << 40, plus the weight's."""

    kind = "numbers"
    config = None

    def __init__(self, checkpoint: Checkpoint, names: Sequence[str]) -> None:
        self.path, self.files, self.metadata = checkpoint.path, (), {}
        self.names = tuple(names)
        self.tensors = {name: checkpoint.tensors[name] for name in names}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError("numbers are no stored bytes")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        import torch

        info = self.tensors[name]
        stop = info.rows if stop is None else stop
        first = (self.names.index(name) << 40) + start * info.columns
        count = (stop - start) * info.columns
        return torch.arange(first, first + count, dtype=torch.int64).view(stop - start, info.columns)

    def fingerprint(self) -> str:
        return "numbers"


def numbers(source: RowSource, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
    """int64 [rows, columns]: for each weight of these output rows which one it is (see Numbered).

    raises  CalibrationError for rows that are computed rather than moved
    """
    import torch

    found = source.read(Numbered(checkpoint, source.names()), start, stop)
    if found.dtype != torch.int64:
        raise CalibrationError(
            "is computed from its sources, so statistics cannot follow", "this is a fault of Quantbench; report it"
        )
    return found


def trace(source: RowSource, checkpoint: Checkpoint, row: int) -> Origin:
    """The origin of one output row. raises CalibrationError as `numbers` does"""
    if source.verbatim() is not None:
        return Origin(source.verbatim() or "", False)
    found = numbers(source, checkpoint, row, row + 1)[0]
    names = source.names()
    first = int(found[0])
    name = names[first >> 40]
    turned = found.numel() > 1 and int(found[1]) - first != 1
    return Origin(name, turned)


def as_tensors(known: TensorStatistics | None, device: str) -> dict[Statistic, Any]:
    """The values as torch tensors on the device, but Hessians in memory, where one serves all slices of a tensor. Where
    no token came along, importance only: 1 everywhere."""
    if known is None:
        return {}
    import torch

    seen = any(known.counts)
    kept = {kind: array for kind, array in known.values.items() if seen or kind is Statistic.IMPORTANCE}
    here = {Statistic.HESSIAN: "cpu"}
    return {kind: torch.from_numpy(array).to(here.get(kind, device)) for kind, array in kept.items()}
