"""Where a run of codes goes that is no point of its lattice: the points around it, nearest first.

The searches of the i-quants round each weight on its own, and a run of 4 or 8 such codes is seldom a point. llama.cpp
then tries the points at the few smallest distances from the run and takes the one that suits the weights best. Which
points those are depends on the lattice alone; the lists are made at the first use, in a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from core.formats.ggml.grids import grid_codes, magnitudes

# How many different distances count, per type.
SHELLS = {
    "IQ2_S": 1,
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ3_XXS"), 2),
    **dict.fromkeys(("IQ3_S", "IQ1_S", "IQ1_M"), 3),
}
# Lists are filled up to multiples of this with copies of their first point, which never wins against itself.
LANES = 8


@dataclass(frozen=True, eq=False)
class Neighbours:
    """One lattice with its lists. A run's number is Σ code_i · levels^i, code 0 … levels − 1. All arrays read-only.

    codes   uint8 [points, run]: the lattice, row = index in the file
    point   int16 [levels^run]: the point with exactly these codes, −1 where there is none
    first   int32 [levels^run + 1]: where a run's list begins in `index`; empty for the runs that are points
    index   int16 [total]: points by distance, then by index; each list a multiple of LANES long
    lanes   uint8 [total / LANES, run, LANES]: codes of the points in `index`, LANES points side by side
    """

    codes: np.ndarray
    point: np.ndarray
    first: np.ndarray
    index: np.ndarray
    lanes: np.ndarray


@cache
def neighbours(name: str) -> Neighbours:
    """The lists of IQ1_S, IQ1_M, IQ2_* or IQ3_*."""
    codes = grid_codes(name)
    count, run = codes.shape
    levels = len(magnitudes(name))
    powers = levels ** np.arange(run)
    every = np.arange(levels**run)[:, None] // powers % levels
    point = np.full(len(every), -1, np.int16)
    point[codes @ powers] = np.arange(count)
    off = np.flatnonzero(point < 0)
    # Squared distances between codes are whole numbers up to 4 · 7²: exact in float32, and right in bytes that wrap.
    a, b = every[off].astype(np.float32), codes.astype(np.float32)
    distance = (a @ (-2 * b.T)).astype(np.int16).astype(np.uint8)
    distance += (a * a).sum(1, keepdims=True).astype(np.uint8)
    distance += (b * b).sum(1).astype(np.uint8)
    reach = distance.min(1, keepdims=True)
    for _ in range(SHELLS[name] - 1):
        # What is nearer wraps around to the far end.
        beyond = reach + np.uint8(1)
        reach = (distance - beyond).min(1, keepdims=True) + beyond
    owner, near = np.nonzero(distance <= reach)
    # Each list is in order of index; it stays so among equal distances.
    near = near[np.argsort(owner.astype(np.int32) << 8 | distance[owner, near], kind="stable")]
    held = np.bincount(owner, minlength=len(off))
    begin = np.cumsum(held) - held
    room = -(-held // LANES) * LANES
    sizes = np.zeros(len(every), np.int64)
    sizes[off] = room
    first = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    place = np.arange(room.sum()) - np.repeat(np.cumsum(room) - room, room)
    index = near[np.repeat(begin, room) + np.where(place < np.repeat(held, room), place, 0)].astype(np.int16)
    lanes = np.ascontiguousarray(codes[index].reshape(-1, LANES, run).transpose(0, 2, 1))
    for array in (point, first, index, lanes):
        array.setflags(write=False)
    return Neighbours(codes, point, first, index, lanes)
