"""Effort `best` for IQ1_S and IQ1_M on one CPU core: from llama.cpp's answer on, d and every group's scale, the side to
which its levels are moved and its points are refined in turn, W groups side by side. searches_best_lattice.py says the
same in torch, operation by operation.

Kernels as in lanes_best_lattice.py, without magnitudes.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, vector_kernel
from core.formats.fitting.lanes_best_lattice import BEST as LEAST
from core.formats.fitting.lanes_best_lattice import ERR, INVERSE, LS, ROWS, START, STEP, TRIED, D, errors, fit
from core.formats.fitting.lanes_bits import from_half, half_at, put_half, to_half
from core.formats.fitting.lanes_iq1 import DOWN, RUN, UP, _load
from core.formats.fitting.lanes_nearest import W, nearest_above
from core.formats.fitting.lanes_room import empty_rows, flattened, zeros_rows
from core.formats.fitting.tries import SIDE_MOVES

F = np.float32
U8 = np.uint8
# One more row of the table: the level of code 0.
LOW = ROWS
# Scales tried in every round, of (0, −1, 1).
TRIES = np.array([3 if moves else 1 for moves in SIDE_MOVES])


@helper
def _gather(codes, kept, down, runs, q):
    """The levels of the points kept."""
    for k in range(runs):
        for j in range(W):
            low = DOWN[0] if down[k, j] else UP[0]
            for i in range(RUN):
                q[k * RUN + i, j] = low + F(codes[kept[k, j], i])


@helper
def _runs(x, w, down, other, k, s, found, number, err, lattice):
    """The points of run k at every lane's step with its levels moved to the side in down, or (other) to the opposite
    one, and the run's error."""
    codes, point, begin, listed, lanes = lattice
    step, inverse, low = s[STEP], s[INVERSE], s[LOW]
    power = F(1)
    for j in range(W):
        low[j] = DOWN[0] if (down[k, j] != 0) != other else UP[0]
        number[j] = F(0)
        err[j] = F(0)
    for i in range(k * RUN, (k + 1) * RUN):
        for j in range(W):
            number[j] += max(F(0), min(F(2), np.rint(x[i, j] * inverse[j] - low[j]))) * power
        power *= F(3)
    for j in range(W):
        u = np.int64(number[j])
        p = point[u]
        if p < 0:
            p = nearest_above(listed, lanes, x, w, k * RUN * W + j, step[j], low[j], begin[u], begin[u + 1])
        found[k, j] = p
        for i in range(RUN):
            e = step[j] * (low[j] + F(codes[p, i])) - x[k * RUN + i, j]
            err[j] += w[k * RUN + i, j] * (e * e)


@helper
def _refine(x, w, runs, together, per, q, s, kept, down, found, found_there, side, room, lattice):
    """Refines W groups, whose d, scales, points and sides are in s, kept and down.

    room  float32 [2 · R + 3, W]: errors of runs on the present and on the other side, scratch
    """
    d, ls, best, err, step, inverse, start, tried = (
        s[D], s[LS], s[LEAST], s[ERR], s[STEP], s[INVERSE], s[START], s[TRIED],
    )  # fmt: skip
    number, here, there = room[2 * runs], room[2 * runs + 1], room[2 * runs + 2]
    codes = lattice[0]
    n = runs * RUN
    _gather(codes, kept, down, runs, q)
    for j in range(W):
        step[j] = d[j] * (F(2) * ls[j] + F(1))
        best[j] = F(0)
    for k in range(runs):
        errors(x[k * RUN :], w[k * RUN :], q[k * RUN :], RUN, step, err)
        for j in range(W):
            best[j] += err[j]
    for turn in range(TRIES.size + 1):
        fit(x, w, q, n, per, F(1), RUN, s)
        if turn == TRIES.size:
            break
        for j in range(W):
            start[j] = ls[j]
        for trial in range(TRIES[turn]):
            move = (0, -1, 1)[trial]
            for j in range(W):
                tried[j] = max(F(0), min(F(7), start[j] + F(move)))
                step[j] = d[j] * (F(2) * tried[j] + F(1))
                inverse[j] = F(1) / step[j] if step[j] != 0 else F(0)
                here[j] = F(0)
                there[j] = F(0)
                err[j] = F(0)
            for k in range(runs):
                _runs(x, w, down, False, k, s, found, number, room[k], lattice)
                for j in range(W):
                    side[k, j] = down[k, j]
                    here[j] += room[k, j]
                if move == 0:
                    _runs(x, w, down, True, k, s, found_there, number, room[runs + k], lattice)
                    for j in range(W):
                        there[j] += room[runs + k, j]
            for k in range(runs):
                if move == 0:
                    for j in range(W):
                        lower = there[j] < here[j] if together else room[runs + k, j] < room[k, j]
                        if lower:
                            side[k, j] = 1 - down[k, j]
                            found[k, j] = found_there[k, j]
                            room[k, j] = room[runs + k, j]
                for j in range(W):
                    err[j] += room[k, j]
            for j in range(W):
                if err[j] < best[j]:
                    best[j] = err[j]
                    ls[j] = tried[j]
                    for k in range(runs):
                        down[k, j] = side[k, j]
                        kept[k, j] = found[k, j]
        _gather(codes, kept, down, runs, q)


