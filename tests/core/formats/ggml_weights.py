"""The weights under which llama.cpp's searches minimise squared errors, written down anew from the formats' description
and in float64: what effort `best` must not make worse."""

from __future__ import annotations

import numpy as np

from core.formats.ggml.types import GGML_TYPES


def search_weights(name: str, w: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float64 like w, [rows, columns]; importance float32 [columns] or None."""
    x = w.astype(np.float64)
    square = x * x

    def mean(run: int) -> np.ndarray:
        """Mean square of every run of columns, for each of its columns."""
        return np.repeat(square.reshape(len(x), -1, run).mean(2), run, 1)

    if name in ("Q8_0", "MXFP4", "TQ1_0", "TQ2_0", "Q2_0", "Q1_0"):
        return np.ones_like(x)
    if importance is None:
        if name == "Q2_K":
            return np.abs(x)
        if name in ("Q4_K", "Q5_K"):
            return np.sqrt(mean(32)) + np.abs(x)
        if name == "IQ2_S":
            return 0.5 * mean(256) + square
        return square if name in ("Q3_K", "Q6_K") or name.startswith("IQ") else np.ones_like(x)
    given = np.broadcast_to(importance.astype(np.float64), x.shape)
    if name == "Q6_K":
        return given
    if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        return given * np.sqrt(mean(x.shape[1]) + square)
    factor = 1 if name in ("Q2_K", "IQ2_XXS", "IQ2_XS") else 2
    return given * np.sqrt(factor * mean(GGML_TYPES[name].block) + square)
