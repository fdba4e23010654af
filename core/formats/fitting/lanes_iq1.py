"""IQ1_S and IQ1_M on one CPU core: W groups of 32 or 16 weights side by side, sorted by a network and searched
together; runs that are no points of the lattice are then moved to points one by one. The same work, explained, is in
reference_iq1.py.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, codes, point, first, index and lanes of
core/formats/ggml/neighbours.py, out uint8 [rows, bytes]) → the first row whose scale is beyond a half, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined, kernel
from core.formats.fitting.lanes_bits import bits_of, broken, put_half, to_half
from core.formats.fitting.lanes_nearest import W, nearest_above

F = np.float32
SIZE = 256
RUN = 8
LARGEST = F(3.4028234663852886e38)
# Levels of codes 0, 1, 2, moved up and down.
UP = (F(-0.875), F(0.125), F(1.125))
DOWN = (F(-1.125), F(-0.125), F(0.875))
SMALLEST_S, SMALLEST_M = F(1e-12), F(1e-7)


def _network(n: int) -> np.ndarray:
    """int64 [comparators, 2]: Batcher's odd-even merging sort of n values, n a power of two."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return np.array(pairs)


NETWORK_32, NETWORK_16 = _network(32), _network(16)


@helper
def _load(x, imp, first, group, smallest, lanes_x, lanes_w, alive, mean):
    """Groups first … first + W into lanes, zeros behind the last one. alive: 0 where all weights are below `smallest`.
    The weights' weights are x², or importance · √(σ² + x²), σ² twice the mean square of 256."""
    flat, columns, per = x.reshape(-1), x.shape[1], SIZE // group
    for j in range(W):
        start = (first + j) * group
        if start >= flat.size:
            alive[j] = F(0)
            mean[j] = F(0)
            for i in range(group):
                lanes_x[i, j] = F(0)
                lanes_w[i, j] = F(0)
            continue
        if j % per == 0:
            t = F(0)
            for v in flat[start : start + SIZE]:
                t += v * v
            for k in range(per):
                mean[j + k] = F(2) * t / F(SIZE)
        size = F(0)
        column = start % columns
        for i in range(group):
            v = flat[start + i]
            lanes_x[i, j] = v
            lanes_w[i, j] = imp[column + i] if imp is not None else F(0)
            size = max(size, abs(v))
        alive[j] = F(0) if size < smallest else F(1)
    for i in range(group):
        for j in range(W):
            v = lanes_x[i, j]
            lanes_w[i, j] = lanes_w[i, j] * np.sqrt(mean[j] + v * v) if imp is not None else v * v


@helper
def _sort(lanes_x, network, value, place):
    """value: the weights of every lane in ascending order; place: where each came from. Ties keep their order."""
    n = value.shape[0]
    for i in range(n):
        for j in range(W):
            value[i, j] = lanes_x[i, j]
            place[i, j] = np.int32(i)
    for c in range(network.shape[0]):
        a, b = network[c, 0], network[c, 1]
        va, vb, pa, pb = value[a], value[b], place[a], place[b]
        for j in range(W):
            u, v, s, t = va[j], vb[j], pa[j], pb[j]
            swap = (u > v) | ((u == v) & (s > t))
            va[j] = v if swap else u
            vb[j] = u if swap else v
            pa[j] = t if swap else s
            pb[j] = s if swap else t


