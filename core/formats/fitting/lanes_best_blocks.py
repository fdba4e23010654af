"""Effort `best` for IQ4_NL on one CPU core, W blocks side by side: from llama.cpp's scale on, others are tried, and the
best one is refitted to its codes. Errors are those of the stored numbers, and only what lowers them is taken.
searches_best.py says the same in torch, operation by operation.

Kernel: (x float32 [rows, columns], importance float32 [columns] or None, out uint8 [rows, bytes]), out holding
llama.cpp's blocks, which are refined in place.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import inlined, kernel
from core.formats.fitting.lanes_bits import half_at, put_half, to_half
from core.formats.fitting.lanes_iq4 import _codes, _level, _load
from core.formats.fitting.lanes_legacy import _put_four
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.lanes_search import W
from core.formats.fitting.tries import FACTORS, REFITS

F = np.float32
BLOCK, SIZE = 32, 18
HALF_MAX = F(65504)
TRIED = np.array(FACTORS["IQ4_NL"], F)


@inlined
def _halved(d):
    """d rounded to a half's precision, in arithmetic that vectorises. Beyond 65504 it stays too large."""
    t = d * F(8193)
    return (d + F(0.75)) - F(0.75) if abs(d) < F(2.0**-14) else t - (t - d)


@inlined
def _errors(x, w, step, err):
    """Σ w·(step·level − x)² of every lane, the level nearest."""
    inv = empty(F, W)
    for j in range(W):
        inv[j] = F(1) / step[j] if step[j] != 0 else F(0)
        err[j] = F(0)
    for i in range(BLOCK):
        for j in range(W):
            e = step[j] * _level(x[i, j] * inv[j]) - x[i, j]
            err[j] += w[i, j] * (e * e)


@inlined
def _sums(x, w, step, a, b):
    """a = Σ w·x·level and b = Σ w·level² of every lane."""
    inv = empty(F, W)
    for j in range(W):
        inv[j] = F(1) / step[j] if step[j] != 0 else F(0)
        a[j] = F(0)
        b[j] = F(0)
    for i in range(BLOCK):
        for j in range(W):
            q = _level(x[i, j] * inv[j])
            v = w[i, j] * q
            a[j] += v * x[i, j]
            b[j] += v * q


@kernel
def iq4_nl(x, imp, out):
    count = x.size // BLOCK
    flat, target = flattened(x), flattened(out)
    lanes_x, lanes_w, s = empty_rows(F, BLOCK, W), empty_rows(F, BLOCK, W), empty_rows(F, 7, W)
    start, step, new, best, err, a, b = s
    codes = empty(np.uint8, BLOCK)
    for first in range(0, count, W):
        _load(x, imp, first, 1, lanes_x, lanes_w, start)
        for j in range(W):
            start[j] = half_at(target, min(first + j, count - 1) * SIZE)
            step[j] = start[j]
        for c in range(TRIED.size + 1 + REFITS):
            if c == 0:
                for j in range(W):
                    new[j] = start[j]
                    best[j] = F(np.inf)
            elif c <= TRIED.size:
                factor = TRIED[c - 1]
                for j in range(W):
                    d = _halved(start[j] * factor)
                    new[j] = d if abs(d) <= HALF_MAX else start[j]
            else:
                _sums(lanes_x, lanes_w, step, a, b)
                for j in range(W):
                    usable = b[j] > 0
                    d = _halved(a[j] / (b[j] if usable else F(1)))
                    new[j] = d if usable and d != 0 and abs(d) <= HALF_MAX else step[j]
            _errors(lanes_x, lanes_w, new, err)
            for j in range(W):
                better = err[j] < best[j]
                best[j] = err[j] if better else best[j]
                step[j] = new[j] if better else step[j]
        for j in range(min(W, count - first)):
            block, d = first + j, step[j]
            _codes(flat[block * BLOCK : (block + 1) * BLOCK], F(1) / d if d != 0 else F(0), codes)
            to = target[block * SIZE : (block + 1) * SIZE]
            put_half(to, 0, to_half(d))
            _put_four(to[2:], codes)
