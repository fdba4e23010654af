"""`general.file_type`: the number by which a GGUF names its mixture. Facts of llama.cpp (llama.h)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from core.targets.base import StoredTensor

FILE_TYPES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "NVFP4": 39,
    "Q1_0": 40,
    "Q2_0": 41,
}
# The mixture that llama.cpp assumes where it only sees the most common type.
_ASSUMED = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}


def file_type(label: str, tensors: Iterable[StoredTensor]) -> int:
    """The number of the mixture called `label` ("Q4_K_M"); for other labels that of the type most matrices have, or of
    most tensors where there are no matrices. llama.cpp guesses so too, and marks its guess with 1024; files do not."""
    known = FILE_TYPES.get(label.partition("+")[0].strip().upper())
    if known is not None:
        return known
    held = list(tensors)
    counts = Counter(t.dtype for t in held if len(t.shape) > 1) or Counter(t.dtype for t in held)
    for dtype, _ in counts.most_common():
        found = FILE_TYPES.get(_ASSUMED.get(dtype, dtype))
        if found is not None:
            return found
    return FILE_TYPES["F32"]
