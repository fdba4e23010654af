"""The search for the range of lowest error on one CPU core; what is searched, and how, is explained in
fitting/ranges.py. Tries lie side by side, and each adds up its own errors weight after weight. Bit-equal to the torch
form there, operation by operation."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_room import empty, empty_rows

F = np.float32
# Tries side by side.
TRIES = 32
# Weights side by side in sums that look at each weight once.
WIDTH = 16
# Adding and subtracting 1.5 · 2^23 rounds to the nearest whole number, ties to even.
ROUND = F(12582912.0)
# Share of an error that is added before errors are compared; as in ranges.py.
DOUBT = 2.0**-16


@helper
def _sums(x, w, scale, zero, qmin, qmax, block, sums, given, out):
    """add_sums with scratch: sums float32 [3, TRIES], given float32 [4, TRIES]."""
    n, tries = x.size, scale.size
    for first in range(0, tries, TRIES):
        here = min(TRIES, tries - first)
        for k in range(TRIES):
            at = first + min(k, here - 1)
            given[0, k] = scale[at]
            given[1, k] = F(1) / scale[at]
            given[2, k] = qmin - zero[at]
            given[3, k] = qmax - zero[at]
        for a in range(0, n, block):
            for k in range(TRIES):
                sums[0, k] = sums[1, k] = sums[2, k] = F(0)
            for i in range(a, min(n, a + block)):
                for k in range(TRIES):
                    q = (min(max(x[i] * given[1, k], given[2, k]), given[3, k]) + ROUND) - ROUND
                    e = x[i] - given[0, k] * q
                    g = w[i] * e
                    sums[0, k] += g * e
                    sums[1, k] += g * q
                    sums[2, k] += w[i] * q * q
            for k in range(here):
                for m in range(3):
                    out[m, first + k] += np.float64(sums[m, k])


@kernel
def add_sums(x, w, scale, zero, qmin, qmax, block, out):
    """Adds to out, float64 [3, tries]: Σw·e², Σw·e·q, Σw·q² with e = x − scale · q.

    x, w         float32 [n]
    scale, zero  float32 [tries]: q is x / scale rounded, between qmin − zero and qmax − zero
    block        sums are float32 over this many weights, and float64 from there on
    """
    _sums(x, w, scale, zero, qmin, qmax, block, empty_rows(np.float32, 3, TRIES), empty_rows(np.float32, 4, TRIES), out)


@helper
def _squares(x, w, block, below, above, out):
    """add_squares with scratch, float32 [WIDTH]."""
    n = x.size
    for a in range(0, n, block):
        b = min(n, a + block)
        for j in range(WIDTH):
            below[j] = above[j] = F(0)
        for i in range(a, b, WIDTH):
            for j in range(min(WIDTH, b - i)):
                low, high = min(x[i + j], F(0)), max(x[i + j], F(0))
                below[j] += low * low * w[i + j]
                above[j] += high * high * w[i + j]
        width = WIDTH // 2
        while width >= 1:
            for j in range(width):
                below[j] += below[j + width]
                above[j] += above[j + width]
            width //= 2
        out[0] += np.float64(below[0])
        out[1] += np.float64(above[0])


@kernel
def add_squares(x, w, block, out):
    """Adds to out, float64 [2]: Σw·x² over the negative and over the positive weights; the others as in add_sums."""
    _squares(x, w, block, empty(np.float32, WIDTH), empty(np.float32, WIDTH), out)


@helper
def _keep_best(scale, zero, sums, best):
    """Replaces the two best tries, float64 [2, 4] (error, scale, zero, Σw·q²), by better ones; each scale is moved to
    suit its own codes. Overwrites scale and the errors."""
    for k in range(scale.size):
        slope, square = sums[1, k], sums[2, k]
        shift = slope / square if square > 0.0 else 0.0
        moved = F(np.float64(scale[k]) + shift)
        sound = moved > F(0)
        scale[k] = moved if sound else scale[k]
        moved_error = sums[0, k] - shift * slope if sound else sums[0, k]
        sums[0, k] = moved_error + sums[0, k] * DOUBT
    for k in range(scale.size):
        if sums[0, k] < best[1, 0]:
            place = 1
            if sums[0, k] < best[0, 0]:
                best[1] = best[0]
                place = 0
            best[place, 0] = sums[0, k]
            best[place, 1] = np.float64(scale[k])
            best[place, 2] = np.float64(zero[k])
            best[place, 3] = sums[2, k]


@kernel
def search(
    x, weights, share, low, high, plain, place, symmetric, steps, qmin, qmax, every, offsets, counts, reaches, beside,
    places, block, out,
):  # fmt: skip
    """The two best tries of every run: float64 [runs, 2, 4] (error, scale, zero, Σw·q²) into out[:, :2], and the error
    of the plain scale into out[:, 2, 0].

    x             float32 [runs, n]
    weights       float32 [groups, n], run r taking row r mod groups
    share         float64 [groups]: Σw of a run
    low, high     float32 [runs]: smallest and largest weight
    plain, place  float32 [runs]: scale and zero point of the range from smallest to largest
    steps         float32: qmax − qmin
    every         float32: where between the least and the largest scale the first tries lie, 0 … 1
    offsets       float32: where around the zero point they lie
    counts        int64 [rounds, 3]: offsets, centres and places of every further round
    reaches       float32 [rounds], in units of the first tries' distance
    beside        float32 [rounds, most]: offsets of the zero point
    places        float32 [rounds, most]: −1 … 1
    """
    runs, groups = x.shape[0], weights.shape[0]
    sums, given = empty_rows(np.float32, 3, TRIES), empty_rows(np.float32, 4, TRIES)
    below, above = empty(np.float32, WIDTH), empty(np.float32, WIDTH)
    squares = empty(np.float64, 2)
    most = 1 + every.size * offsets.size
    for i in range(counts.shape[0]):
        most = max(most, counts[i, 0] * counts[i, 1] * counts[i, 2])
    scale, zero, totals = empty(np.float32, most), empty(np.float32, most), empty_rows(np.float64, 3, most)
    for r in range(runs):
        w = weights[r % groups]
        squares[:] = 0.0
        _squares(x[r], w, block, below, above, squares)
        total = share[r % groups]
        down, up = F(np.sqrt(squares[0] / total)), F(np.sqrt(squares[1] / total))
        if symmetric:
            span, least = F(2) * max(-low[r], high[r]), F(2) * np.sqrt(down * down + up * up)
        else:
            span, least = max(high[r], F(0)) - min(low[r], F(0)), down + up
        widest = F(1.25) * span / steps if span > F(0) else F(1)
        narrow = min(F(0.9) * least / steps, F(0.7) * widest)
        narrow = narrow if narrow > F(0) else F(0.01) * widest
        ratio = widest / narrow
        near = (ratio - F(1)) / np.sqrt(ratio) / F(every.size - 1)

        best = out[r]
        best[:, 0] = np.inf
        best[:, 1] = 1.0
        for i in range(-1, counts.shape[0]):
            if i < 0:
                scale[0], zero[0] = plain[r], place[r]
                tries = every.size
                for k in range(tries):
                    along = (widest - narrow) * every[k]
                    scale[1 + k] = np.sqrt(narrow * widest * ((narrow + along) / (widest - along)))
                for m in range(offsets.size):
                    for k in range(tries):
                        scale[1 + m * tries + k] = scale[1 + k]
                        zero[1 + m * tries + k] = max(qmin, min(qmax, place[r] + offsets[m]))
                count = 1 + offsets.size * tries
            else:
                count, tries = 0, counts[i, 2]
                reach = reaches[i] * near
                for k in range(counts[i, 1]):
                    centre, middle = F(best[k, 1]), F(best[k, 2])
                    for j in range(counts[i, 0]):
                        for m in range(tries):
                            moved = centre * (F(1) + reach * places[i, m])
                            scale[count + m] = moved if moved > F(0) else centre
                            zero[count + m] = max(qmin, min(qmax, middle + beside[i, j]))
                        count += tries
            totals[:] = 0.0
            _sums(x[r], w, scale[:count], zero[:count], qmin, qmax, block, sums, given, totals[:, :count])
            if i < 0:
                best[2, 0] = totals[0, 0]
            _keep_best(scale[:count], zero[:count], totals[:, :count], best)
