"""Effort `best` for blocks with a 16-bit scale and a minimum on one CPU core, sixteen blocks side by side
(lanes_vector.py): Q4_1 and Q5_1.

As in lanes_best_scaled.py, the codes of llama.cpp's line (scale and minimum) and of a few others are compared by what
the line that suits each best takes off the error; the best codes are fitted again, and the result is stored where it is
no worse than llama.cpp's line with its nearest codes. All sums are of y = x − llama.cpp's minimum.

Kernels: as there.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, vector_kernel
from core.formats.fitting.lanes_bits import half_at
from core.formats.fitting.lanes_blocks import (
    BLOCK,
    HALF_MAX,
    extent,
    first_beyond,
    place_for,
    put_nibbles,
    read_blocks,
    reciprocal,
    row_means,
    weigh_blocks,
    write_rest,
)
from core.formats.fitting.lanes_room import empty, flattened
from core.formats.fitting.lanes_vector import (
    all_of,
    any_of,
    at_least,
    at_most,
    fused,
    load,
    load_at,
    magnitude,
    rint,
    splat,
    store,
    table,
    where,
)
from core.formats.fitting.lanes_vector_bits import halved, store_halves
from core.formats.fitting.tries import AGAIN, LINES

F = np.float32
HALF_NORMAL = F(2.0**-14)  # the smallest half of full precision


def _tries(name):
    """float32 [·, 2]: u = y/(step·factor) − moved/factor, as factors and summands of y/step."""
    factor, moved = np.array(LINES[name], F).T
    return np.ascontiguousarray(np.stack([F(1) / factor, -moved / factor], 1))


Q4_1_AGAIN, Q5_1_AGAIN, WEIGHTED_AGAIN = AGAIN["Q4_1"], AGAIN["Q5_1"], AGAIN["weighted"]
Q4_1, Q5_1, WEIGHTED = _tries("Q4_1"), _tries("Q5_1"), _tries("weighted")


@helper
def _added(y, w, i, q, s, sq, sy):
    """The sums Σ w·q, Σ w·q² and Σ w·q·y with row i added."""
    if w is None:
        return s + q, fused(q, q, sq), fused(y, q, sy)
    v = load(w, i) * q
    return s + v, fused(v, q, sq), fused(v, y, sy)


@helper
def _taken(sw, swy, s, sq, sy):
    """What the line that suits codes best takes off Σ w·(y − mean)², 0 where there is none, and its step."""
    det, t = sw * sq - s * s, sw * sy - swy * s
    usable = (det > F(0)) & (t > F(0))
    step = t / where(det > F(0), det, F(1))
    return where(usable, t * step, F(0)), step


@helper
def _nearest(u, top):
    """u rounded, within 0 … top; within bounds first: with a bound of 0 the compiler makes two steps of one."""
    return rint(at_least(at_most(u, top + F(0.25)), F(-0.25)))


@helper
def _sums(y, w, inv, c, top):
    """Σ w·q, Σ w·q², Σ w·q·y for the codes of y·inv + c."""
    s, sq, sy = splat(F(0)), splat(F(0)), splat(F(0))
    for i in range(BLOCK):
        v = load(y, i)
        s, sq, sy = _added(v, w, i, _nearest(fused(v, inv, c), top), s, sq, sy)
    return s, sq, sy


@helper
def _encoded(y, w, step, shift, top, codes):
    """Codes into a table; Σ w·(y − step·code − shift)²."""
    inv, e = reciprocal(step), splat(F(0))
    c = -(shift * inv)
    for i in range(BLOCK):
        u = fused(load(y, i), inv, c)
        q = _nearest(u, top)
        r = u - q
        store(codes, i, q)
        e = fused(r, r, e) if w is None else fused(load(w, i) * r, r, e)
    return step * step * e


@helper
def searched(x, y, w, start, low, tries, again, top, codes):
    """The step and the minimum to store, and llama.cpp's error; codes in codes. start, low: llama.cpp's; y: scratch."""
    inv, zero = reciprocal(start), splat(F(0))
    s, sq, sy, e, sw, swy = zero, zero, zero, zero, zero, zero
    for i in range(BLOCK):
        v = load(x, i) - low
        store(y, i, v)
        q = rint(v * inv)
        r = fused(v, inv, -q)
        s, sq, sy = _added(v, w, i, q, s, sq, sy)
        if w is None:
            e, swy = fused(r, r, e), swy + v
        else:
            u = load(w, i)
            e, swy, sw = fused(u * r, r, e), fused(u, v, swy), sw + u
    if w is None:
        sw = splat(F(BLOCK))
    limit = start * start * e
    best, step = _taken(sw, swy, s, sq, sy)
    codes_sum = s
    for k in range(tries.shape[0]):
        s, sq, sy = _sums(y, w, inv * tries[k, 0], splat(tries[k, 1]), top)
        taken, a = _taken(sw, swy, s, sq, sy)
        better = taken > best
        best, step, codes_sum = where(better, taken, best), where(better, a, step), where(better, s, codes_sum)
    share = F(1) / where(sw > F(0), sw, F(1))
    for _ in range(again):
        inv = reciprocal(where(best > F(0), step, start))
        # y·inv − shift·inv, the shift being the mean of y − step·q.
        c = where(best > F(0), (codes_sum - swy * inv) * share, F(0))
        codes_sum, sq, sy = _sums(y, w, inv, c, top)
        best, step = _taken(sw, swy, codes_sum, sq, sy)
    a, b = halved(step), halved(low + (swy - step * codes_sum) * share)
    usable = (best > F(0)) & (a > F(0)) & (a <= HALF_MAX) & (magnitude(b) <= HALF_MAX)
    step, minimum = where(usable, a, start), where(usable, b, low)
    worse = _encoded(y, w, step, minimum - low, top, codes) > limit
    if any_of(worse):
        step, minimum = where(worse, start, step), where(worse, low, minimum)
        _encoded(y, w, step, minimum - low, top, codes)
    return step, minimum, limit


# How far off sums of 32 products in float32 may be, as a share of them: five standard deviations.
DOUBT = F(2.0**-20)


@helper
def _exceeds(y, start, step, shift, codes):
    """Whether Σ (y − step·code − shift)² is above the error of llama.cpp's line."""
    inv, old, inv_old, new = reciprocal(step), splat(F(0)), reciprocal(start), splat(F(0))
    c = -(shift * inv)
    for i in range(BLOCK):
        v = load(y, i)
        r = fused(v, inv_old, -rint(v * inv_old))
        u = fused(v, inv, c) - load(codes, i)
        old, new = fused(r, r, old), fused(u, u, new)
    return step * step * new > start * start * old


