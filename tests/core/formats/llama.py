"""llama.cpp's own quantizer, through ctypes on the library inside the xllamacpp wheel."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from core.formats.ggml.types import GGML_TYPES


@cache
def library() -> ctypes.CDLL:
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    found = sorted(p for p in Path(spec.origin).parent.glob("xllamacpp*") if p.suffix in (".so", ".pyd", ".dylib"))
    lib = ctypes.CDLL(str(found[0]))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = (
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    )
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return lib


def quantize(name: str, w: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """uint8 [rows, row bytes] of float32 [rows, columns]; importance float32 [columns]."""
    kind = GGML_TYPES[name]
    rows, columns = w.shape
    w = np.ascontiguousarray(w, np.float32)
    out = np.zeros((rows, kind.row_bytes(columns)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    done = library().ggml_quantize_chunk(
        kind.id, w.ctypes.data, out.ctypes.data, 0, rows, columns, None if weights is None else weights.ctypes.data
    )
    assert done == out.size
    return out


def dequantize(name: str, blocks: np.ndarray, columns: int) -> np.ndarray:
    """float32 [rows, columns], decoded by ggml's C code."""
    stem = name.lower() if name[-1] != "K" else name[0].lower() + name[1:]
    decode = getattr(library(), f"dequantize_row_{stem}")
    decode.restype = None
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    blocks = np.ascontiguousarray(blocks)
    out = np.empty(blocks.size // GGML_TYPES[name].type_size * GGML_TYPES[name].block, np.float32)
    decode(blocks.ctypes.data, out.ctypes.data, out.size)
    return out.reshape(-1, columns)


def valid(name: str, blocks: np.ndarray) -> bool:
    blocks = np.ascontiguousarray(blocks)
    return bool(library().ggml_validate_row_data(GGML_TYPES[name].id, blocks.ctypes.data, blocks.nbytes))
