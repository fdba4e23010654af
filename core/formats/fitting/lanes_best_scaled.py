"""Effort `best` for blocks with one 16-bit scale on one CPU core, sixteen blocks side by side (lanes_vector.py): Q4_0,
Q5_0, Q8_0, Q2_0, TQ1_0, TQ2_0.

The codes of llama.cpp's scale and of a few others (tries.py) are compared by what is left when each is given the scale
that suits it best: Σ w·x² − (Σ w·x·q)² / Σ w·q²; so two sums per try are enough. The codes of the best scale are fitted
again, and the result is stored where it is no worse than llama.cpp's scale with its nearest codes. searches_best.py
says the same in torch, operation by operation.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, out uint8 [rows, bytes]) → the first row with
a scale beyond a half, with NaN or Inf, or −1. With importance, out must hold llama.cpp's blocks, whose search they go
on from, and weights must be sound; without, or where a type does not look at it, what out holds does not count.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, named, vector_kernel
from core.formats.fitting.lanes_bits import half_at
from core.formats.fitting.lanes_blocks import (
    BLOCK,
    HALF_MAX,
    extent,
    first_beyond,
    place_for,
    put_nibbles,
    read_blocks,
    reciprocal,
    row_means,
    signed_largest,
    weigh_blocks,
    write_rest,
)
from core.formats.fitting.lanes_room import empty, flattened
from core.formats.fitting.lanes_turn import turn_bytes
from core.formats.fitting.lanes_vector import (
    any_of,
    clipped,
    down,
    fused,
    load,
    load_at,
    magnitude,
    rint,
    splat,
    store,
    store_bytes,
    table,
    where,
)
from core.formats.fitting.lanes_vector_bits import halved, store_halves
from core.formats.fitting.tries import FACTORS

F = np.float32
# An even number of factors of llama.cpp's scale; their reciprocals.
EIGHT = np.array(FACTORS["Q8_0"], F)
Q4_0, Q5_0, Q8_0, TERNARY, Q2_0, WEIGHTED = (
    F(1) / np.array(FACTORS[k], F) for k in ("Q4_0", "Q5_0", "Q8_0", "TQ1_0", "Q2_0", "weighted")
)


@helper
def _two_tries(x, w, wx, n, inv, inv2, bottom, top):
    """Σ w·x·q and Σ w·q² for the codes q of one inverse scale, and of another: two at a time read the tables once.
    w and wx are None where all weights count alike."""
    a, b = splat(F(0)), splat(F(0))
    a2, b2 = a, b
    for i in range(n):
        v = load(x, i)
        q, q2 = clipped(inv * v, bottom, top), clipped(inv2 * v, bottom, top)
        if w is None:
            a, a2 = fused(v, q, a), fused(v, q2, a2)
            b, b2 = fused(q, q, b), fused(q2, q2, b2)
        else:
            u, uv = load(w, i), load(wx, i)
            a, a2 = fused(uv, q, a), fused(uv, q2, a2)
            b, b2 = fused(u * q, q, b), fused(u * q2, q2, b2)
    return a, b, a2, b2


@helper
def _one_try(x, w, wx, n, inv, bottom, top):
    """The same for one, and Σ w·(x·inv − q)²."""
    a, b, e = splat(F(0)), splat(F(0)), splat(F(0))
    for i in range(n):
        v = load(x, i)
        q = clipped(inv * v, bottom, top)
        r = fused(v, inv, -q)
        if w is None:
            a, b, e = fused(v, q, a), fused(q, q, b), fused(r, r, e)
        else:
            u = load(w, i)
            a, b, e = fused(load(wx, i), q, a), fused(u * q, q, b), fused(u * r, r, e)
    return a, b, e


@helper
def _better(a, b, scale, best):
    """The scale that suits these codes, and what it takes off the error, where that is more than the best so far."""
    ratio = a / where(b > F(0), b, F(1))
    more = (b > F(0)) & (ratio * a > best)
    return where(more, ratio, scale), where(more, ratio * a, best)


@helper
def storable(fit, b, otherwise):
    """fit as a half, where there is one: a scale that is not 0, of codes whose squares sum up to b."""
    new = halved(fit)
    return where((b > F(0)) & (new != F(0)) & (magnitude(new) <= HALF_MAX), new, otherwise)


@helper
def _encoded(x, w, n, step, bottom, top, codes):
    """Codes − bottom into a table; Σ w·(x − step·code)²."""
    inv, e = reciprocal(step), splat(F(0))
    for i in range(n):
        v = load(x, i)
        q = clipped(inv * v, bottom, top)
        r = fused(v, inv, -q)
        store(codes, i, q - bottom)
        e = fused(r, r, e) if w is None else fused(load(w, i) * r, r, e)
    return step * step * e


@helper
def searched(x, w, wx, n, start, inverses, bottom, top, codes):
    """The scale to store, and llama.cpp's error; codes − bottom in codes. start: llama.cpp's scale."""
    inv = reciprocal(start)
    a, b, e = _one_try(x, w, wx, n, inv, bottom, top)
    limit = start * start * e
    step, best = _better(a, b, start, splat(F(0)))
    for k in range(0, inverses.size, 2):
        a, b, a2, b2 = _two_tries(x, w, wx, n, inv * inverses[k], inv * inverses[k + 1], bottom, top)
        step, best = _better(a, b, step, best)
        step, best = _better(a2, b2, step, best)
    a, b, _ = _one_try(x, w, wx, n, reciprocal(step), bottom, top)
    step = storable(a / where(b > F(0), b, F(1)), b, start)
    worse = _encoded(x, w, n, step, bottom, top, codes) > limit
    if any_of(worse):
        step = where(worse, start, step)
        _encoded(x, w, n, step, bottom, top, codes)
    return step, limit


@helper
def _search_q8_0(x, start, codes):
    """Q8_0. Beside its fine levels the scale's own share in the error is small: Σ (x/step − q)² alone is compared, as
    the codes of scales not below llama.cpp's stay within theirs."""
    inv, zero = reciprocal(start), splat(F(0))
    e = zero
    for i in range(BLOCK):
        v = load(x, i)
        r = fused(v, inv, -rint(inv * v))
        e = fused(r, r, e)
    limit = start * start * e
    step, best = start, limit
    for k in range(0, EIGHT.size, 2):
        inv1, inv2, e, e2 = inv * Q8_0[k], inv * Q8_0[k + 1], zero, zero
        for i in range(BLOCK):
            v = load(x, i)
            r, r2 = fused(v, inv1, -rint(inv1 * v)), fused(v, inv2, -rint(inv2 * v))
            e, e2 = fused(r, r, e), fused(r2, r2, e2)
        d, d2 = start * EIGHT[k], start * EIGHT[k + 1]
        e, e2 = d * d * e, d2 * d2 * e2
        step, best = where(e < best, d, step), where(e < best, e, best)
        step, best = where(e2 < best, d2, step), where(e2 < best, e2, best)
    a, b, _ = _one_try(x, None, None, BLOCK, reciprocal(step), F(-128), F(127))
    step = storable(a / where(b > F(0), b, F(1)), b, start)
    worse = _encoded(x, None, BLOCK, step, F(-128), F(127), codes) > limit
    if any_of(worse):
        step = where(worse, start, step)
        _encoded(x, None, BLOCK, step, F(-128), F(127), codes)
    return step, limit


