"""The searches of searches.py for one CPU core: W sub-blocks lie side by side, the inner loops run over them and
vectorise, and each lane keeps the scalar order of float32 operations. So results are bit-equal to the reference.

x, w: float32 [N, W]; s: float32 [SCRATCH, W], scratch whose first rows hold the results. A lane's codes are not kept:
they follow from the inverse step (and low) that the search ended with. All three arrays must be made, with constant
shapes, in the function that calls.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined

F = np.float32
W = 64
EPS = F(1e-15)
SCRATCH = 16


@inlined
def affine(x, w, code, n, nmax, rmin, rdelta, steps, absolute, s):
    """x ≈ scale·code + low, code = clip(round(inverse·(x − origin)), 0, nmax). code: scratch like x.

    s[0 … 3] hold scale, low, inverse and origin in the end.
    """
    scale, low, inverse, origin, top, inv, sw, sx, best, sl, sl2, sxl, err, new, base, flat = s
    for j in range(W):
        low[j] = x[0, j]
        top[j] = x[0, j]
        sw[j] = w[0, j]
        sx[j] = w[0, j] * x[0, j]
    for i in range(1, n):
        for j in range(W):
            low[j] = x[i, j] if x[i, j] < low[j] else low[j]  # of two zeros the first one stays
            top[j] = max(top[j], x[i, j])
            sw[j] += w[i, j]
            sx[j] += w[i, j] * x[i, j]
    for j in range(W):
        low[j] = F(0) if low[j] > 0 else low[j]
        flat[j] = F(1) if top[j] <= low[j] else F(0)
        d = top[j] - low[j]
        v = nmax / (F(1) if flat[j] > 0 else d)
        scale[j] = F(0) if flat[j] > 0 else F(1) / v
        inverse[j] = F(0) if flat[j] > 0 else v
        origin[j] = low[j]
        best[j] = F(0)
    for i in range(n):
        if absolute:
            for j in range(W):
                q = max(F(0), min(nmax, np.rint(inverse[j] * (x[i, j] - low[j]))))
                best[j] += w[i, j] * abs(scale[j] * q + low[j] - x[i, j])
        else:
            for j in range(W):
                q = max(F(0), min(nmax, np.rint(inverse[j] * (x[i, j] - low[j]))))
                e = scale[j] * q + low[j] - x[i, j]
                best[j] += w[i, j] * (e * e)
    for step in range(steps + 1):
        wide = rmin + rdelta * F(step) + nmax
        for j in range(W):
            d = top[j] - low[j]  # from the best minimum so far, as the scalar code does
            inv[j] = F(0) if flat[j] > 0 else wide / (d if d != 0 else F(1))
            sl[j] = F(0)
            sl2[j] = F(0)
            sxl[j] = F(0)
            err[j] = F(0)
        for i in range(n):
            for j in range(W):
                q = max(F(0), min(nmax, np.rint(inv[j] * (x[i, j] - low[j]))))
                code[i, j] = q
                v = w[i, j] * q
                sl[j] += v
                sl2[j] += v * q
                sxl[j] += v * x[i, j]
        for j in range(W):
            det = sw[j] * sl2[j] - sl[j] * sl[j]
            usable = det > 0
            det = det if usable else F(1)
            a = (sw[j] * sxl[j] - sx[j] * sl[j]) / det
            b = (sl2[j] * sx[j] - sl[j] * sxl[j]) / det
            above = b > 0
            a = sxl[j] / (sl2[j] if sl2[j] > 0 else F(1)) if above else a
            new[j] = a
            base[j] = F(0) if above else b
            err[j] = F(0) if usable else F(np.inf)
        for i in range(n):
            if absolute:
                for j in range(W):
                    err[j] += w[i, j] * abs(new[j] * code[i, j] + base[j] - x[i, j])
            else:
                for j in range(W):
                    e = new[j] * code[i, j] + base[j] - x[i, j]
                    err[j] += w[i, j] * (e * e)
        for j in range(W):
            better = err[j] < best[j]
            best[j] = err[j] if better else best[j]
            scale[j] = new[j] if better else scale[j]
            inverse[j] = inv[j] if better else inverse[j]
            origin[j] = low[j] if better else origin[j]
            low[j] = base[j] if better else low[j]


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


@inlined
def symmetric(x, w, n, nmax, s):
    """x ≈ scale·code, code = clip(round(inverse·x), −nmax, nmax − 1).

    s[0], s[1] hold scale and inverse in the end, both 0 in a dead lane.
    """
    scale, inverse, peak, size, inv, a, b, best = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
    peaks(x, n, peak, size)
    bottom, top = -nmax, nmax - F(1)
    for j in range(W):
        size[j] = F(1) if size[j] < EPS else F(0)  # from here on: dead
        peak[j] = F(1) if size[j] > 0 else peak[j]
    for k in range(19):
        step = F(0) if k == 0 else F(k - 10 if k < 10 else k - 9)
        wide = F(0.1) * step + nmax
        for j in range(W):
            inv[j] = -wide / peak[j]
            a[j] = F(0)
            b[j] = F(0)
        for i in range(n):
            for j in range(W):
                q = max(bottom, min(top, np.rint(inv[j] * x[i, j])))
                a[j] += w[i, j] * x[i, j] * q
                b[j] += w[i, j] * q * q
        for j in range(W):
            positive_b = b[j] > 0
            ratio = a[j] / (b[j] if b[j] != 0 else F(1))
            if k == 0:
                better = True
                ratio = ratio if b[j] != 0 else F(0)
            else:
                better = positive_b and a[j] * a[j] > best[j] * b[j]
            scale[j] = ratio if better else scale[j]
            best[j] = ratio * a[j] if better else best[j]
            inverse[j] = inv[j] if better else inverse[j]
    for j in range(W):
        scale[j] = F(0) if size[j] > 0 else scale[j]
        inverse[j] = F(0) if size[j] > 0 else inverse[j]


@inlined
def symmetric_sweeps(x, n, nmax, code, s):
    """As symmetric with weights x², refined code by code; code float32 [N, W] in −nmax … nmax − 1.

    s[0]: scale; s[1]: the largest magnitude.
    """
    scale, size, peak, a, b, going, changed = s[0], s[1], s[2], s[3], s[4], s[5], s[6]
    peaks(x, n, peak, size)
    bottom, top = -nmax, nmax - F(1)
    for j in range(W):
        dead = size[j] < EPS
        going[j] = F(0) if dead else F(1)
        peak[j] = F(0) if dead else -nmax / peak[j]
        a[j] = F(0)
        b[j] = F(0)
    for i in range(n):
        for j in range(W):
            q = max(bottom, min(top, np.rint(peak[j] * x[i, j])))
            v = x[i, j] * x[i, j]
            code[i, j] = q
            a[j] += v * x[i, j] * q
            b[j] += v * q * q
    for _sweep in range(5):
        for j in range(W):
            changed[j] = F(0)
        for i in range(n):
            for j in range(W):
                v = x[i, j] * x[i, j]
                q = code[i, j]
                ra = a[j] - v * x[i, j] * q
                rb = b[j] - v * q * q
                usable = going[j] > 0 and ra > 0
                p = max(bottom, min(top, np.rint(x[i, j] * rb / (ra if usable else F(1)))))
                na = ra + v * x[i, j] * p
                nb = rb + v * p * p
                better = usable and p != q and nb > 0 and na * na * b[j] > a[j] * a[j] * nb
                code[i, j] = p if better else q
                a[j] = na if better else a[j]
                b[j] = nb if better else b[j]
                changed[j] = F(1) if better else changed[j]
        more = F(0)
        for j in range(W):
            going[j] = going[j] * changed[j]
            more = max(more, going[j])
        if more == 0:
            break
    for j in range(W):
        scale[j] = a[j] / (b[j] if b[j] != 0 else F(1)) if size[j] >= EPS and b[j] != 0 else F(0)


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


@helper
def symmetric_run(x, w, n, nmax, code):
    """`symmetric` for one run of n ≤ 32 values; code int8 [n] in −nmax … nmax − 1 is written, scale returned."""
    peak = F(0)
    size = F(0)
    for i in range(n):
        if abs(x[i]) > size:
            size = abs(x[i])
            peak = x[i]
    bottom, top = -nmax, nmax - F(1)
    if size < EPS:
        for i in range(n):
            code[i] = np.int8(bottom)
        return F(0)
    scale = F(0)
    best = F(0)
    inverse = F(0)
    for k in range(19):
        step = F(0) if k == 0 else F(k - 10 if k < 10 else k - 9)
        inv = -(F(0.1) * step + nmax) / peak
        a = F(0)
        b = F(0)
        for i in range(n):
            q = max(bottom, min(top, np.rint(inv * x[i])))
            a += w[i] * x[i] * q
            b += w[i] * q * q
        if k == 0 or (b > 0 and a * a > best * b):
            scale = a / b if b != 0 else F(0)
            best = scale * a
            inverse = inv
    for i in range(n):
        code[i] = np.int8(max(bottom, min(top, np.rint(inverse * x[i]))))
    return scale