@inlined
def _search_32(lanes_x, lanes_w, best, choice, scale):
    """choice int32 [W]: (first · 64 + second) · 2 + moved down, of the best two places and levels, −1 for none; and
    its scale."""
    value, place = np.empty((32, W), F), np.empty((32, W), np.int32)
    _sort(lanes_x, NETWORK_32, value, place)
    sx, sw = np.empty((33, W), F), np.empty((33, W), F)
    for j in range(W):
        sx[0, j] = F(0)
        sw[0, j] = F(0)
        best[j] = -LARGEST
        choice[j] = np.int32(-1)
        for i in range(32):
            v = lanes_w[place[i, j], j]
            sx[i + 1, j] = sx[i, j] + v * value[i, j]
            sw[i + 1, j] = sw[i, j] + v
    # The terms of the weights above the second place.
    ux, uw, dx, dw = np.empty((33, W), F), np.empty((33, W), F), np.empty((33, W), F), np.empty((33, W), F)
    for k in range(33):
        for j in range(W):
            rest_x, rest_w = sx[32, j] - sx[k, j], sw[32, j] - sw[k, j]
            ux[k, j] = rest_x * UP[2]
            uw[k, j] = rest_w * UP[2] * UP[2]
            dx[k, j] = rest_x * DOWN[2]
            dw[k, j] = rest_w * DOWN[2] * DOWN[2]
    low = np.empty((4, W), F)
    for i in range(33):
        for j in range(W):
            low[0, j] = sx[i, j] * UP[0]
            low[1, j] = sw[i, j] * UP[0] * UP[0]
            low[2, j] = sx[i, j] * DOWN[0]
            low[3, j] = sw[i, j] * DOWN[0] * DOWN[0]
        for k in range(i, 33):
            name = np.int32((i * 64 + k) * 2)
            for j in range(W):
                mx = (sx[k, j] - sx[i, j]) * UP[1]
                mw = (sw[k, j] - sw[i, j]) * UP[1] * UP[1]
                a, b = low[0, j] + mx + ux[k, j], low[1, j] + mw + uw[k, j]
                top, named = best[j], choice[j]
                better = (b > 0) & (a * a > top * b)
                top = a / b * a if better else top
                named = name if better else named
                a, b = low[2, j] - mx + dx[k, j], low[3, j] + mw + dw[k, j]
                better = (b > 0) & (a * a > top * b)
                best[j] = a / b * a if better else top
                choice[j] = name + np.int32(1) if better else named
    for j in range(W):
        if choice[j] < 0:
            scale[j] = F(0)
            continue
        i, k = choice[j] >> 7, choice[j] >> 1 & 63
        mx, mw = (sx[k, j] - sx[i, j]) * UP[1], (sw[k, j] - sw[i, j]) * UP[1] * UP[1]
        if choice[j] & 1:
            a = sx[i, j] * DOWN[0] - mx + dx[k, j]
            b = sw[i, j] * DOWN[0] * DOWN[0] + mw + dw[k, j]
        else:
            a = sx[i, j] * UP[0] + mx + ux[k, j]
            b = sw[i, j] * UP[0] * UP[0] + mw + uw[k, j]
        scale[j] = a / b
    return place


@inlined
def _search_16(lanes_x, lanes_w, best, choice, scale):
    """choice int32 [W]: (first · 64 + second) · 4 + 2 · first run moved down + second run moved down, or −1."""
    value, place = np.empty((16, W), F), np.empty((16, W), np.int32)
    _sort(lanes_x, NETWORK_16, value, place)
    # Sums over the first and the second run.
    sx, sw = np.empty((2, 17, W), F), np.empty((2, 17, W), F)
    for j in range(W):
        for half in range(2):
            sx[half, 0, j] = F(0)
            sw[half, 0, j] = F(0)
        best[j] = -LARGEST
        choice[j] = np.int32(-1)
        scale[j] = F(0)
        for i in range(16):
            half = place[i, j] >> 3
            v = lanes_w[place[i, j], j]
            sx[half, i + 1, j] = sx[half, i, j] + v * value[i, j]
            sw[half, i + 1, j] = sw[half, i, j] + v
            sx[1 - half, i + 1, j] = sx[1 - half, i, j]
            sw[1 - half, i + 1, j] = sw[1 - half, i, j]
    x0, x1, w0, w1 = sx[0], sx[1], sw[0], sw[1]
    # What the first place leaves: the whole at the upper level and the part below it.
    whole, low = np.empty((4, W), F), np.empty((4, W), F)
    for j in range(W):
        whole[0, j] = x0[16, j] * UP[2]
        whole[1, j] = x0[16, j] * DOWN[2]
        whole[2, j] = x1[16, j] * UP[2]
        whole[3, j] = x1[16, j] * DOWN[2]
    for i in range(17):
        for j in range(W):
            low[0, j] = w0[16, j] * UP[2] * UP[2] + w0[i, j] * F(0.75)
            low[1, j] = w0[16, j] * DOWN[2] * DOWN[2] + w0[i, j] * F(1.25)
            low[2, j] = w1[16, j] * UP[2] * UP[2] + w1[i, j] * F(0.75)
            low[3, j] = w1[16, j] * DOWN[2] * DOWN[2] + w1[i, j] * F(1.25)
        for k in range(i, 17):
            name = np.int32((i * 64 + k) * 4)
            for j in range(W):
                t0, t1 = x0[i, j] + x0[k, j], x1[i, j] + x1[k, j]
                a0, a1, a2, a3 = whole[0, j] - t0, whole[1, j] - t0, whole[2, j] - t1, whole[3, j] - t1
                b0, b1 = low[0, j] + w0[k, j] * F(-1.25), low[1, j] + w0[k, j] * F(-0.75)
                b2, b3 = low[2, j] + w1[k, j] * F(-1.25), low[3, j] + w1[k, j] * F(-0.75)
                top, named, found = best[j], choice[j], scale[j]
                a, b = a0 + a2, b0 + b2
                ratio = a / b
                better = (b > 0) & (a * a > top * b)
                top, found, named = ratio * a if better else top, ratio if better else found, name if better else named
                a, b = a0 + a3, b0 + b3
                ratio = a / b
                better = (b > 0) & (a * a > top * b)
                top, found = ratio * a if better else top, ratio if better else found
                named = name + np.int32(1) if better else named
                a, b = a1 + a2, b1 + b2
                ratio = a / b
                better = (b > 0) & (a * a > top * b)
                top, found = ratio * a if better else top, ratio if better else found
                named = name + np.int32(2) if better else named
                a, b = a1 + a3, b1 + b3
                ratio = a / b
                better = (b > 0) & (a * a > top * b)
                best[j], scale[j] = ratio * a if better else top, ratio if better else found
                choice[j] = name + np.int32(3) if better else named
    return place


