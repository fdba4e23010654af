"""The lattices of the i-quants: the points a run of 4 or 8 weights may take, by the index stored in the file.

The points are ggml's published tables; grid_tables.py holds them compressed, tests compare them with the gguf package.
"""

from __future__ import annotations

import base64
import zlib
from functools import cache

import numpy as np

from core.formats.ggml.grid_tables import TABLES


def magnitudes(name: str) -> tuple[int, ...]:
    """The values a coordinate may take, ascending: (8, 25, 43) for the IQ2 family."""
    return TABLES[_table(name)][0]


def _table(name: str) -> str:
    return "IQ1_S" if name == "IQ1_M" else name  # both use one grid


@cache
def grid_codes(name: str) -> np.ndarray:
    """uint8 [points, coordinates]: indices into magnitudes(name); row = index in the file. Read-only."""
    levels, width, text = TABLES[_table(name)]
    words = np.frombuffer(zlib.decompress(base64.b85decode(text)), "<u2").astype(np.uint16)
    bits = 2 if width == 8 else 3
    codes = ((words[:, None] >> (np.arange(width, dtype=np.uint16) * bits)) & ((1 << bits) - 1)).astype(np.uint8)
    assert codes.max() == len(levels) - 1
    codes.setflags(write=False)
    return codes
