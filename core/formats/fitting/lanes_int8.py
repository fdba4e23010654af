"""LLM.int8()'s rows on one CPU core, bit-equal to the torch code in core/formats/llm_int8.py. How weights are given:
lanes_uniform.py."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import kernel
from core.formats.fitting.lanes_bits import float_of
from core.formats.fitting.lanes_vector import (
    WIDTH,
    at_least,
    at_most,
    load_at,
    rint,
    splat,
    store_at,
    store_bytes,
)
from core.formats.fitting.lanes_vector_bits import halved
from core.formats.fitting.lanes_vector_rows import copy_run, load_signed, top_bits, widen_row, widest

F = np.float32
# Bits of the largest half.
LARGEST = np.uint32(0x477FE000)


@kernel
def encode_int8(x, brains, absmax, codes):
    """Codes, int8 as uint8 [rows · columns], and the largest magnitude of every row, float32 [rows], of x float32 or
    brains uint16 [rows · columns], rounded to halves. The first row that holds NaN or what halves cannot hold, or −1;
    what lies behind it is not written."""
    columns = codes.size // absmax.size
    room, few = np.zeros(columns + WIDTH, np.float32), np.empty(columns + WIDTH, np.uint8)
    for r in range(absmax.size):
        if brains.size:
            widen_row(brains, r * columns, columns, room)
        else:
            copy_run(x, r * columns, room, 0, columns)
        most = splat(F(0))
        for i in range(0, columns, WIDTH):
            v = halved(load_at(room, i))
            store_at(room, i, v)
            most = widest(most, v)
        bits = top_bits(most)
        if bits > LARGEST:
            return r
        size = absmax[r] = float_of(bits)
        # Torch divides a number by a tensor so.
        inverse = F(1) / size * F(127) if size > F(0) else F(0)
        for i in range(0, columns, WIDTH):
            store_bytes(few, i, at_most(at_least(rint(load_at(room, i) * inverse), F(-127)), F(127)))
        copy_run(few, 0, codes, r * columns, columns)
    return -1


@kernel
def decode_int8(codes, absmax, step, out):
    """float32 [rows · columns] of what encode_int8 makes: code · absmax · step, in this order."""
    columns = out.size // absmax.size
    whole = columns // WIDTH * WIDTH
    for r in range(absmax.size):
        at = r * columns
        for i in range(at, at + whole, WIDTH):
            store_at(out, i, load_signed(codes, i) * absmax[r] * step)
        for i in range(at + whole, at + columns):
            out[i] = F(np.int8(codes[i])) * absmax[r] * step
