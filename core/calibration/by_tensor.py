"""From what was gathered of a loaded model's parameters to statistics of the checkpoint's tensors.

The two are not the same: a library may have fused several tensors into one parameter, stacked experts that the
checkpoint keeps apart, or turned a matrix. The skeleton knows what each parameter was made from.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.calibration.gathering import Gatherer, Key
from core.calibration.skeleton import Piece, Skeleton
from core.calibration.statistics import Statistic, TensorStatistics, stack, together

# Pieces of a tensor, by expert (None: the whole), with the statistics of the parameters made from them.
_Parts = dict[int | None, list[tuple[Piece, TensorStatistics]]]


def by_tensor(gatherer: Gatherer, skeleton: Skeleton) -> dict[str, TensorStatistics]:
    """Statistics of checkpoint tensors, by their names. Experts that no token reached have importance 1.

    raises  CalibrationError: a parameter's inputs are in an order that no stored tensor has
    """
    seen: dict[Key, TensorStatistics] = gatherer.statistics()
    stacks = {(name, turned) for name, expert, turned in seen if expert is not None}
    for name, turned in stacks:
        columns = next(s.columns for (n, _, t), s in seen.items() if (n, t) == (name, turned))
        for matrix in range(gatherer.parameters[name].shape[0]):
            seen.setdefault((name, matrix, turned), _unreached(columns))
    found: dict[str, _Parts] = {}
    for (name, expert, turned), known in seen.items():
        for piece in skeleton.origin(name, expert, turned):
            found.setdefault(piece.name, {}).setdefault(piece.expert, []).append((piece, known))
    return {name: _of_tensor(parts, skeleton.checkpoint.tensors[name].shape) for name, parts in found.items()}


def _of_tensor(parts: _Parts, shape: tuple[int, ...]) -> TensorStatistics:
    def one(pairs: Sequence[tuple[Piece, TensorStatistics]]) -> TensorStatistics:
        known = together([known for _, known in pairs])
        return TensorStatistics(known.values, known.counts, transposed=pairs[0][0].transposed)

    if None in parts:
        return one(parts[None])
    each = [one(parts[expert]) for expert in range(shape[0])]
    columns = each[0].columns
    reached = next((e for e in each if any(e.counts)), None)
    if reached is not None:
        each = [e if any(e.counts) else _unreached(columns, reached) for e in each]
    return stack(each)


def _unreached(columns: int, like: TensorStatistics | None = None) -> TensorStatistics:
    """Of an expert that no token reached: importance 1, and nothing else that says anything."""
    import numpy as np

    values = {kind: np.zeros_like(array) for kind, array in like.values.items()} if like is not None else {}
    values[Statistic.IMPORTANCE] = np.ones(columns, np.float32)
    return TensorStatistics(values, (0,), transposed=like is not None and like.transposed)
