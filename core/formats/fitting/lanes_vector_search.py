"""The searches of searches.py for one CPU core: sixteen runs of weights lie side by side as lanes (lanes_vector.py),
each keeps the scalar order of float32 operations, so results are bit-equal to the reference.

x, w and codes are tables (lanes_vector.py) of at least n rows. A run's codes are not kept: they follow from the inverse
step (and the origin) that the search ended with.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper
from core.formats.fitting.lanes_vector import (
    any_of,
    at_least,
    at_most,
    down,
    load,
    magnitude,
    rint,
    splat,
    store,
    where,
)

F = np.float32
EPS = F(1e-15)
SWEEPS = 5


@helper
def clipped(v, bottom, top):
    """v rounded, within bottom … top."""
    return at_least(at_most(rint(v), top), bottom)


@helper
def peaks(x, n):
    """The value with the largest magnitude, the first among equals, and that magnitude."""
    peak, size = splat(F(0)), splat(F(0))
    for i in range(n):
        v = load(x, i)
        a = magnitude(v)
        peak = where(a > size, v, peak)
        size = where(a > size, a, size)
    return peak, size


@helper
def _error(w, scale, q, low, x, absolute):
    e = scale * q + low - x
    return w * magnitude(e) if absolute else w * (e * e)


@helper
def affine(x, w, n, nmax, rmin, rdelta, steps, absolute, codes):
    """x ≈ scale·code + low, code = clip(round(inverse·(x − origin)), 0, nmax): scale, low, inverse, origin.

    codes  scratch, a table of n rows.
    """
    zero = splat(F(0))
    low = load(x, 0)
    top = low
    sw = load(w, 0)
    sx = sw * low
    for i in range(1, n):
        v, u = load(x, i), load(w, i)
        low = where(v < low, v, low)  # of two zeros the first one stays
        top = where(v > top, v, top)
        sw += u
        sx += u * v
    low = where(low > F(0), F(0), low)
    live = top > low
    inverse = nmax / where(live, top - low, F(1))
    scale = where(live, F(1) / inverse, F(0))
    inverse = where(live, inverse, F(0))
    origin = low
    best = zero
    for i in range(n):
        v = load(x, i)
        q = clipped(inverse * (v - low), F(0), nmax)
        best += _error(load(w, i), scale, q, low, v, absolute)
    for step in range(steps + 1):
        d = top - low  # from the best minimum so far, as the scalar code does
        inv = where(live, (rmin + rdelta * F(step) + nmax) / where(d != F(0), d, F(1)), F(0))
        sl, sl2, sxl = zero, zero, zero
        for i in range(n):
            v = load(x, i)
            q = clipped(inv * (v - low), F(0), nmax)
            store(codes, i, q)
            u = load(w, i) * q
            sl += u
            sl2 += u * q
            sxl += u * v
        det = sw * sl2 - sl * sl
        usable = det > F(0)
        det = where(usable, det, F(1))
        a = (sw * sxl - sx * sl) / det
        b = (sl2 * sx - sl * sxl) / det
        above = b > F(0)
        a = where(above, sxl / where(sl2 > F(0), sl2, F(1)), a)
        b = where(above, F(0), b)
        error = zero
        for i in range(n):
            error += _error(load(w, i), a, load(codes, i), b, load(x, i), absolute)
        better = usable & (error < best)
        best = where(better, error, best)
        scale = where(better, a, scale)
        inverse = where(better, inv, inverse)
        origin = where(better, low, origin)
        low = where(better, b, low)
    return scale, low, inverse, origin


@helper
def _products(x, w, wx, n, inv, bottom, top):
    """Σ w·x·q and Σ w·q² for the codes q of one inverse step."""
    a, b = splat(F(0)), splat(F(0))
    for i in range(n):
        q = clipped(inv * load(x, i), bottom, top)
        a += load(wx, i) * q
        b += load(w, i) * q * q
    return a, b


@helper
def symmetric(x, w, n, nmax, wx):
    """x ≈ scale·code, code = clip(round(inverse·x), −nmax, nmax − 1): scale and inverse, both 0 in a dead lane.

    wx  scratch, a table of n rows.
    """
    for i in range(n):
        store(wx, i, load(w, i) * load(x, i))
    peak, size = peaks(x, n)
    live = size >= EPS
    peak = where(live, peak, F(1))
    bottom, top = -nmax, nmax - F(1)
    inverse = -nmax / peak
    a, b = _products(x, w, wx, n, inverse, bottom, top)
    scale = where(b != F(0), a / where(b != F(0), b, F(1)), F(0))
    best = scale * a
    for k in range(18):
        step = F(k - 9 if k < 9 else k - 8)
        inv = -(F(0.1) * step + nmax) / peak
        a, b = _products(x, w, wx, n, inv, bottom, top)
        better = (b > F(0)) & (a * a > best * b)
        ratio = a / where(b != F(0), b, F(1))
        scale = where(better, ratio, scale)
        best = where(better, ratio * a, best)
        inverse = where(better, inv, inverse)
    return where(live, scale, F(0)), where(live, inverse, F(0))


@helper
def symmetric_sweeps(x, n, nmax, codes):
    """As symmetric with weights x², refined code by code: scale; codes, a table, in −nmax … nmax − 1, −nmax
    in a dead lane."""
    peak, size = peaks(x, n)
    live = size >= EPS
    inverse = where(live, -nmax / where(live, peak, F(1)), F(0))
    bottom, top = -nmax, nmax - F(1)
    a, b = splat(F(0)), splat(F(0))
    for i in range(n):
        x_ = load(x, i)
        q = clipped(inverse * x_, bottom, top)
        v = x_ * x_
        store(codes, i, q)
        a += v * x_ * q
        b += v * q * q
    for _ in range(SWEEPS):
        # A sweep without a change would only be repeated: lanes that are done need not be left out.
        changed = size < F(0)
        for i in range(n):
            x_, q = load(x, i), load(codes, i)
            v = x_ * x_
            vx = v * x_
            ra = a - vx * q
            rb = b - v * q * q
            usable = live & (ra > F(0))
            p = clipped(x_ * rb / where(usable, ra, F(1)), bottom, top)
            na = ra + vx * p
            nb = rb + v * p * p
            better = usable & (p != q) & (nb > F(0)) & (na * na * b > a * a * nb)
            store(codes, i, where(better, p, q))
            a = where(better, na, a)
            b = where(better, nb, b)
            changed = changed | better
        if not any_of(changed):
            break
    for i in range(n):
        store(codes, i, where(live, load(codes, i), bottom))
    return where(live & (b != F(0)), a / where(b != F(0), b, F(1)), F(0))


@helper
def byte(v):
    """v rounded, through an unsigned byte: −1 counts as 255."""
    q = rint(v)
    return q - F(256) * down(q * F(1 / 256))


@helper
def positive(x, w, n, nmax, codes):
    """x ≈ scale·code for n rows of values ≥ 0: scale; codes, a table of n rows, in 0 … nmax.

    Values below 0, which a search for scales can yield, get the codes that llama.cpp's bytes wrap around to.
    """
    zero = splat(F(0))
    peak = zero
    for i in range(n):
        peak = at_least(load(x, i), peak)
    live = peak >= EPS
    peak = where(live, peak, F(1))
    inverse = nmax / peak
    scale = F(1) / inverse
    best = zero
    for i in range(n):
        v = load(x, i)
        e = v - scale * byte(inverse * v)
        best += load(w, i) * e * e
    for k in range(8):
        trial = (F(0.1) * F(k - 4 if k < 4 else k - 3) + nmax) / peak
        scale = F(1) / trial
        error = zero
        for i in range(n):
            v = load(x, i)
            e = v - scale * at_most(rint(trial * v), nmax)
            error += load(w, i) * e * e
        better = error < best
        best = where(better, error, best)
        inverse = where(better, trial, inverse)
    a, b = zero, zero
    for i in range(n):
        u, v = load(w, i), load(x, i)
        q = at_most(rint(inverse * v), nmax)
        store(codes, i, byte(q))
        a += u * v * q
        b += u * q * q
    for _ in range(SWEEPS):
        changed = peak < F(0)
        for i in range(n):
            u, v, q = load(w, i), load(x, i), load(codes, i)
            uv = u * v
            ra = a - uv * q
            rb = b - u * q * q
            usable = live & (ra > F(0)) & (rb > F(0))
            p = at_most(rint(v * rb / where(usable, ra, F(1))), nmax)
            na = ra + uv * p
            nb = rb + u * p * p
            better = usable & (p != q) & (na * na * b > a * a * nb)
            store(codes, i, where(better, byte(p), q))
            a = where(better, na, a)
            b = where(better, nb, b)
            changed = changed | better
        if not any_of(changed):
            break
    for i in range(n):
        store(codes, i, where(live, load(codes, i), F(0)))
    return where(live & (b > F(0)), a / where(b != F(0), b, F(1)), F(0))
