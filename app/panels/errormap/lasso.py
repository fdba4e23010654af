"""Which cells a line drawn around them holds. No Qt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Points of a line at most: a hand that trembles makes thousands.
POINTS = 512


def inside(line: Sequence[tuple[float, float]], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """bool like x and y: points inside the closed line, by the even-odd rule."""
    corners = np.asarray(line[:: max(1, -(-len(line) // POINTS))], np.float64)
    held = np.zeros(np.shape(x), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        held ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return held
