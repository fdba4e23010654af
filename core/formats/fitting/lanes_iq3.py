"""IQ3_XXS and IQ3_S on one CPU core: the search is in lanes_lattice.py, here are each type's weights and its bytes.

Kernels as in lanes_iq2.py.
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
from core.formats.fitting.lanes_lattice_bytes import put_iq3_s, put_iq3_xxs
from core.formats.fitting.lanes_nearest import W
from core.formats.fitting.lanes_room import empty, empty_rows, flattened

F = np.float32
GROUP = 32
PER = BLOCK // GROUP


@kernel
def iq3_xxs(x, imp, codes, point, first, index, lanes, out):
    count = x.size // GROUP
    target = flattened(out)
    lanes_x, lanes_w = empty_rows(F, GROUP, W), empty_rows(F, GROUP, W)
    root, q = empty_rows(F, GROUP, W), empty_rows(F, GROUP, W)
    s, peak, dead = empty_rows(F, 6, W), empty(F, W), empty(np.uint8, W)
    signs, on = empty_rows(np.uint8, 4, W), empty_rows(np.uint8, 8, W)
    kept, runs = empty_rows(np.int16, 8, W), empty_rows(F, 8, W)
    levels = empty(np.int32, PER)
    tables = magnitudes_of(codes), point, first, index, lanes
    for begin in range(0, count, W):
        load(x, imp, begin, GROUP, F(2), F(0), lanes_x, lanes_w)
        np.sqrt(lanes_w, root)
        split(lanes_x, lanes_w, GROUP, True, signs, peak)
        start(peak, F(1e-8), F(15), s[0], dead)
        search(lanes_x, lanes_w, root, q, GROUP, 4, 8, 15, F(0.2), peak, dead, 1, s, on, kept, runs, tables)
        finish(lanes_x, lanes_w, root, GROUP, 4, 8, 0, dead, s, on, kept, signs, tables)
        for a in range(0, min(W, count - begin), PER):
            block = (begin + a) // PER
            h = to_half(quantized_scales(s[0], a, PER, levels) * F(1.0125))
            if broken(h):
                return block * BLOCK // x.shape[1]
            put_iq3_xxs(target[block * 98 : (block + 1) * 98], h, levels, a, kept, signs)
    return -1


@kernel
def iq3_s(x, imp, codes, point, first, index, lanes, out):
    count = x.size // GROUP
    target = flattened(out)
    lanes_x, lanes_w = empty_rows(F, GROUP, W), empty_rows(F, GROUP, W)
    root, q = empty_rows(F, GROUP, W), empty_rows(F, GROUP, W)
    s, peak, dead = empty_rows(F, 6, W), empty(F, W), empty(np.uint8, W)
    signs, on = empty_rows(np.uint8, 4, W), empty_rows(np.uint8, 8, W)
    kept, runs = empty_rows(np.int16, 8, W), empty_rows(F, 8, W)
    levels = empty(np.int32, PER)
    tables = magnitudes_of(codes), point, first, index, lanes
    for begin in range(0, count, W):
        load(x, imp, begin, GROUP, F(2), F(0), lanes_x, lanes_w)
        np.sqrt(lanes_w, root)
        split(lanes_x, lanes_w, GROUP, False, signs, peak)
        start(peak, F(0), F(15), s[0], dead)
        search(lanes_x, lanes_w, root, q, GROUP, 4, 8, 9, F(0.2), peak, dead, 0, s, on, kept, runs, tables)
        finish(lanes_x, lanes_w, root, GROUP, 4, 8, 1, dead, s, on, kept, signs, tables)
        for a in range(0, min(W, count - begin), PER):
            block = (begin + a) // PER
            h = to_half(quantized_scales(s[0], a, PER, levels) * F(1.033))
            if broken(h):
                return block * BLOCK // x.shape[1]
            put_iq3_s(target[block * 110 : (block + 1) * 110], h, levels, a, kept, signs)
    return -1
