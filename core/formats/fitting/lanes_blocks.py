"""Groups of sixteen blocks into lanes (lanes_vector.py), one block in each, and what was found for them into bytes. The
last group of a piece repeats its last block where there are fewer than sixteen."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper
from core.formats.fitting.lanes_room import flattened
from core.formats.fitting.lanes_turn import turn, turn_bytes
from core.formats.fitting.lanes_vector import (
    all_of,
    any_of,
    copy,
    flags_of,
    load,
    load_at,
    magnitude,
    root,
    store,
    store_bytes,
    where,
)
from core.formats.fitting.lanes_vector_bits import fetch, store_fives
from core.formats.fitting.lanes_vector_search import peaks

F = np.float32
BLOCK = 32
HALF_MAX = F(65504)
# How many blocks further on to read from memory already.
AHEAD = 32


@helper
def read_blocks(x, n, first, room, t):
    """Blocks first … first + 16 of n weights, a multiple of 16, into the rows of table t. room: float32 [16 · n]."""
    count = x.size // n
    if first + 16 <= count:
        # Processors foresee reading in steps of a block less well than line by line.
        for c in range(n):
            fetch(x, (first + AHEAD) * n + 16 * c)
        for c in range(0, n, 16):
            turn(x, first * n + c, n, t, c * 16, 16)
        return
    flat = flattened(x)
    for j in range(16):
        copy(flat, min(first + j, count - 1) * n, room, j * n, n)
    for c in range(0, n, 16):
        turn(room, c, n, t, c * 16, 16)


@helper
def row_means(x, means):
    """Mean square of every row, summed in order; four rows at a time hide the latency of the sums."""
    rows, columns = x.shape
    for first in range(0, rows, 4):
        a, b, c, d = first, min(first + 1, rows - 1), min(first + 2, rows - 1), min(first + 3, rows - 1)
        ta, tb, tc, td = F(0), F(0), F(0), F(0)
        for i in range(columns):
            ta += x[a, i] * x[a, i]
            tb += x[b, i] * x[b, i]
            tc += x[c, i] * x[c, i]
            td += x[d, i] * x[d, i]
        means[d] = td / F(columns)
        means[c] = tc / F(columns)
        means[b] = tb / F(columns)
        means[a] = ta / F(columns)


@helper
def weigh_blocks(x, imp, means, first, room, lanes_x, lanes_w):
    """lanes_w becomes importance · √(row's mean square + x²) of the blocks of 32 in lanes_x."""
    count, across = x.size // BLOCK, x.shape[1] // BLOCK
    for j in range(16):
        column = min(first + j, count - 1) % across * BLOCK
        copy(imp, column, room, j * BLOCK, BLOCK)
    for c in range(0, BLOCK, 16):
        turn(room, c, BLOCK, lanes_w, c * 16, 16)
    for j in range(16):
        room[j] = means[min(first + j, count - 1) // across]
    mean = load_at(room, 0)
    for i in range(BLOCK):
        v = load(lanes_x, i)
        store(lanes_w, i, load(lanes_w, i) * root(mean + v * v))


@helper
def extent(t, n):
    """The smallest and the largest value, of equal ones the first."""
    low = load(t, 0)
    high = low
    for i in range(1, n):
        v = load(t, i)
        low = where(v < low, v, low)
        high = where(v > high, v, high)
    return low, high


@helper
def signed_largest(t, n, low, high):
    """The value with the largest magnitude, the first among equals."""
    if any_of((high == -low) & (high > F(0))):
        return peaks(t, n)[0]
    peak = where(high > -low, high, low)
    return where(peak == F(0), F(0), peak)  # a zero without sign


@helper
def reciprocal(d):
    """1 / d, and 0 for 0."""
    return where(d != F(0), F(1) / where(d != F(0), d, F(1)), F(0))


@helper
def first_beyond(h):
    """The first lane that no half holds, or −1."""
    good = magnitude(h) <= HALF_MAX
    if all_of(good):
        return -1
    flags, j = flags_of(good), 0
    while flags >> np.uint32(j) & np.uint32(1):
        j += 1
    return j


@helper
def place_for(target, whole, first, count, size):
    """Where blocks first … first + 16 of count go: an array, and the byte at which they begin. Fewer than sixteen go to
    whole, uint8 [16 · size], first: write_rest."""
    if first + 16 <= count:
        return target, first * size
    return whole, 0


@helper
def write_rest(target, whole, first, count, size):
    """The last blocks, fewer than sixteen, from whole to where they belong."""
    if first + 16 > count:
        copy(whole, 0, target, first * size, (count - first) * size)


@helper
def put_nibbles(codes, to, at, size, bytes_):
    """32 rows of codes 0 … 15, or 0 … 31 (blocks of 22 and 24 bytes), into sixteen blocks of `size` bytes that begin at
    byte `at`: fifth bits and nibbles, at their ends. bytes_: scratch, uint8 [1024]."""
    if size > 20:
        for i in range(BLOCK):
            store_bytes(bytes_, i * 16, load(codes, i))
        for k in range(2):
            turn_bytes(bytes_, k * 256, 16, bytes_, 512 + 16 * k, BLOCK)
        for j in range(16):
            store_fives(bytes_, 512 + j * BLOCK, to, at + j * size + size - 20)
        return
    for i in range(16):
        store_bytes(bytes_, i * 16, load(codes, i) + F(16) * load(codes, i + 16))
    turn_bytes(bytes_, 0, 16, to, at + size - 16, size)
