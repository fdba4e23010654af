"""OBQ on one CPU core: one row after the other, in float64. Columns still open are kept side by side: the one that is
done changes places with the last of them, and every loop runs over fewer."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel


@helper
def _nearest(t, values, bounds):
    first, last = 0, values.size - 1
    while first < last:
        middle = (first + last) >> 1
        if t > bounds[middle]:
            first = middle + 1
        else:
            last = middle
    return first


@kernel
def solve(w, inverse, step, zero, shift, run, values, bounds, low, high, index):
    """Positions on the ladder for every weight.

    w                  float32 [rows, columns]
    inverse            float64 [columns, columns], of the damped Hessian
    step, zero, shift  float32 [rows, runs];  run  int32 [columns]
    values, bounds     float32 [levels], [levels − 1];  low, high  beyond these a weight is clipped
    index              uint8 [rows, columns], written
    """
    rows, columns = w.shape
    h = np.empty((columns, columns), np.float64)
    x, line = np.empty(columns, np.float64), np.empty(columns, np.float64)
    place = np.empty(columns, np.int64)
    for r in range(rows):
        h[:] = inverse
        for k in range(columns):
            x[k], place[k] = w[r, k], k
        for left in range(columns, 0, -1):
            chosen, chosen_level, least, worst, error = -1, 0, np.inf, 0.0, 0.0
            for k in range(left):
                j = run[place[k]]
                size, z, o = np.float64(step[r, j]), np.float64(zero[r, j]), np.float64(shift[r, j])
                t = (x[k] - o) / size + z if size != 0.0 else z
                level = _nearest(t, values, bounds)
                miss = x[k] - ((np.float64(values[level]) - z) * size + o)
                clipped = t < low or t > high
                if clipped:
                    # Rule of the reference: what is clipped goes first, the farthest before all.
                    if abs(miss) > worst:
                        chosen, chosen_level, worst, error = k, level, abs(miss), miss
                elif worst == 0.0:
                    cost = miss * miss / h[k, k]
                    if cost < least:
                        chosen, chosen_level, least, error = k, level, cost, miss
            if chosen < 0:  # NaN never wins
                chosen, chosen_level, error = 0, 0, 0.0
            index[r, place[chosen]] = chosen_level
            own = h[chosen, chosen]
            for k in range(left):
                line[k] = h[chosen, k]
            for k in range(left):
                x[k] -= line[k] * (error / own)
            # The last open column takes the place of the one that is done.
            end = left - 1
            x[chosen], place[chosen] = x[end], place[end]
            for k in range(left):
                h[chosen, k] = h[end, k]
            for k in range(left):
                h[k, chosen] = h[k, end]
            line[chosen], line[end] = line[end], own
            for a in range(end):
                c = line[a] / own
                row = h[a]
                for b in range(end):
                    row[b] -= c * line[b]
