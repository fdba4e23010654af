"""Codebooks of sixteen levels on one CPU core: the loops behind core/formats/codebook.py. Runs never straddle calls."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import kernel

# No run is longer.
LONGEST = 4096


@kernel
def encode_runs(x, scale, run, multiply, bounds, pairs, out):
    """Packed codes; x float32 [n], n % run == 0, run even; out uint8 [n / 2].

    pairs  uint8 [256]: the byte for 16 · (place of the first weight in the order) + (place of the second)
    """
    places = np.empty(LONGEST, np.uint8)
    b0, b1, b2, b3, b4 = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4]
    b5, b6, b7, b8, b9 = bounds[5], bounds[6], bounds[7], bounds[8], bounds[9]
    b10, b11, b12, b13, b14 = bounds[10], bounds[11], bounds[12], bounds[13], bounds[14]
    for k in range(x.size // run):
        s = scale[k]
        at = k * run
        for i in range(run):
            v = x[at + i] * s if multiply else x[at + i] / s
            c = np.int32(v > b0) + np.int32(v > b1) + np.int32(v > b2) + np.int32(v > b3) + np.int32(v > b4)
            c += np.int32(v > b5) + np.int32(v > b6) + np.int32(v > b7) + np.int32(v > b8) + np.int32(v > b9)
            c += np.int32(v > b10) + np.int32(v > b11) + np.int32(v > b12) + np.int32(v > b13) + np.int32(v > b14)
            places[i] = np.uint8(c)
        for i in range(run // 2):
            out[at // 2 + i] = pairs[places[2 * i] << 4 | places[2 * i + 1]]


@kernel
def decode_runs(packed, scale, run, levels, out):
    """out float32 [n], n % run == 0; levels float32 [256, 2], the two of a byte."""
    for k in range(out.size // run):
        s = scale[k]
        at = k * run // 2
        for i in range(run // 2):
            byte = packed[at + i]
            out[2 * (at + i)] = levels[byte, 0] * s
            out[2 * (at + i) + 1] = levels[byte, 1] * s
