"""IQ2_XXS, IQ2_XS and IQ2_S on one CPU core: the search is in lanes_lattice.py, here are each type's groups, its
weights and its bytes.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, the arrays of
core/formats/ggml/neighbours.py, out uint8 [rows, bytes]) → the first row whose scale is beyond a half, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import kernel
from core.formats.fitting.lanes_bits import broken, to_half
from core.formats.fitting.lanes_lattice import (
    BLOCK,
    finish,
    load,
    magnitudes_of,
    quantized_scales,
    search,
    split,
    start,
)
from core.formats.fitting.lanes_lattice_bytes import put_iq2_s, put_iq2_xs, put_iq2_xxs
from core.formats.fitting.lanes_nearest import W
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.lanes_search import positive

F = np.float32


@kernel
def iq2_xxs(x, imp, codes, point, first, index, lanes, out):
    n, per = 32, 8
    count = x.size // n
    target = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    root, q = empty_rows(F, n, W), empty_rows(F, n, W)
    s, peak, dead, den = empty_rows(F, 6, W), empty(F, W), empty(np.uint8, W), empty(F, W)
    signs, on = empty_rows(np.uint8, 4, W), empty_rows(np.uint8, 4, W)
    kept, runs = empty_rows(np.int16, 4, W), empty_rows(F, 4, W)
    line, weight, spare, levels = empty(F, n), empty(F, n), empty(np.uint8, n), empty(np.int32, per)
    tables = magnitudes_of(codes), point, first, index, lanes
    for begin in range(0, count, W):
        load(x, imp, begin, n, F(1), F(0), lanes_x, lanes_w)
        np.sqrt(lanes_w, root)
        split(lanes_x, lanes_w, n, True, signs, peak)
        for j in range(W):
            # Its first scale is the best one for codes 0 … 4 in place of magnitudes.
            for i in range(n):
                line[i] = lanes_x[i, j]
                weight[i] = lanes_w[i, j]
            s[0, j] = positive(line, weight, n, F(4), spare) if peak[j] >= F(1e-15) else F(0)
            den[j] = s[0, j] * F(3)
            dead[j] = np.uint8(not den[j] > 0)
            den[j] = F(1) if dead[j] else den[j]
        search(lanes_x, lanes_w, root, q, n, 8, 3, 6, F(0.1), den, dead, 1, s, on, kept, runs, tables)
        finish(lanes_x, lanes_w, root, n, 8, 3, 2, dead, s, on, kept, signs, tables)
        for a in range(0, min(W, count - begin), per):
            block = (begin + a) // per
            d = quantized_scales(s[0], a, per, levels)
            h = to_half(d)
            if broken(h):
                return block * BLOCK // x.shape[1]
            put_iq2_xxs(target[block * 66 : (block + 1) * 66], h, levels, a, kept, signs)
    return -1


@kernel
def iq2_xs(x, imp, codes, point, first, index, lanes, out):
    n, per = 16, 16
    count = x.size // n
    target = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    root, q = empty_rows(F, n, W), empty_rows(F, n, W)
    s, peak, dead = empty_rows(F, 6, W), empty(F, W), empty(np.uint8, W)
    signs, on = empty_rows(np.uint8, 2, W), empty_rows(np.uint8, 2, W)
    kept, runs = empty_rows(np.int16, 2, W), empty_rows(F, 2, W)
    levels = empty(np.int32, per)
    tables = magnitudes_of(codes), point, first, index, lanes
    for begin in range(0, count, W):
        load(x, imp, begin, n, F(1), F(0), lanes_x, lanes_w)
        np.sqrt(lanes_w, root)
        split(lanes_x, lanes_w, n, True, signs, peak)
        start(peak, F(1e-15), F(5), s[0], dead)
        search(lanes_x, lanes_w, root, q, n, 8, 3, 9, F(0.1), peak, dead, 1, s, on, kept, runs, tables)
        finish(lanes_x, lanes_w, root, n, 8, 3, 0, dead, s, on, kept, signs, tables)
        for a in range(0, min(W, count - begin), per):
            block = (begin + a) // per
            h = to_half(quantized_scales(s[0], a, per, levels))
            if broken(h):
                return block * BLOCK // x.shape[1]
            put_iq2_xs(target[block * 74 : (block + 1) * 74], h, levels, a, kept, signs)
    return -1


@kernel
def iq2_s(x, imp, codes, point, first, index, lanes, out):
    n, per = 16, 16
    count = x.size // n
    target = flattened(out)
    lanes_x, lanes_w = empty_rows(F, n, W), empty_rows(F, n, W)
    root, q = empty_rows(F, n, W), empty_rows(F, n, W)
    s, peak, dead = empty_rows(F, 6, W), empty(F, W), empty(np.uint8, W)
    signs, on = empty_rows(np.uint8, 2, W), empty_rows(np.uint8, 2, W)
    kept, runs = empty_rows(np.int16, 2, W), empty_rows(F, 2, W)
    levels = empty(np.int32, per)
    tables = magnitudes_of(codes), point, first, index, lanes
    for begin in range(0, count, W):
        load(x, imp, begin, n, F(2), F(0.25), lanes_x, lanes_w)
        np.sqrt(lanes_w, root)
        split(lanes_x, lanes_w, n, False, signs, peak)
        start(peak, F(1e-8), F(5), s[0], dead)
        search(lanes_x, lanes_w, root, q, n, 8, 3, 9, F(0.1), peak, dead, 1, s, on, kept, runs, tables)
        finish(lanes_x, lanes_w, root, n, 8, 3, 0, dead, s, on, kept, signs, tables)
        for a in range(0, min(W, count - begin), per):
            block = (begin + a) // per
            h = to_half(quantized_scales(s[0], a, per, levels) * F(0.9875))
            if broken(h):
                return block * BLOCK // x.shape[1]
            put_iq2_s(target[block * 82 : (block + 1) * 82], h, levels, a, kept, signs)
    return -1