# --- what a kernel does for its type: search(table, start, codes) and put(codes, step, to, at, bytes) -----------------


@helper
def _search_q4_0(t, start, codes):
    return searched(t, None, None, BLOCK, start, Q4_0, F(-8), F(7), codes)


@helper
def _search_q5_0(t, start, codes):
    return searched(t, None, None, BLOCK, start, Q5_0, F(-16), F(15), codes)


@helper
def _search_q2_0(t, start, codes):
    return searched(t, None, None, 64, start, Q2_0, F(-1), F(2), codes)


@helper
def _search_ternary(t, start, codes):
    return searched(t, None, None, 256, start, TERNARY, F(-1), F(1), codes)


@helper
def _put_q4_0(codes, step, to, at, bytes_):
    store_halves(to, at, 18, step)
    put_nibbles(codes, to, at, 18, bytes_)


@helper
def _put_q5_0(codes, step, to, at, bytes_):
    store_halves(to, at, 22, step)
    put_nibbles(codes, to, at, 22, bytes_)


@helper
def _put_q8_0(codes, step, to, at, bytes_):
    store_halves(to, at, 34, step)
    for i in range(BLOCK):
        store_bytes(bytes_, i * 16, load(codes, i) - F(128))
    for k in range(2):
        turn_bytes(bytes_, k * 256, 16, to, at + 2 + 16 * k, 34)


@helper
def _fours(codes, first, apart, bytes_, row):
    """Sixteen rows of four codes of two bits each, `apart` rows of codes between a row's four."""
    for i in range(16):
        at = first + (4 * i if apart == 1 else i)
        byte = load(codes, at) + F(4) * load(codes, at + apart)
        byte += F(16) * load(codes, at + 2 * apart) + F(64) * load(codes, at + 3 * apart)
        store_bytes(bytes_, (row + i) * 16, byte)


@helper
def _put_q2_0(codes, step, to, at, bytes_):
    store_halves(to, at, 18, step)
    _fours(codes, 0, 1, bytes_, 0)
    turn_bytes(bytes_, 0, 16, to, at + 2, 18)