@helper
def searched_once(x, y, start, low, least, largest, tried, top, codes):
    """As searched, with one try and no weights, for blocks whose codes lie within 0 … top without being bounded: both
    lines are judged by their sums alone, and errors are added up only where those leave doubt. Returns whether all of
    the blocks are such ones, the step and the minimum. least, largest: of x."""
    inv, zero = reciprocal(start), splat(F(0))
    factor, moved = inv * tried[0], splat(tried[1])
    u, v = least - low, largest - low
    tame = (start >= HALF_NORMAL) & (start <= HALF_MAX) & (magnitude(low) <= HALF_MAX)
    tame = tame & (u * inv > F(-0.49)) & (v * inv < top + F(0.49)) & (fused(u, factor, moved) > F(-0.49))
    tame = tame & (fused(v, factor, moved) < top + F(0.49))
    if not all_of(tame):
        return False, start, low
    s, sq, sy, swy, s_tried, sq_tried, sy_tried = zero, zero, zero, zero, zero, zero, zero
    for i in range(BLOCK):
        v = load(x, i) - low
        store(y, i, v)
        swy = swy + v
        s, sq, sy = _added(v, None, i, rint(v * inv), s, sq, sy)
    if not all_of(swy == swy):  # NaN, which the extremes pass over
        return False, start, low
    for i in range(BLOCK):
        v = load(y, i)
        s_tried, sq_tried, sy_tried = _added(v, None, i, rint(fused(v, factor, moved)), s_tried, sq_tried, sy_tried)
    sw, share, old = splat(F(BLOCK)), F(1) / F(BLOCK), start * (sy + sy - start * sq)
    size = fused(start * start, sq, swy * swy * share)
    best, step = _taken(sw, swy, s, sq, sy)
    taken, a = _taken(sw, swy, s_tried, sq_tried, sy_tried)
    better = taken > best
    best, step = where(better, taken, best), where(better, a, step)
    s, sq = where(better, s_tried, s), where(better, sq_tried, sq)
    mean = low + (swy - step * s) * share
    a, b = halved(step), halved(mean)
    usable = (best > F(0)) & (a > F(0)) & (a <= HALF_MAX) & (magnitude(b) <= HALF_MAX)
    # What the line takes off the squares of y, less what rounding it to halves adds, against what llama.cpp's line
    # takes off. best is 32 times what is taken off beyond the mean.
    moved, lift = a - step, b - mean
    lost = moved * fused(moved, sq, F(2) * lift * s) + lift * lift * F(BLOCK)
    sure = usable & (fused(swy, swy, best) * share - old - lost > size * DOUBT)
    step, minimum = where(usable, a, start), where(usable, b, low)
    inv = reciprocal(step)
    c = -((minimum - low) * inv)
    for i in range(BLOCK):
        store(codes, i, _nearest(fused(load(y, i), inv, c), top))
    if not all_of(sure):
        worse = _exceeds(y, start, step, minimum - low, codes)
        if any_of(worse):
            step, minimum = where(worse, start, step), where(worse, low, minimum)
            _encoded(y, None, step, minimum - low, top, codes)
    return True, step, minimum


