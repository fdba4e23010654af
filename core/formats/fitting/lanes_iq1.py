"""IQ1_S and IQ1_M on one CPU core: W groups of 32 or 16 weights side by side, sorted by a network and searched
together; runs that are no points of the lattice are then moved to points one by one. The same work, explained, is in
reference_iq1.py.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, codes, point, first, index and lanes of
core/formats/ggml/neighbours.py, out uint8 [rows, bytes]) → the first row whose scale is beyond a half, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, vector_kernel
from core.formats.fitting.lanes_bits import bits_of, broken, put_half, to_half
from core.formats.fitting.lanes_nearest import W, nearest_above
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.lanes_vector import WIDTH, load_at, splat, store_at, where

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
    flat, columns, per = flattened(x), x.shape[1], SIZE // group
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
    """value: the weights of every lane in ascending order; place, float32: where each came from. Ties keep order."""
    n = value.shape[0]
    for c in range(0, W, WIDTH):
        for i in range(n):
            store_at(value, i * W + c, load_at(lanes_x, i * W + c))
            store_at(place, i * W + c, splat(F(i)))
        for k in range(network.shape[0]):
            a, b = network[k, 0] * W + c, network[k, 1] * W + c
            u, v, s, t = load_at(value, a), load_at(value, b), load_at(place, a), load_at(place, b)
            swap = (u > v) | ((u == v) & (s > t))
            store_at(value, a, where(swap, v, u))
            store_at(value, b, where(swap, u, v))
            store_at(place, a, where(swap, t, s))
            store_at(place, b, where(swap, s, t))


@helper
def _tried(a, b, name, top, found, named):
    """The better of the best so far and of the squared sum a² / b of one choice: what it takes off, scale and name."""
    ratio = a / b
    better = (b > F(0)) & (a * a > top * b)
    return where(better, ratio * a, top), where(better, ratio, found), where(better, name, named)


@helper
def _search_32(lanes_x, lanes_w, room, value, place, choice, scale):
    """choice int32 [W]: (first · 64 + second) · 2 + moved down, of the best two places and levels, −1 for none; and
    its scale. room: float32 [6 · 33, W], scratch."""
    _sort(lanes_x, NETWORK_32, value, place)
    sx, sw = room[:33], room[33:66]
    # The terms of the weights above the second place.
    ux, uw, dx, dw = room[66:99], room[99:132], room[132:165], room[165:]
    for j in range(W):
        sx[0, j] = F(0)
        sw[0, j] = F(0)
        for i in range(32):
            v = lanes_w[np.int64(place[i, j]), j]
            sx[i + 1, j] = sx[i, j] + v * value[i, j]
            sw[i + 1, j] = sw[i, j] + v
    for c in range(0, W, WIDTH):
        all_x, all_w = load_at(sx, 32 * W + c), load_at(sw, 32 * W + c)
        for k in range(33):
            at = k * W + c
            rest_x, rest_w = all_x - load_at(sx, at), all_w - load_at(sw, at)
            store_at(ux, at, rest_x * UP[2])
            store_at(uw, at, rest_w * UP[2] * UP[2])
            store_at(dx, at, rest_x * DOWN[2])
            store_at(dw, at, rest_w * DOWN[2] * DOWN[2])
        top, found, named = splat(-LARGEST), splat(F(0)), splat(F(-1))
        for i in range(33):
            ix, iw = load_at(sx, i * W + c), load_at(sw, i * W + c)
            up_x, up_w, down_x, down_w = ix * UP[0], iw * UP[0] * UP[0], ix * DOWN[0], iw * DOWN[0] * DOWN[0]
            for k in range(i, 33):
                at = k * W + c
                name = splat(F((i * 64 + k) * 2))
                mx, mw = (load_at(sx, at) - ix) * UP[1], (load_at(sw, at) - iw) * UP[1] * UP[1]
                a, b = up_x + mx + load_at(ux, at), up_w + mw + load_at(uw, at)
                top, found, named = _tried(a, b, name, top, found, named)
                a, b = down_x - mx + load_at(dx, at), down_w + mw + load_at(dw, at)
                top, found, named = _tried(a, b, name + F(1), top, found, named)
        store_at(scale, c, found)
        store_at(value, c, named)
    for j in range(W):
        choice[j] = np.int32(value[0, j])


@helper
def _search_16(lanes_x, lanes_w, room, value, place, choice, scale):
    """choice int32 [W]: (first · 64 + second) · 4 + 2 · first run moved down + second run moved down, or −1. room:
    float32 [4 · 17, W], scratch."""
    _sort(lanes_x, NETWORK_16, value, place)
    # Sums over the first and the second run.
    x0, x1, w0, w1 = room[:17], room[17:34], room[34:51], room[51:]
    for j in range(W):
        x0[0, j] = x1[0, j] = w0[0, j] = w1[0, j] = F(0)
        for i in range(16):
            v = lanes_w[np.int64(place[i, j]), j]
            first = place[i, j] < F(8)
            x0[i + 1, j] = x0[i, j] + v * value[i, j] if first else x0[i, j]
            w0[i + 1, j] = w0[i, j] + v if first else w0[i, j]
            x1[i + 1, j] = x1[i, j] if first else x1[i, j] + v * value[i, j]
            w1[i + 1, j] = w1[i, j] if first else w1[i, j] + v
    for c in range(0, W, WIDTH):
        last = 16 * W + c
        all_x0, all_x1, all_w0, all_w1 = load_at(x0, last), load_at(x1, last), load_at(w0, last), load_at(w1, last)
        top, found, named = splat(-LARGEST), splat(F(0)), splat(F(-1))
        for i in range(17):
            at = i * W + c
            ix0, ix1, iw0, iw1 = load_at(x0, at), load_at(x1, at), load_at(w0, at), load_at(w1, at)
            # What the first place leaves: the whole at the upper level and the part below it.
            low0 = all_w0 * UP[2] * UP[2] + iw0 * F(0.75)
            low1 = all_w0 * DOWN[2] * DOWN[2] + iw0 * F(1.25)
            low2 = all_w1 * UP[2] * UP[2] + iw1 * F(0.75)
            low3 = all_w1 * DOWN[2] * DOWN[2] + iw1 * F(1.25)
            for k in range(i, 17):
                at = k * W + c
                name = splat(F((i * 64 + k) * 4))
                t0, t1 = ix0 + load_at(x0, at), ix1 + load_at(x1, at)
                a0, a1 = all_x0 * UP[2] - t0, all_x0 * DOWN[2] - t0
                a2, a3 = all_x1 * UP[2] - t1, all_x1 * DOWN[2] - t1
                kw0, kw1 = load_at(w0, at), load_at(w1, at)
                b0, b1 = low0 + kw0 * F(-1.25), low1 + kw0 * F(-0.75)
                b2, b3 = low2 + kw1 * F(-1.25), low3 + kw1 * F(-0.75)
                top, found, named = _tried(a0 + a2, b0 + b2, name, top, found, named)
                top, found, named = _tried(a0 + a3, b0 + b3, name + F(1), top, found, named)
                top, found, named = _tried(a1 + a2, b1 + b2, name + F(2), top, found, named)
                top, found, named = _tried(a1 + a3, b1 + b3, name + F(3), top, found, named)
        store_at(scale, c, found)
        store_at(value, c, named)
    for j in range(W):
        choice[j] = np.int32(value[0, j])


@helper
def _on_lattice(x, w, place, j, group, choice, scale, signs, lattice, index, level):
    """Points of lane j's runs into index, from the two places `choice` (first · 64 + second), signs uint8 [runs] of
    runs moved down, scale of either sign. Signs are turned round with it; its new value is returned."""
    codes, point, begin, listed, lanes = lattice
    first, second = choice >> 6, choice & 63
    for i in range(group):
        level[np.int64(place[i, j])] = 0 if i < first else 1 if i < second else 2
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


@vector_kernel
def iq1_s(x, imp, codes, point, begin, listed, lanes, out):
    count = x.size // 32
    target = flattened(out)
    lattice = (codes, point, begin, listed, lanes)
    level = empty(np.int64, 32)
    lanes_x, lanes_w, s = empty_rows(F, 32, W), empty_rows(F, 32, W), empty_rows(F, 3, W)
    alive, mean, scale = s[0], s[1], s[2]
    value, place, room = empty_rows(F, 32, W), empty_rows(F, 32, W), empty_rows(F, 198, W)
    choice, index, signs = empty(np.int32, W), empty(np.int64, 4), empty_rows(np.uint8, W, 4)
    for first in range(0, count, W):
        _load(x, imp, first, 32, SMALLEST_S, lanes_x, lanes_w, alive, mean)
        _search_32(lanes_x, lanes_w, room, value, place, choice, scale)
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


@vector_kernel
def iq1_m(x, imp, codes, point, begin, listed, lanes, out):
    count = x.size // 16
    target = flattened(out)
    lattice = (codes, point, begin, listed, lanes)
    level = empty(np.int64, 32)
    lanes_x, lanes_w, s = empty_rows(F, 16, W), empty_rows(F, 16, W), empty_rows(F, 3, W)
    alive, mean, scale = s[0], s[1], s[2]
    value, place, room = empty_rows(F, 16, W), empty_rows(F, 16, W), empty_rows(F, 68, W)
    choice, index, signs = empty(np.int32, W), empty_rows(np.int64, W, 2), empty_rows(np.uint8, W, 2)
    for first in range(0, count, W):
        _load(x, imp, first, 16, SMALLEST_M, lanes_x, lanes_w, alive, mean)
        _search_16(lanes_x, lanes_w, room, value, place, choice, scale)
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
