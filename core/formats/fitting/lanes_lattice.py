"""The search of IQ2 and IQ3 on one CPU core: W groups of 16 or 32 weights side by side. Rounding and sums run over the
lanes; the choice among neighbours, for which every run of 4 or 8 weights has a list of its own, runs over the list
(lanes_nearest.py).

Weights of a run are magnitudes 2·code + 1 in steps of the group's scale; signs are split off before. In shapes, N is
the group, R = N / run the runs in it. tables: point, first, index and lanes of core/formats/ggml/neighbours.py, behind
the magnitudes of all points, float32 [points, run].
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined
from core.formats.fitting.lanes_nearest import W, nearest4, nearest8, rounded
from core.formats.fitting.lanes_room import empty_rows, flattened

F = np.float32
BLOCK = 256


@helper
def _code(v, top):
    """Code 0 … top of v steps, a whole float32: the magnitude 2·code + 1 nearest to v."""
    return max(F(0), min(top, rounded(F(0.5) * (v - F(1)))))


@helper
def magnitudes_of(codes):
    """float32 [points, run] of a lattice's codes."""
    out = empty_rows(F, codes.shape[0], codes.shape[1])
    for p in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            out[p, i] = F(2 * np.int32(codes[p, i]) + 1)
    return out


@helper
def load(x, imp, first, n, energy, share, lanes_x, lanes_w):
    """Groups first … first + W of n weights into lanes, the last one fills up, with what their squared errors weigh:
    importance · √(σ² + x²), or share · σ² + x² without; σ² is `energy` times the mean square of 256."""
    count, across = x.size // n, x.shape[1] // n
    flat = flattened(x)
    per = BLOCK // n
    for a in range(0, W, per):
        start = min(first + a, count - per) * n
        t = F(0)
        for v in flat[start : start + BLOCK]:
            t += v * v
        mean = energy * t / F(BLOCK)
        for j in range(a, a + per):
            group = min(first + a, count - per) + j - a
            source = flat[group * n : (group + 1) * n]
            column = group % across * n
            for i in range(n):
                v = source[i]
                lanes_x[i, j] = v
                if imp is not None:
                    lanes_w[i, j] = imp[column + i] * np.sqrt(mean + v * v)
                else:
                    lanes_w[i, j] = share * mean + v * v