@helper
def _put_tq2_0(codes, step, to, at, bytes_):
    store_halves(to, at + 64, 66, step)
    for k in range(4):
        _fours(codes, k // 2 * 128 + k % 2 * 16, 32, bytes_, 16 * k)
        turn_bytes(bytes_, k * 256, 16, to, at + 16 * k, 66)


@helper
def _put_tq1_0(codes, step, to, at, bytes_):
    store_halves(to, at + 52, 54, step)
    for i in range(52):
        # Digits of three: five per byte, the first one the most significant; the last bytes have four.
        first, apart = (i, 32) if i < 32 else ((128 + i, 16) if i < 48 else (192 + i, 4))
        v = load(codes, first)
        for k in range(1, 4):
            v = F(3) * v + load(codes, first + k * apart)
        v = F(3) * v + (load(codes, first + 4 * apart) if i < 48 else splat(F(0)))
        store_bytes(bytes_, i * 16, down((v * F(256) + F(242)) / F(243)))
    for k in range(3):
        turn_bytes(bytes_, k * 256, 16, to, at + 16 * k, 54)
    for j in range(16):
        for k in range(4):
            to[at + j * 54 + 48 + k] = bytes_[(48 + k) * 16 + j]


def _plain(name, n, size, extreme, search, put):
    """The work of kernel `name` without importance. extreme: the level of the value with the largest magnitude where it
    is below 0, else of that magnitude."""

    @helper
    @named(f"_plain_{name}")
    def plain(x, out):
        t, codes = table(n), table(n)
        room, bytes_, whole = empty(F, 16 * n), empty(np.uint8, 1024), empty(np.uint8, 16 * size)
        count, target = x.size // n, flattened(out)
        for first in range(0, count, 16):
            read_blocks(x, n, first, room, t)
            low, high = extent(t, n)
            if extreme < F(0):
                start = halved(signed_largest(t, n, low, high) / extreme)
            else:
                start = halved(magnitude(where(high > -low, high, low)) / extreme)
            step, limit = search(t, start, codes)
            bad = first_beyond(where(limit == limit, start, F(np.inf)))
            if bad >= 0:
                return (first + bad) * n // x.shape[1]
            to, at = place_for(target, whole, first, count, size)
            put(codes, step, to, at, bytes_)
            write_rest(target, whole, first, count, size)
        return -1

    return plain


def _weighted(name, size, bottom, top, put):
    """The work of kernel `name` with importance."""

    @helper
    @named(f"_weighted_{name}")
    def weighted(x, imp, out):
        means = empty(F, x.shape[0])
        row_means(x, means)
        t, w, wx, codes = table(BLOCK), table(BLOCK), table(BLOCK), table(BLOCK)
        room, bytes_, whole = empty(F, 512), empty(np.uint8, 1024), empty(np.uint8, 16 * size)
        count, target = x.size // BLOCK, flattened(out)
        for first in range(0, count, 16):
            read_blocks(x, BLOCK, first, room, t)
            weigh_blocks(x, imp, means, first, room, t, w)
            for i in range(BLOCK):
                store(wx, i, load(w, i) * load(t, i))
            for j in range(16):
                room[j] = half_at(target, min(first + j, count - 1) * size)
            step, _ = searched(t, w, wx, BLOCK, load_at(room, 0), WEIGHTED, bottom, top, codes)
            to, at = place_for(target, whole, first, count, size)
            put(codes, step, to, at, bytes_)
            write_rest(target, whole, first, count, size)
        return -1

    return weighted


_plain_q4_0 = _plain("q4_0", 32, 18, F(-8), _search_q4_0, _put_q4_0)
_plain_q5_0 = _plain("q5_0", 32, 22, F(-16), _search_q5_0, _put_q5_0)
_plain_q8_0 = _plain("q8_0", 32, 34, F(127), _search_q8_0, _put_q8_0)
_plain_q2_0 = _plain("q2_0", 64, 18, F(1), _search_q2_0, _put_q2_0)
_plain_tq1_0 = _plain("tq1_0", 256, 54, F(1), _search_ternary, _put_tq1_0)
_plain_tq2_0 = _plain("tq2_0", 256, 66, F(1), _search_ternary, _put_tq2_0)
_weighted_q4_0 = _weighted("q4_0", 18, F(-8), F(7), _put_q4_0)
_weighted_q5_0 = _weighted("q5_0", 22, F(-16), F(15), _put_q5_0)


@vector_kernel
def q4_0(x, imp, out):
    if imp is None:
        return _plain_q4_0(x, out)
    return _weighted_q4_0(x, imp, out)


@vector_kernel
def q5_0(x, imp, out):
    if imp is None:
        return _plain_q5_0(x, out)
    return _weighted_q5_0(x, imp, out)


@vector_kernel
def q8_0(x, imp, out):
    return _plain_q8_0(x, out)


@vector_kernel
def q2_0(x, imp, out):
    return _plain_q2_0(x, out)


@vector_kernel
def tq1_0(x, imp, out):
    return _plain_tq1_0(x, out)


@vector_kernel
def tq2_0(x, imp, out):
    return _plain_tq2_0(x, out)
