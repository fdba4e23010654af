"""Writes core/formats/ggml/grid_tables.py from the tables the gguf package publishes.

    python -m tests.core.formats.make_grids

Each grid is a list of points; a point's coordinates are indices into the type's ascending magnitudes, packed into one
little-endian uint16 with the first coordinate lowest (2 bits each for eight coordinates, 3 bits each for four). The
list is compressed with zlib and written in base 85.
"""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import numpy as np

TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")
OUT = Path(__file__).resolve().parents[3] / "core" / "formats" / "ggml" / "grid_tables.py"


def published(name: str) -> np.ndarray:
    """float32 [points, coordinates], row = the index in the file."""
    from gguf import quants

    kind = getattr(quants, name)
    kind.init_grid()
    return np.asarray(kind.grid, np.float32).reshape(kind.grid_shape)


def packed(points: np.ndarray) -> tuple[tuple[int, ...], int, str]:
    magnitudes, index = np.unique(points, return_inverse=True)
    width = points.shape[1]
    bits = 2 if width == 8 else 3
    shifts = np.arange(width) * bits
    words = (index.reshape(points.shape) << shifts).sum(1).astype("<u2")
    text = base64.b85encode(zlib.compress(words.tobytes(), 9)).decode()
    return tuple(int(m) for m in magnitudes), width, text


def main() -> None:
    lines = [
        '"""Points of the lattices of the i-quants, compressed; read through grids.py. Written by',
        'tests/core/formats/make_grids.py, which documents the packing."""',
        "",
        "# type: (magnitudes in ascending order, coordinates of a point, base 85 of zlib of little-endian uint16)",
        "TABLES: dict[str, tuple[tuple[int, ...], int, str]] = {",
    ]
    for name in TYPES:
        magnitudes, width, text = packed(published(name))
        lines += [f'    "{name}": (', f"        {magnitudes},", f"        {width},"]
        rows = [text[i : i + 104] for i in range(0, len(text), 104)]
        lines += [f"        {row!r}" for row in rows[:-1]] + [f"        {rows[-1]!r},", "    ),"]
    lines += ["}", ""]
    OUT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
