"""Effort `best` for IQ2 and IQ3 on one CPU core: from llama.cpp's answer on, d, the signs that may be chosen and every
group's scale and points are refined in turn, W groups side by side. searches_best_lattice.py says the same in torch,
operation by operation.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, codes, point, first, index and lanes of
core/formats/ggml/neighbours.py, the type's magnitudes uint8, out uint8 [rows, bytes]), out holding llama.cpp's blocks,
which are refined in place.

In shapes, N is the group, R = N / run the runs in it.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import from_half, half_at, to_half
from core.formats.fitting.lanes_lattice import load
from core.formats.fitting.lanes_lattice_bytes import (
    put_iq2_s,
    put_iq2_xs,
    put_iq2_xxs,
    put_iq3_s,
    put_iq3_xxs,
    take_iq2_s,
    take_iq2_xs,
    take_iq2_xxs,
    take_iq3_s,
    take_iq3_xxs,
)
from core.formats.fitting.lanes_nearest import W, nearest_above, nearest_above4
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.tries import REACHES

F = np.float32
HALF_MAX = F(65504)
REACH = np.array(REACHES)
# Rows of the table of one value per group; ls are the scales.
D, LS, BEST, ERR, STEP, INVERSE, A, B, START, TRIED, ROWS = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10


@helper
def levels_of(codes, sizes):
    """Levels of the codes of points, of the same shape: float32 of sizes[code]."""
    out = empty_rows(F, codes.shape[0], codes.shape[1])
    for p in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            out[p, i] = F(sizes[codes[p, i]])
    return out


@helper
def listed_sizes(lanes, sizes):
    """The lists of neighbours with magnitudes in place of codes."""
    out = empty(np.uint8, lanes.size)
    flat = flattened(lanes)
    for i in range(flat.size):
        out[i] = sizes[flat[i]]
    return out


@helper
def _turn(x, signs, n, t):
    """t: x under the signs given, so that magnitudes are its targets."""
    for i in range(n):
        for j in range(W):
            v = x[i, j]
            t[i, j] = -v if np.int32(signs[i >> 3, j]) >> (i & 7) & 1 else v


@helper
def _gather(points, kept, n, run, q):
    """The levels of the points kept."""
    for k in range(n // run):
        for j in range(W):
            p = kept[k, j]
            for i in range(run):
                q[k * run + i, j] = points[p, i]


@helper
def errors(t, w, q, n, step, err):
    """Σ w·(step·q − t)² of every lane."""
    for j in range(W):
        err[j] = F(0)
    for i in range(n):
        for j in range(W):
            e = step[j] * q[i, j] - t[i, j]
            err[j] += w[i, j] * (e * e)


@helper
def fit(t, w, q, n, per, factor, part, s):
    """d by least squares over every block of `per` groups; the new one where it lowers the block's error.

    part  rows whose errors are summed by themselves: n or a run
    """
    d, ls, best, err, step, a, b = s[D], s[LS], s[BEST], s[ERR], s[STEP], s[A], s[B]
    fresh = s[TRIED]
    for j in range(W):
        a[j] = F(0)
        b[j] = F(0)
    for i in range(n):
        for j in range(W):
            v = w[i, j] * q[i, j]
            a[j] += v * t[i, j]
            b[j] += v * q[i, j]
    for g in range(0, W, per):
        aa, bb = F(0), F(0)
        for j in range(g, g + per):
            odd = F(2) * ls[j] + F(1)
            aa += odd * a[j]
            bb += odd * odd * b[j]
        v = aa / (bb if bb > 0 else F(1)) * (F(1) / factor)
        v = from_half(to_half(v)) if bb > 0 and v > 0 and v <= HALF_MAX else d[g]
        for j in range(g, g + per):
            fresh[j] = v
            step[j] = v * (F(2) * ls[j] + F(1)) * factor
    for j in range(W):
        err[j] = F(0)
    for i in range(0, n, part):
        errors(t[i:], w[i:], q[i:], part, step, a)
        for j in range(W):
            err[j] += a[j]
    for g in range(0, W, per):
        before, after = F(0), F(0)
        for j in range(g, g + per):
            before += best[j]
            after += err[j]
        if after < before:
            for j in range(g, g + per):
                best[j] = err[j]
                d[j] = fresh[j]


@helper
def _choose_signs(x, w, q, n, factor, t, turned, signs, other, s):
    """Where the number of negative weights in 8 is odd, the one whose wrong sign costs least under the present
    magnitudes changes its own; kept by the lanes whose error that lowers."""
    d, ls, best, err, step = s[D], s[LS], s[BEST], s[ERR], s[STEP]
    for j in range(W):
        step[j] = d[j] * (F(2) * ls[j] + F(1)) * factor
        for k in range(n // 8):
            bits, odd = 0, False
            least, low = 8 * k, F(0)
            for i in range(8 * k, 8 * k + 8):
                if x[i, j] < 0:
                    bits |= 1 << (i & 7)
                    odd = not odd
                cost = w[i, j] * q[i, j] * abs(x[i, j])
                if i == 8 * k or cost < low:
                    low = cost
                    least = i
            if odd:
                bits ^= 1 << (least & 7)
            other[k, j] = np.uint8(bits)
    _turn(x, other, n, turned)
    errors(turned, w, q, n, step, err)
    for j in range(W):
        if err[j] < best[j]:
            best[j] = err[j]
            for k in range(n // 8):
                signs[k, j] = other[k, j]
            for i in range(n):
                t[i, j] = turned[i, j]


@helper
def _places(t, w, q, n, run, count, shape, s, found, number, tables):
    """The points that suit every lane at its step: into found, their levels into q."""
    points, point, first, index, lanes = tables
    _, slope, origin = shape
    step, inverse = s[STEP], s[INVERSE]
    top = F(count - 1)
    for k in range(n // run):
        power = F(1)
        for j in range(W):
            number[j] = F(0)
        for i in range(k * run, (k + 1) * run):
            for j in range(W):
                number[j] += max(F(0), min(top, np.rint(t[i, j] * inverse[j] * slope - origin))) * power
            power *= F(count)
        for j in range(W):
            u = np.int64(number[j])
            p = point[u]
            if p < 0:
                cell = k * run * W + j
                if run == 8:
                    p = nearest_above(index, lanes, t, w, cell, step[j], F(0), first[u], first[u + 1])
                else:
                    p = nearest_above4(index, lanes, t, w, cell, step[j], F(0), first[u], first[u + 1])
            found[k, j] = p
            for i in range(run):
                q[k * run + i, j] = points[p, i]


@helper
def _refine(x, w, n, run, count, shape, even, per, work, s, kept, found, signs, other, number, tables):
    """Refines W groups, whose d, scales, points and signs are in s, kept and signs.

    count  magnitudes of the type
    shape  factor, slope, origin of searches_best_lattice.py
    work   float32 [3, N, W], found, other, number: scratch
    """
    t, turned, q = work
    factor = shape[0]
    d, ls, best, err, step, inverse, start, tried = (
        s[D], s[LS], s[BEST], s[ERR], s[STEP], s[INVERSE], s[START], s[TRIED],
    )  # fmt: skip
    _turn(x, signs, n, t)
    _gather(tables[0], kept, n, run, q)
    for j in range(W):
        step[j] = d[j] * (F(2) * ls[j] + F(1)) * factor
    errors(t, w, q, n, step, best)
    for turn in range(REACH.size + 1):
        fit(t, w, q, n, per, factor, n, s)
        if turn == REACH.size:
            break
        if even:
            _choose_signs(x, w, q, n, factor, t, turned, signs, other, s)
        reach = REACH[turn]
        for j in range(W):
            start[j] = ls[j]
        for move in range(-reach, reach + 1):
            for j in range(W):
                tried[j] = max(F(0), min(F(15), start[j] + F(move)))
                step[j] = d[j] * (F(2) * tried[j] + F(1)) * factor
                inverse[j] = F(1) / step[j] if step[j] != 0 else F(0)
            _places(t, w, q, n, run, count, shape, s, found, number, tables)
            errors(t, w, q, n, step, err)
            for j in range(W):
                if err[j] < best[j]:
                    best[j] = err[j]
                    ls[j] = tried[j]
                    for k in range(n // run):
                        kept[k, j] = found[k, j]
        _gather(tables[0], kept, n, run, q)


@helper
def whole(ls, a, levels):
    """Scales of the groups a, a + 1 … as integers."""
    for g in range(levels.size):
        levels[g] = np.int32(ls[a + g])


@kernel
def iq2_xxs(x, imp, codes, point, first, index, lanes, sizes, out):
    n, run, per, size = 32, 8, 8, 66
    total = x.size // n
    data = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    work, s = np.empty((3, n, W), F), empty_rows(F, ROWS, W)
    kept, found = empty_rows(np.int16, n // run, W), empty_rows(np.int16, n // run, W)
    signs, other, number = empty_rows(np.uint8, n // 8, W), empty_rows(np.uint8, n // 8, W), empty(F, W)
    levels = empty(np.int32, per)
    tables = levels_of(codes, sizes), point, first, index, listed_sizes(lanes, sizes)
    shape = F(0.125), F(2 / 35), F(16 / 35)
    for begin in range(0, total, W):
        load(x, imp, begin, n, F(1), F(0), lanes_x, lanes_w)
        for a in range(0, W, per):
            at = min(begin + a, total - per) // per * size
            take_iq2_xxs(data[at:], a, s[LS], kept, signs)
            for j in range(a, a + per):
                s[D, j] = half_at(data, at)
        _refine(lanes_x, lanes_w, n, run, 3, shape, True, per, work, s, kept, found, signs, other, number, tables)
        for a in range(0, min(W, total - begin), per):
            whole(s[LS], a, levels)
            put_iq2_xxs(data[(begin + a) // per * size :], to_half(s[D, a]), levels, a, kept, signs)


@kernel
def iq2_xs(x, imp, codes, point, first, index, lanes, sizes, out):
    n, run, per, size = 16, 8, 16, 74
    total = x.size // n
    data = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    work, s = np.empty((3, n, W), F), empty_rows(F, ROWS, W)
    kept, found = empty_rows(np.int16, n // run, W), empty_rows(np.int16, n // run, W)
    signs, other, number = empty_rows(np.uint8, n // 8, W), empty_rows(np.uint8, n // 8, W), empty(F, W)
    levels = empty(np.int32, per)
    tables = levels_of(codes, sizes), point, first, index, listed_sizes(lanes, sizes)
    shape = F(0.125), F(2 / 35), F(16 / 35)
    for begin in range(0, total, W):
        load(x, imp, begin, n, F(1), F(0), lanes_x, lanes_w)
        for a in range(0, W, per):
            at = min(begin + a, total - per) // per * size
            take_iq2_xs(data[at:], a, s[LS], kept, signs)
            for j in range(a, a + per):
                s[D, j] = half_at(data, at)
        _refine(lanes_x, lanes_w, n, run, 3, shape, True, per, work, s, kept, found, signs, other, number, tables)
        for a in range(0, min(W, total - begin), per):
            whole(s[LS], a, levels)
            put_iq2_xs(data[(begin + a) // per * size :], to_half(s[D, a]), levels, a, kept, signs)


@kernel
def iq2_s(x, imp, codes, point, first, index, lanes, sizes, out):
    n, run, per, size = 16, 8, 16, 82
    total = x.size // n
    data = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    work, s = np.empty((3, n, W), F), empty_rows(F, ROWS, W)
    kept, found = empty_rows(np.int16, n // run, W), empty_rows(np.int16, n // run, W)
    signs, other, number = empty_rows(np.uint8, n // 8, W), empty_rows(np.uint8, n // 8, W), empty(F, W)
    levels = empty(np.int32, per)
    tables = levels_of(codes, sizes), point, first, index, listed_sizes(lanes, sizes)
    shape = F(0.125), F(2 / 35), F(16 / 35)
    for begin in range(0, total, W):
        load(x, imp, begin, n, F(2), F(0.25), lanes_x, lanes_w)
        for a in range(0, W, per):
            at = min(begin + a, total - per) // per * size
            take_iq2_s(data[at:], a, s[LS], kept, signs)
            for j in range(a, a + per):
                s[D, j] = half_at(data, at)
        _refine(lanes_x, lanes_w, n, run, 3, shape, False, per, work, s, kept, found, signs, other, number, tables)
        for a in range(0, min(W, total - begin), per):
            whole(s[LS], a, levels)
            put_iq2_s(data[(begin + a) // per * size :], to_half(s[D, a]), levels, a, kept, signs)


@kernel
def iq3_xxs(x, imp, codes, point, first, index, lanes, sizes, out):
    n, run, per, size = 32, 4, 8, 98
    total = x.size // n
    data = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    work, s = np.empty((3, n, W), F), empty_rows(F, ROWS, W)
    kept, found = empty_rows(np.int16, n // run, W), empty_rows(np.int16, n // run, W)
    signs, other, number = empty_rows(np.uint8, n // 8, W), empty_rows(np.uint8, n // 8, W), empty(F, W)
    levels = empty(np.int32, per)
    tables = levels_of(codes, sizes), point, first, index, listed_sizes(lanes, sizes)
    shape = F(0.25), F(0.125), F(0.5)
    for begin in range(0, total, W):
        load(x, imp, begin, n, F(2), F(0), lanes_x, lanes_w)
        for a in range(0, W, per):
            at = min(begin + a, total - per) // per * size
            take_iq3_xxs(data[at:], a, s[LS], kept, signs)
            for j in range(a, a + per):
                s[D, j] = half_at(data, at)
        _refine(lanes_x, lanes_w, n, run, 8, shape, True, per, work, s, kept, found, signs, other, number, tables)
        for a in range(0, min(W, total - begin), per):
            whole(s[LS], a, levels)
            put_iq3_xxs(data[(begin + a) // per * size :], to_half(s[D, a]), levels, a, kept, signs)


@kernel
def iq3_s(x, imp, codes, point, first, index, lanes, sizes, out):
    n, run, per, size = 32, 4, 8, 110
    total = x.size // n
    data = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    work, s = np.empty((3, n, W), F), empty_rows(F, ROWS, W)
    kept, found = empty_rows(np.int16, n // run, W), empty_rows(np.int16, n // run, W)
    signs, other, number = empty_rows(np.uint8, n // 8, W), empty_rows(np.uint8, n // 8, W), empty(F, W)
    levels = empty(np.int32, per)
    tables = levels_of(codes, sizes), point, first, index, listed_sizes(lanes, sizes)
    shape = F(1), F(0.5), F(0.5)
    for begin in range(0, total, W):
        load(x, imp, begin, n, F(2), F(0), lanes_x, lanes_w)
        for a in range(0, W, per):
            at = min(begin + a, total - per) // per * size
            take_iq3_s(data[at:], a, s[LS], kept, signs)
            for j in range(a, a + per):
                s[D, j] = half_at(data, at)
        _refine(lanes_x, lanes_w, n, run, 8, shape, False, per, work, s, kept, found, signs, other, number, tables)
        for a in range(0, min(W, total - begin), per):
            whole(s[LS], a, levels)
            put_iq3_s(data[(begin + a) // per * size :], to_half(s[D, a]), levels, a, kept, signs)
