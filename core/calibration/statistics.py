"""What calibration knows about a tensor's inputs, and the store that keeps it by tensor name.

How it is gathered is in runner.py, llama.cpp's files are in imatrix.py; how it meets the tensors of an output, which
may be renamed, merged or transposed, is the engine's business (core/engine/known.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Statistic(Enum):
    """What calibration can gather for the inputs x of a layer, over n tokens."""

    IMPORTANCE = "importance"  # float32 [columns], mean x² per input channel
    HESSIAN = "hessian"  # float32 [columns, columns], (2/n)·Σ x xᵀ
    ACTIVATIONS = "activations"  # float32 [samples, columns], some of the tokens as they came
    ABSMAX = "absmax"  # float32 [columns], largest |x| per input channel
    MAGNITUDE = "magnitude"  # float32 [columns], mean |x| per input channel
    RANGE = "range"  # float32 [2], smallest and largest x: moving averages over the samples


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from: what a container's metadata and a run's identity say of them.

    file      the imatrix, or "" when they were gathered here
    dataset   the text, by name
    entries   tensors it speaks of
    chunks    samples of text; 0 when unknown
    identity  equal for equal statistics: a digest of the file, or of text and settings
    """

    file: str
    dataset: str
    entries: int
    chunks: int
    identity: str


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of one stored tensor.

    values      float32 arrays as Statistic says; with experts, each has one more dimension in front
    counts      tokens seen, one number per expert, or a single one; 0 where no token came along
    stacked     whether the tensor is a stack of experts: (experts, rows, columns)
    transposed  the tensor is stored (inputs, outputs), as GPT-2's Conv1D is: columns above are its rows
    """

    values: Mapping[Statistic, np.ndarray]
    counts: tuple[int, ...]
    stacked: bool = False
    transposed: bool = False

    def of_expert(self, expert: int) -> TensorStatistics:
        """Those of one matrix of a stack."""
        assert self.stacked
        return TensorStatistics(
            {kind: array[expert] for kind, array in self.values.items()},
            (self.counts[expert],),
            transposed=self.transposed,
        )

    def knows(self, kinds: frozenset[Statistic]) -> bool:
        """Whether all of these were gathered, and from tokens: every expert saw one."""
        return kinds <= self.values.keys() and all(self.counts)

    @property
    def columns(self) -> int:
        """Input channels; 0 when nothing tells."""
        array = self.values.get(Statistic.IMPORTANCE)
        return 0 if array is None else int(array.shape[-1])


@dataclass(frozen=True, eq=False)
class Statistics:
    """A store of statistics by tensor name."""

    provenance: Provenance
    tensors: Mapping[str, TensorStatistics]

    @property
    def kinds(self) -> frozenset[Statistic]:
        """All that is known of at least one tensor."""
        return frozenset(kind for t in self.tensors.values() for kind in t.values)


def stack(parts: list[TensorStatistics]) -> TensorStatistics:
    """Statistics of single matrices as those of a stack of experts; only kinds that all of them have in one shape (of
    activations, each expert has as many as it was given tokens)."""
    import numpy as np

    assert parts
    assert not any(p.stacked for p in parts)
    kinds = [
        kind
        for kind, array in parts[0].values.items()
        if all(kind in p.values and p.values[kind].shape == array.shape for p in parts)
    ]
    return TensorStatistics(
        {kind: np.stack([p.values[kind] for p in parts]) for kind in kinds},
        tuple(p.counts[0] for p in parts),
        stacked=True,
        transposed=parts[0].transposed,
    )


def together(parts: list[TensorStatistics]) -> TensorStatistics:
    """Statistics of a matrix whose rows come from several: means weighted by tokens, the widest extremes.

    Rows that see the same inputs (a fused qkv) have the same statistics, and then nothing is averaged.
    """
    import numpy as np

    first = parts[0]
    assert not any(p.stacked for p in parts)
    if all(p is first or _equal(p, first) for p in parts[1:]):
        return first
    weights = np.array([p.counts[0] for p in parts], np.float64)
    shares = weights / weights.sum() if weights.any() else np.full(len(parts), 1 / len(parts))
    values: dict[Statistic, np.ndarray] = {}
    for kind in first.values:
        if kind is Statistic.ACTIVATIONS or not all(kind in p.values for p in parts):
            continue  # tokens of different inputs do not mix
        arrays = [p.values[kind] for p in parts]
        if kind is Statistic.ABSMAX:
            values[kind] = np.maximum.reduce(arrays)
        elif kind is Statistic.RANGE:
            values[kind] = np.array([min(a[0] for a in arrays), max(a[1] for a in arrays)], np.float32)
        else:
            mean = sum(share * a.astype(np.float64) for share, a in zip(shares, arrays, strict=True))
            values[kind] = np.asarray(mean, np.float32)
    return TensorStatistics(values, (int(weights.max()),), transposed=first.transposed)


def _equal(a: TensorStatistics, b: TensorStatistics) -> bool:
    import numpy as np

    return a.counts == b.counts and all(
        kind in b.values and (x is b.values[kind] or np.array_equal(x, b.values[kind])) for kind, x in a.values.items()
    )
