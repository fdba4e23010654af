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
    clipped,
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
def _extent(x, w, n):
    """Σ w, Σ w·x, the smallest value or 0, the largest."""
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
    return sw, sx, where(low > F(0), F(0), low), top


@helper
def _encoded(x, w, n, inverse, origin, nmax, codes):
    """Codes of one inverse step; Σ w·q, Σ w·q², Σ w·q·x."""
    zero = splat(F(0))
    sl, sl2, sxl = zero, zero, zero
    for i in range(n):
        v = load(x, i)
        q = clipped(inverse * (v - origin), F(0), nmax)
        store(codes, i, q)
        u = load(w, i) * q
        sl += u
        sl2 += u * q
        sxl += u * v
    return sl, sl2, sxl


@helper
def _solved(sw, sx, sl, sl2, sxl):
    """Scale and low (at most 0) of the smallest squared error for given codes, and whether there are any."""
    det = sw * sl2 - sl * sl
    usable = det > F(0)
    det = where(usable, det, F(1))
    a = (sw * sxl - sx * sl) / det
    b = (sl2 * sx - sl * sxl) / det
    above = b > F(0)
    a = where(above, sxl / where(sl2 > F(0), sl2, F(1)), a)
    return a, where(above, F(0), b), usable


@helper
def _error(x, w, n, codes, scale, low, absolute):
    """Σ w·|e| or Σ w·e² of scale·code + low."""
    error = splat(F(0))
    if absolute:
        for i in range(n):
            error += load(w, i) * magnitude(scale * load(codes, i) + low - load(x, i))
    else:
        for i in range(n):
            e = scale * load(codes, i) + low - load(x, i)
            error += load(w, i) * (e * e)
    return error


@helper
def affine(x, w, n, nmax, rmin, rdelta, steps, absolute, codes):
    """x ≈ scale·code + low, code = clip(round(inverse·(x − origin)), 0, nmax): scale, low, inverse, origin.

    codes  scratch
    """
    sw, sx, low, top = _extent(x, w, n)
    live = top > low
    inverse = nmax / where(live, top - low, F(1))
    scale = where(live, F(1) / inverse, F(0))
    inverse = where(live, inverse, F(0))
    origin = low
    _encoded(x, w, n, inverse, low, nmax, codes)
    best = _error(x, w, n, codes, scale, low, absolute)
    for step in range(steps + 1):
        d = top - low  # from the best minimum so far, as the scalar code does
        inv = where(live, (rmin + rdelta * F(step) + nmax) / where(d != F(0), d, F(1)), F(0))
        sl, sl2, sxl = _encoded(x, w, n, inv, low, nmax, codes)
        a, b, usable = _solved(sw, sx, sl, sl2, sxl)
        error = _error(x, w, n, codes, a, b, absolute)
        better = usable & (error < best)
        best = where(better, error, best)
        scale = where(better, a, scale)
        inverse = where(better, inv, inverse)
        origin = where(better, low, origin)
        low = where(better, b, low)
    return scale, low, inverse, origin


@helper
def _products(x, w, wx, n, inv, inv2, bottom, top):
    """Σ w·x·q and Σ w·q² for the codes q of one inverse step, and of another: two at a time read the tables once.

    bottom None: no code can be below the lowest one.
    """
    a, b = splat(F(0)), splat(F(0))
    a2, b2 = a, b
    for i in range(n):
        v, u, uv = load(x, i), load(w, i), load(wx, i)
        q = at_most(rint(inv * v), top)
        q2 = at_most(rint(inv2 * v), top)
        if bottom is not None:
            q, q2 = at_least(q, bottom), at_least(q2, bottom)
        a += uv * q
        a2 += uv * q2
        b += u * q * q
        b2 += u * q2 * q2
    return a, b, a2, b2


@helper
def _tried(a, b, inv, scale, best, inverse):
    """The better of the best so far and of one inverse step with its sums."""
    better = (b > F(0)) & (a * a > best * b)
    ratio = a / where(b != F(0), b, F(1))
    return where(better, ratio, scale), where(better, ratio * a, best), where(better, inv, inverse)


@helper
def symmetric(x, w, n, nmax, scratch):
    """x ≈ scale·code, code = clip(round(inverse·x), −nmax, nmax − 1): scale and inverse, both 0 in a dead lane.

    scratch  a table of n + 18 rows
    """
    wx, steps = scratch[:n], scratch[n:]
    for i in range(n):
        store(wx, i, load(w, i) * load(x, i))
    peak, size = peaks(x, n)
    live = size >= EPS
    peak = where(live, peak, F(1))
    bottom, top = -nmax, nmax - F(1)
    for k in range(18):
        store(steps, k, -(F(0.1) * F(k - 9 if k < 9 else k - 8) + nmax) / peak)
    inverse = -nmax / peak
    a, b, _, _ = _products(x, w, wx, n, inverse, inverse, None, top)
    scale = where(b != F(0), a / where(b != F(0), b, F(1)), F(0))
    best = scale * a
    # Up to 0.3 beyond nmax the largest value is rounded to it at most.
    for k in range(0, 12, 2):
        inv, inv2 = load(steps, k), load(steps, k + 1)
        a, b, a2, b2 = _products(x, w, wx, n, inv, inv2, None, top)
        scale, best, inverse = _tried(a, b, inv, scale, best, inverse)
        scale, best, inverse = _tried(a2, b2, inv2, scale, best, inverse)
    for k in range(12, 18, 2):
        inv, inv2 = load(steps, k), load(steps, k + 1)
        a, b, a2, b2 = _products(x, w, wx, n, inv, inv2, bottom, top)
        scale, best, inverse = _tried(a, b, inv, scale, best, inverse)
        scale, best, inverse = _tried(a2, b2, inv2, scale, best, inverse)
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