@helper
def _put(codes, step, minimum, to, at, size, bytes_):
    store_halves(to, at, size, step)
    store_halves(to, at + 2, size, minimum)
    put_nibbles(codes, to, at, size, bytes_)


@helper
def _plain(x, out, size, top, tries, again):
    t, y, codes = table(BLOCK), table(BLOCK), table(BLOCK)
    room, bytes_, whole = empty(F, 512), empty(np.uint8, 1024), empty(np.uint8, 16 * size)
    count, target = x.size // BLOCK, flattened(out)
    for first in range(0, count, 16):
        read_blocks(x, BLOCK, first, room, t)
        least, largest = extent(t, BLOCK)
        start, low = halved((largest - least) / top), halved(least)
        quick, step, minimum = False, start, low
        if tries.shape[0] == 1:
            quick, step, minimum = searched_once(t, y, start, low, least, largest, tries[0], top, codes)
        if not quick:
            step, minimum, limit = searched(t, y, None, start, low, tries, again, top, codes)
            bad = max(first_beyond(where(limit == limit, start, F(np.inf))), first_beyond(low))
            if bad >= 0:
                return (first + bad) * BLOCK // x.shape[1]
        to, at = place_for(target, whole, first, count, size)
        _put(codes, step, minimum, to, at, size, bytes_)
        write_rest(target, whole, first, count, size)
    return -1


@helper
def _weighted(x, imp, out, size, top):
    means = empty(F, x.shape[0])
    row_means(x, means)
    t, y, w, codes = table(BLOCK), table(BLOCK), table(BLOCK), table(BLOCK)
    room, bytes_, whole = empty(F, 512), empty(np.uint8, 1024), empty(np.uint8, 16 * size)
    count, target = x.size // BLOCK, flattened(out)
    for first in range(0, count, 16):
        read_blocks(x, BLOCK, first, room, t)
        weigh_blocks(x, imp, means, first, room, t, w)
        for j in range(16):
            block = min(first + j, count - 1) * size
            room[j], room[16 + j] = half_at(target, block), half_at(target, block + 2)
        start, low = load_at(room, 0), load_at(room, 16)
        step, minimum, _ = searched(t, y, w, start, low, WEIGHTED, WEIGHTED_AGAIN, top, codes)
        to, at = place_for(target, whole, first, count, size)
        _put(codes, step, minimum, to, at, size, bytes_)
        write_rest(target, whole, first, count, size)
    return -1


@vector_kernel
def q4_1(x, imp, out):
    if imp is None:
        return _plain(x, out, 20, F(15), Q4_1, Q4_1_AGAIN)
    return _weighted(x, imp, out, 20, F(15))


@vector_kernel
def q5_1(x, imp, out):
    if imp is None:
        return _plain(x, out, 24, F(31), Q5_1, Q5_1_AGAIN)
    return _weighted(x, imp, out, 24, F(31))
