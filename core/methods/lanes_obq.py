"""OBQ on one CPU core: one row after the other, in float64."""

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


@helper
def _position(x, size, zero, shift, values, bounds):
    return _nearest((x - shift) / size + zero if size != 0.0 else zero, values, bounds)


@kernel
def greedy(w, inverse, step, zero, shift, values, bounds, low, high, index):
    """Positions on the ladder for every weight, the least costly first. Columns still open are kept side by side: the
    one that is done changes places with the last of them, and every loop runs over fewer.

    w                  float64 [rows, columns]
    inverse            float64 [columns, columns], of the damped Hessian
    step, zero, shift  float64 [rows, columns]
    values, bounds     float64 [levels], [levels − 1];  low, high  beyond these a weight is clipped
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
                p = place[k]
                size, z, o = step[r, p], zero[r, p], shift[r, p]
                level = _position(x[k], size, z, o, values, bounds)
                t = (x[k] - o) / size + z if size != 0.0 else z
                miss = x[k] - ((values[level] - z) * size + o)
                if t < low or t > high:
                    # Rule of the published code: what is clipped goes first, the farthest before all.
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


@helper
def _steps(k, at, size, values, move):
    """What going down and up one level from position `at` does to e_k; 0 where there is none."""
    move[0, k] = (values[at] - values[at - 1]) * size if at > 0 else 0.0
    move[1, k] = (values[at] - values[at + 1]) * size if at < values.size - 1 else 0.0


@helper
def _prices(pull, own, move, price):
    """What every such move, made alone, would change of e H eᵀ. Where no input ever was, nothing moves."""
    for way in range(2):
        for k in range(pull.size):
            d = move[way, k]
            price[way, k] = 2.0 * d * pull[k] + d * d * own[k] if d != 0.0 and own[k] > 0.0 else np.inf


@kernel
def polish(w, hessian, step, zero, shift, values, bounds, passes, index):
    """Changes single weights to their best level given all others, and pairs of weights by a level each, as long as
    that lowers e H eᵀ, at most `passes` times through the row.

    hessian  float64 [columns, columns], damped;  index  uint8 [rows, columns], changed;  the rest as above
    """
    rows, columns = w.shape
    e, pull, own = np.empty(columns, np.float64), np.empty(columns, np.float64), np.empty(columns, np.float64)
    move, price = np.empty((2, columns), np.float64), np.empty((2, columns), np.float64)
    for k in range(columns):
        own[k] = hessian[k, k]
    for r in range(rows):
        for k in range(columns):
            e[k] = w[r, k] - ((values[index[r, k]] - zero[r, k]) * step[r, k] + shift[r, k])
            pull[k] = 0.0
        for k in range(columns):
            for j in range(columns):
                pull[j] += e[k] * hessian[k, j]
        total = 0.0
        for k in range(columns):
            total += e[k] * pull[k]
        # Less than this is rounding, and might go round in circles.
        least = -1e-9 * total
        for _ in range(passes):
            changed = False
            for k in range(columns):
                size = step[r, k]
                if own[k] <= 0.0 or size == 0.0:
                    continue
                level = _position(w[r, k] - e[k] + pull[k] / own[k], size, zero[r, k], shift[r, k], values, bounds)
                d = w[r, k] - ((values[level] - zero[r, k]) * size + shift[r, k]) - e[k]
                if 2.0 * d * pull[k] + d * d * own[k] < least:
                    index[r, k] = level
                    e[k] += d
                    for j in range(columns):
                        pull[j] += d * hessian[k, j]
                    changed = True
            for k in range(columns):
                _steps(k, int(index[r, k]), step[r, k], values, move)
            _prices(pull, own, move, price)
            for k in range(columns):
                gain, other, one, two = least, -1, 0, 0
                for a in range(2):
                    d = move[a, k]
                    if price[a, k] == np.inf:
                        continue
                    if price[a, k] < gain:
                        gain, other, one = price[a, k], k, a
                    for b in range(2):
                        for j in range(columns):
                            change = price[a, k] + price[b, j] + 2.0 * d * move[b, j] * hessian[k, j]
                            if change < gain and j != k:
                                gain, other, one, two = change, j, a, b
                if other < 0:
                    continue
                changed = True
                for turn in range(2 if other != k else 1):
                    place, way = (k, one) if turn == 0 else (other, two)
                    d, at = move[way, place], int(index[r, place]) + 2 * way - 1
                    index[r, place] = at
                    e[place] += d
                    for j in range(columns):
                        pull[j] += d * hessian[place, j]
                    _steps(place, at, step[r, place], values, move)
                _prices(pull, own, move, price)
            if not changed:
                break