@helper
def split(x, w, n, even, signs, peak):
    """Magnitudes in place of x; signs uint8 [n / 8, W], bit i set where weight i was negative; peak: the largest.

    even   their number in each 8 is made even: where it is odd, the weight whose error costs least changes its sign,
           and its magnitude becomes negative
    """
    for j in range(W):
        top = F(-1)
        for k in range(n // 8):
            s = 0
            odd = False
            for i in range(8):
                if x[8 * k + i, j] < 0:
                    s |= 1 << i
                    odd = not odd
            if even and odd:
                least = 8 * k
                low = w[least, j] * x[least, j] * x[least, j]
                for i in range(8 * k + 1, 8 * k + 8):
                    cost = w[i, j] * x[i, j] * x[i, j]
                    if cost < low:
                        low = cost
                        least = i
                s ^= 1 << (least - 8 * k)
            signs[k, j] = np.uint8(s)
            for i in range(8):
                v = x[8 * k + i, j]
                v = -v if s >> i & 1 else v
                x[8 * k + i, j] = v
                top = max(top, v)
        peak[j] = top


@helper
def start(peak, eps, tall, scale, dead):
    """The first scale of lanes whose largest magnitude is `peak`. Lanes with nothing above eps are dead (their peak
    becomes 1, to divide by); where eps is 0, those without anything."""
    for j in range(W):
        dead[j] = np.uint8(peak[j] < eps or peak[j] == 0)
        peak[j] = F(1) if dead[j] else peak[j]
        scale[j] = peak[j] / tall


@inlined
def search(x, w, root, q, n, run, levels, tries, width, den, dead, first_on, s, on, kept, number, tables):
    """Tries 2·tries + 1 scales around den / (2·levels − 1) for every lane.

    s       float32 [6, W]; s[0] holds the scale in the end (its first value, when no trial was better than nothing)
    kept    int16 [R, W]: the points chosen; on: uint8 [R, W], whether the codes were points of themselves
    number  float32 [R, W] and q float32 [N, W]: scratch
    """
    points, point, first, index, lanes = tables
    scale, best, inv, step, a, b = s
    runs = n // run
    top = F(levels - 1)
    tall = F(2 * levels - 1)
    for k in range(runs):
        for j in range(W):
            kept[k, j] = point[0]
            on[k, j] = np.uint8(first_on)
    for j in range(W):
        best[j] = F(0)
    for t in range(2 * tries + 1):
        wide = tall + F(t - tries) * width
        for j in range(W):
            inv[j] = wide / den[j]
            step[j] = F(1) / inv[j]
            a[j] = F(0)
            b[j] = F(0)
        for k in range(runs):
            power = F(1)
            for j in range(W):
                number[k, j] = F(0)
            for i in range(run):
                for j in range(W):
                    c = max(F(0), min(top, rounded(F(0.5) * (inv[j] * x[k * run + i, j] - F(1)))))
                    q[k * run + i, j] = c + c + F(1)
                    number[k, j] += c * power
                power *= F(levels)
            for j in range(W):
                u = np.int64(number[k, j])
                p = point[u]
                if p < 0 and dead[j] == 0:
                    cell = k * run * W + j
                    if run == 8:
                        p = nearest8(index, lanes, x, root, cell, step[j], first[u], first[u + 1])
                    else:
                        p = nearest4(index, lanes, x, root, cell, step[j], first[u], first[u + 1])
                    for i in range(run):
                        q[k * run + i, j] = points[p, i]
                    p = np.int16(-1 - p)
                number[k, j] = F(p)
        for i in range(n):
            for j in range(W):
                a[j] += w[i, j] * x[i, j] * q[i, j]
                b[j] += w[i, j] * q[i, j] * q[i, j]
        for j in range(W):
            if b[j] > 0 and a[j] * a[j] > best[j] * b[j]:
                scale[j] = a[j] / b[j]
                best[j] = scale[j] * a[j]
                for k in range(runs):
                    p = np.int16(number[k, j])
                    on[k, j] = np.uint8(p >= 0)
                    kept[k, j] = p if p >= 0 else np.int16(-1 - p)


@helper
def _again(x, w, root, j, n, run, levels, everywhere, on, kept, scale, tables):
    """Lane j coded anew at its scale: all runs, or those that were no points. Its new scale."""
    points, point, first, index, lanes = tables
    inv = F(1) / scale
    a, b = F(0), F(0)
    for k in range(n // run):
        if everywhere or not on[k, j]:
            number, power = F(0), F(1)
            for i in range(k * run, (k + 1) * run):
                number += _code(inv * x[i, j], F(levels - 1)) * power
                power *= F(levels)
            u = np.int64(number)
            p = point[u]
            cell = k * run * W + j
            if p < 0 and run == 8:
                p = nearest8(index, lanes, x, root, cell, scale, first[u], first[u + 1])
            elif p < 0:
                p = nearest4(index, lanes, x, root, cell, scale, first[u], first[u + 1])
            kept[k, j] = p
        for i in range(run):
            q = points[kept[k, j], i]
            v = w[k * run + i, j]
            a += v * x[k * run + i, j] * q
            b += v * q * q
    return a / b if b > 0 else scale


@helper
def finish(x, w, root, n, run, levels, everywhere, dead, s, on, kept, signs, tables):
    """The last coding of every lane. Scales in s[0] come out ≥ 0, signs turned where they were not; a dead
    lane gets scale 0, point 0 and no signs.

    everywhere  0: only runs that were no points are coded anew; 1: all, if one was none; 2: always all
    """
    scale = s[0]
    for j in range(W):
        if dead[j]:
            scale[j] = F(0)
            for k in range(n // run):
                kept[k, j] = np.int16(0)
            for k in range(n // 8):
                signs[k, j] = np.uint8(0)
            continue
        off = everywhere == 2
        for k in range(n // run):
            off = off or on[k, j] == 0
        if off and scale[j] > 0:
            scale[j] = _again(x, w, root, j, n, run, levels, everywhere > 0, on, kept, scale[j], tables)
        if scale[j] < 0:
            scale[j] = -scale[j]
            for k in range(n // 8):
                signs[k, j] ^= np.uint8(255)


@helper
def quantized_scales(scale, a, per, levels):
    """Scales a … a + per of one block as 4-bit numbers, 0 … 15 into levels int32 [per]; returns the unrounded step, 0
    for a block of zeros."""
    top = F(0)
    for k in range(per):
        top = max(top, scale[a + k])
    d = top / F(31)
    inv = F(1) / d
    for k in range(per):
        levels[k] = np.int32(_code(inv * scale[a + k], F(15)) if top > 0 else F(0))
    return d
