"""For searches whose W runs of weights lie side by side in memory: the inner loops run over them and vectorise by
themselves, and each lane keeps the scalar order of float32 operations. lanes_vector_search.py is the faster way.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined

F = np.float32
W = 64
EPS = F(1e-15)


@inlined
def peaks(x, n, peak, size):
    """peak: the value with the largest magnitude, the first among equals."""
    for j in range(W):
        peak[j] = F(0)
        size[j] = F(0)
    for i in range(n):
        for j in range(W):
            a = abs(x[i, j])
            better = a > size[j]
            peak[j] = x[i, j] if better else peak[j]
            size[j] = a if better else size[j]


@helper
def positive(x, w, n, nmax, code):
    """One run of n ≤ 32 values ≥ 0: x ≈ scale·code; code uint8 [n] is written, scale returned."""
    peak = F(0)
    for i in range(n):
        peak = max(peak, x[i])
    if peak < EPS:
        for i in range(n):
            code[i] = np.uint8(0)
        return F(0)
    inverse = nmax / peak
    scale = F(1) / inverse
    best = F(0)
    for i in range(n):
        # An unsigned byte: −1 counts as 255.
        e = x[i] - scale * F(np.uint8(np.int32(np.rint(inverse * x[i])) & 255))
        best += w[i] * e * e
    for k in range(-4, 5):
        if k == 0:
            continue
        trial = (F(0.1) * F(k) + nmax) / peak
        scale = F(1) / trial
        err = F(0)
        for i in range(n):
            e = x[i] - scale * min(nmax, np.rint(trial * x[i]))
            err += w[i] * e * e
        if err < best:
            best = err
            inverse = trial
    a = F(0)
    b = F(0)
    for i in range(n):
        q = min(nmax, np.rint(inverse * x[i]))
        code[i] = np.uint8(np.int32(q) & 255)
        a += w[i] * x[i] * q
        b += w[i] * q * q
    for _sweep in range(5):
        changed = False
        for i in range(n):
            v = w[i]
            q = F(code[i])
            ra = a - v * x[i] * q
            rb = b - v * q * q
            if ra > 0 and rb > 0:
                p = min(nmax, np.rint(x[i] * rb / ra))
                if p != q:
                    na = ra + v * x[i] * p
                    nb = rb + v * p * p
                    if na * na * b > a * a * nb:
                        code[i] = np.uint8(np.int32(p) & 255)
                        a = na
                        b = nb
                        changed = True
        if not changed:
            break
    return a / b if b > 0 else F(0)
