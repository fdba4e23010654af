"""Writes written_by_llama.npz: rows quantized by llama.cpp in every type, for the decoding tests.

    python -m tests.core.formats.make_written

Stored, because building llama.cpp's search tables of the smallest i-quants takes it ten seconds and more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.formats.ggml.types import GGML_TYPES
from tests.core.formats import llama

OUT = Path(__file__).with_name("written_by_llama.npz")
COLUMNS = 512
# C refuses these without importance.
NEEDS_IMPORTANCE = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}


def main() -> None:
    g = np.random.default_rng(3)
    w = (g.standard_t(5, (4, COLUMNS)) * 0.02).astype(np.float32)
    w[1] = 0
    w[2] = np.abs(w[2])
    importance = g.random(COLUMNS).astype(np.float32) + 0.1
    written = {
        t.name: llama.quantize(t.name, w, importance if t.name in NEEDS_IMPORTANCE else None)
        for t in GGML_TYPES.values()
        if t.quantized and t.name not in ("Q8_1", "Q8_K")
    }
    np.savez_compressed(OUT, **written)


if __name__ == "__main__":
    main()