@helper
def _on_lattice(x, w, place, j, group, choice, scale, signs, lattice, index, level):
    """Points of lane j's runs into index, from the two places `choice` (first · 64 + second), signs uint8 [runs] of
    runs moved down, scale of either sign. Signs are turned round with it; its new value is returned."""
    codes, point, begin, listed, lanes = lattice
    first, second = choice >> 6, choice & 63
    for i in range(group):
        level[place[i, j]] = 0 if i < first else 1 if i < second else 2
    if scale < 0:
        scale = -scale
        for i in range(group):
            level[i] = 2 - level[i]
        for k in range(group // RUN):
            signs[k] = 1 - signs[k]
    moved = False
    for k in range(group // RUN):
        run = 0
        for i in range(RUN - 1, -1, -1):
            run = 3 * run + level[RUN * k + i]
        index[k] = point[run]
        if index[k] < 0:
            moved = True
            low = DOWN[0] if signs[k] else UP[0]
            index[k] = nearest_above(listed, lanes, x, w, RUN * k * W + j, scale, low, begin[run], begin[run + 1])
    if moved:
        a, b = F(0), F(0)
        for k in range(group // RUN):
            levels = DOWN if signs[k] else UP
            for i in range(RUN):
                q = levels[codes[index[k], i]]
                v = w[RUN * k + i, j] * q
                a += v * x[RUN * k + i, j]
                b += v * q
        if a > 0 and b > 0:
            scale = a / b
    return scale


@helper
def _step(scale, inverse):
    """0 … 7: the l of the nearest 2l + 1; rounded as ggml does it, which is at odds with infinities alone."""
    v = F(0.5) * (inverse * scale - F(1))
    ls = np.int32(bits_of(v + F(12582912)) & np.uint32(0x7FFFFF)) - np.int32(0x400000)
    return max(np.int32(0), min(np.int32(7), ls))


@kernel
def iq1_s(x, imp, codes, point, begin, listed, lanes, out):
    count = x.size // 32
    target = out.reshape(-1)
    lattice = (codes, point, begin, listed, lanes)
    level = np.empty(32, np.int64)
    lanes_x, lanes_w, s = np.empty((32, W), F), np.empty((32, W), F), np.empty((4, W), F)
    alive, mean, best, scale = s
    choice, index, signs = np.empty(W, np.int32), np.empty(4, np.int64), np.empty((W, 4), np.uint8)
    for first in range(0, count, W):
        _load(x, imp, first, 32, SMALLEST_S, lanes_x, lanes_w, alive, mean)
        place = _search_32(lanes_x, lanes_w, best, choice, scale)
        for block in range(first // 8, min(count, first + W) // 8):
            to = target[block * 50 : (block + 1) * 50]
            to[:] = 0
            peak = F(0)
            for g in range(8):
                j = block * 8 + g - first
                if alive[j] == 0 or choice[j] < 0:
                    scale[j] = F(0)
                    signs[j] = 0
                    continue
                signs[j] = choice[j] & 1
                scale[j] = _on_lattice(
                    lanes_x, lanes_w, place, j, 32, choice[j] >> 1, scale[j], signs[j], lattice, index, level
                )
                peak = max(peak, scale[j])
                high = 0
                for k in range(4):
                    to[2 + 4 * g + k] = np.uint8(index[k] & 255)
                    high |= (index[k] >> 8) << 3 * k
                to[34 + 2 * g] = np.uint8(high & 255)
                to[35 + 2 * g] = np.uint8(high >> 8)
            if peak == 0:
                continue
            d = peak / F(15)
            h = to_half(d * F(1.125))
            if broken(h):
                return block * SIZE // x.shape[1]
            put_half(to, 0, h)
            inverse = F(1) / d
            for g in range(8):
                j = block * 8 + g - first
                to[35 + 2 * g] |= np.uint8(_step(scale[j], inverse) << 4 | np.int32(signs[j, 0]) << 7)
    return -1


@kernel
def iq1_m(x, imp, codes, point, begin, listed, lanes, out):
    count = x.size // 16
    target = out.reshape(-1)
    lattice = (codes, point, begin, listed, lanes)
    level = np.empty(32, np.int64)
    lanes_x, lanes_w, s = np.empty((16, W), F), np.empty((16, W), F), np.empty((4, W), F)
    alive, mean, best, scale = s
    choice, index, signs = np.empty(W, np.int32), np.empty((W, 2), np.int64), np.empty((W, 2), np.uint8)
    for first in range(0, count, W):
        _load(x, imp, first, 16, SMALLEST_M, lanes_x, lanes_w, alive, mean)
        place = _search_16(lanes_x, lanes_w, best, choice, scale)
        for block in range(first // 16, min(count, first + W) // 16):
            to = target[block * 56 : (block + 1) * 56]
            to[:] = 0
            peak = F(0)
            for g in range(16):
                j = block * 16 + g - first
                index[j] = 0
                signs[j] = 0
                if alive[j] == 0 or choice[j] < 0:
                    scale[j] = F(0)
                    continue
                signs[j, 0] = choice[j] >> 1 & 1
                signs[j, 1] = choice[j] & 1
                scale[j] = _on_lattice(
                    lanes_x, lanes_w, place, j, 16, choice[j] >> 2, scale[j], signs[j], lattice, index[j], level
                )
                peak = max(peak, scale[j])
                for k in range(2):
                    to[2 * g + k] = np.uint8(index[j, k] & 255)
                    to[32 + g] |= np.uint8(index[j, k] >> 8 << 4 * k)
            if peak == 0:
                continue
            d = peak / F(15)
            inverse = F(1) / d
            a, b = F(0), F(0)
            for g in range(16):
                j = block * 16 + g - first
                ls = _step(scale[j], inverse)
                packed = ls << 3 * (g & 3)
                to[48 + g // 4 * 2] |= np.uint8(packed & 255)
                to[49 + g // 4 * 2] |= np.uint8(packed >> 8)
                to[32 + g] |= np.uint8(signs[j, 0] << 3 | signs[j, 1] << 7)
                for k in range(2):
                    levels = DOWN if signs[j, k] else UP
                    for i in range(RUN):
                        q = levels[codes[index[j, k], i]] * F(2 * ls + 1)
                        v = lanes_w[RUN * k + i, j] * q
                        a += v * lanes_x[RUN * k + i, j]
                        b += v * q
            if b > 0:
                d = a / b
            h = to_half(d * F(1.1125))
            if broken(h):
                return block * SIZE // x.shape[1]
            for k in range(4):
                to[49 + 2 * k] |= np.uint8((h >> 4 * k & 15) << 4)
    return -1