@helper
def _take_s(data, a, ls, kept, down):
    for g in range(8):
        high = np.int32(data[34 + 2 * g]) | np.int32(data[35 + 2 * g]) << 8
        for k in range(4):
            kept[k, a + g] = np.int16(np.int32(data[2 + 4 * g + k]) | (high >> 3 * k & 7) << 8)
            down[k, a + g] = U8(high >> 15)
        ls[a + g] = F(high >> 12 & 7)


@helper
def _put_s(to, d, a, ls, kept, down):
    put_half(to, 0, to_half(d))
    for g in range(8):
        high = np.int32(down[0, a + g]) << 15 | np.int32(ls[a + g]) << 12
        for k in range(4):
            number = np.int32(kept[k, a + g])
            to[2 + 4 * g + k] = U8(number & 255)
            high |= number >> 8 << 3 * k
        to[34 + 2 * g] = U8(high & 255)
        to[35 + 2 * g] = U8(high >> 8)


@helper
def _take_m(data, a, ls, kept, down):
    """Returns d, whose bits lie in the highest four of four words."""
    h = np.int32(0)
    for k in range(4):
        h |= (np.int32(data[49 + 2 * k]) >> 4) << 4 * k
    for g in range(16):
        word = np.int32(data[48 + g // 4 * 2]) | np.int32(data[49 + g // 4 * 2]) << 8
        ls[a + g] = F(word >> 3 * (g & 3) & 7)
        high = np.int32(data[32 + g])
        for k in range(2):
            kept[k, a + g] = np.int16(np.int32(data[2 * g + k]) | (high >> 4 * k & 7) << 8)
            down[k, a + g] = U8(high >> (4 * k + 3) & 1)
    return from_half(np.uint16(h))


@helper
def _put_m(to, d, a, ls, kept, down):
    h = np.int32(to_half(d))
    for k in range(4):
        word = (h >> 4 * k & 15) << 12
        for g in range(4):
            word |= np.int32(ls[a + 4 * k + g]) << 3 * g
        to[48 + 2 * k] = U8(word & 255)
        to[49 + 2 * k] = U8(word >> 8)
    for g in range(16):
        high = np.int32(0)
        for k in range(2):
            number = np.int32(kept[k, a + g])
            to[2 * g + k] = U8(number & 255)
            high |= (number >> 8 | np.int32(down[k, a + g]) << 3) << 4 * k
        to[32 + g] = U8(high)


@vector_kernel
def iq1_s(x, imp, codes, point, begin, listed, lanes, out):
    group, runs, per = 32, 4, 8
    total = x.size // group
    data = flattened(out)
    lanes_x, lanes_w, q = empty_rows(F, group, W), empty_rows(F, group, W), empty_rows(F, group, W)
    s = zeros_rows(F, ROWS + 1, W)
    room = empty_rows(F, 2 * runs + 3, W)
    kept = zeros_rows(np.int16, runs, W)
    found, found_there = empty_rows(np.int16, runs, W), empty_rows(np.int16, runs, W)
    down, side = zeros_rows(U8, runs, W), zeros_rows(U8, runs, W)
    lattice = (codes, point, begin, listed, lanes)
    for first in range(0, total, W):
        _load(x, imp, first, group, F(0), lanes_x, lanes_w, room[0], room[1])
        for a in range(0, min(W, total - first), per):
            at = (first + a) // per * 50
            _take_s(data[at:], a, s[LS], kept, down)
            for j in range(a, a + per):
                s[D, j] = half_at(data, at)
        _refine(lanes_x, lanes_w, runs, True, per, q, s, kept, down, found, found_there, side, room, lattice)
        for a in range(0, min(W, total - first), per):
            _put_s(data[(first + a) // per * 50 :], s[D, a], a, s[LS], kept, down)


@vector_kernel
def iq1_m(x, imp, codes, point, begin, listed, lanes, out):
    group, runs, per = 16, 2, 16
    total = x.size // group
    data = flattened(out)
    lanes_x, lanes_w, q = empty_rows(F, group, W), empty_rows(F, group, W), empty_rows(F, group, W)
    s = zeros_rows(F, ROWS + 1, W)
    room = empty_rows(F, 2 * runs + 3, W)
    kept = zeros_rows(np.int16, runs, W)
    found, found_there = empty_rows(np.int16, runs, W), empty_rows(np.int16, runs, W)
    down, side = zeros_rows(U8, runs, W), zeros_rows(U8, runs, W)
    lattice = (codes, point, begin, listed, lanes)
    for first in range(0, total, W):
        _load(x, imp, first, group, F(0), lanes_x, lanes_w, room[0], room[1])
        for a in range(0, min(W, total - first), per):
            at = (first + a) // per * 56
            d = _take_m(data[at:], a, s[LS], kept, down)
            for j in range(a, a + per):
                s[D, j] = d
        _refine(lanes_x, lanes_w, runs, False, per, q, s, kept, down, found, found_there, side, room, lattice)
        for a in range(0, min(W, total - first), per):
            _put_m(data[(first + a) // per * 56 :], s[D, a], a, s[LS], kept, down)
