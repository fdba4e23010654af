"""Codebooks of sixteen levels on one CPU core: the loops behind core/formats/codebook.py. Runs never straddle calls."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import float_of
from core.formats.fitting.lanes_vector import WIDTH, load_at, store_at
from core.formats.fitting.lanes_vector_rows import (
    address,
    copy_run,
    load_from,
    pair_nibbles,
    size_of,
    store_places,
    widen_row,
)

F = np.float32
INF = np.uint32(0x7F800000)
TOGETHER = 16


@helper
def _places(x, run, inverse, bounds, places):
    """Place in the order of levels of every number of a run at an address, times inverse: uint8, from the start on."""
    for i in range(0, run, WIDTH):
        store_places(places, i, bounds, load_from(x, i) * inverse)


@kernel
def encode_runs(x, brains, run, smallest, bounds, pairs, plain, absmax, out):
    """Packed codes, uint8 [n / 2], and the largest magnitude of every run, float32 [n / run], of n weights, float32 x
    or bf16 brains (uint16); False where one is not finite.

    run       a multiple of 32 that divides n
    smallest  an absmax below this counts as this, where weights are multiplied by its reciprocal
    bounds    float32 [15]
    pairs     uint8 [256]: the byte for 16 · (place of the first weight in the order) + (place of the second)
    plain     whether every byte of pairs is its own place
    """
    room, places, codes = np.empty(run, np.float32), np.empty(run, np.uint8), np.empty(run // 2, np.uint8)
    for k in range(absmax.size):
        source = address(x, k * run)
        if brains.size:
            widen_row(brains, k * run, run, room)
            source = address(room, 0)
        bits = size_of(source, run)
        if bits >= INF:
            return False
        size = absmax[k] = float_of(bits)
        _places(source, run, F(1) / max(size, smallest), bounds, places)
        for i in range(0, run, 2 * WIDTH):
            pair_nibbles(places, i, codes, i // 2, True)
        if not plain:
            for i in range(run // 2):
                codes[i] = pairs[codes[i]]
        copy_run(codes, 0, out, k * run // 2, run // 2)
    return True


@kernel
def decode_nested(codes, levels, absmax, run, offset, out):
    """out float32 [n]: levels[codes] · absmax + offset, `run` of them with one absmax."""
    for k in range(absmax.size):
        s = absmax[k]
        for i in range(k * run, min(out.size, (k + 1) * run)):
            out[i] = levels[codes[i]] * s + offset


@kernel
def decode_runs(packed, scale, run, levels, out):
    """out float32 [n], n % run == 0, run % 16 == 0; levels uint64 [256], the two float32 of a byte as one number."""
    runs = out.size // run
    # Several runs are looked up before the first is scaled: a vector that is read right after its parts were written
    # waits for them to leave for the cache.
    codes, pairs = np.empty(TOGETHER * run // 2, np.uint8), np.empty(TOGETHER * run // 2, np.uint64)
    values = pairs.view(np.float32)
    for first in range(0, runs, TOGETHER):
        here = min(TOGETHER, runs - first)
        copy_run(packed, first * run // 2, codes, 0, here * run // 2)
        for i in range(here * run // 2):
            pairs[i] = levels[codes[i]]
        for k in range(here):
            s = scale[first + k]
            for i in range(k * run, (k + 1) * run, WIDTH):
                store_at(out, first * run + i, load_at(values, i) * s)
