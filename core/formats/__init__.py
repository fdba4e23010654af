"""What a weight may become: the formats and their registry. Importing it costs no torch."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache

from core.errors import RecipeError
from core.formats.base import Format, Grid, Parts, Quantized
from core.formats.biased import BIASED, biased
from core.formats.bnb import BNB4
from core.formats.dense import DENSE
from core.formats.fp8 import FP8
from core.formats.ggml.format import GGML
from core.formats.llm_int8 import LLM_INT8, llm_int8
from core.formats.mx import MX
from core.formats.shifted import SHIFTED, shifted
from core.formats.uniform import UNIFORM, uniform

# The formats that menus and `formats` list. Names with a number in them (int5-g48) exist beyond the list.
# GGML's own NVFP4, which is only read, gives way to the one that other containers carry under the name.
FORMATS: tuple[Format, ...] = (
    *DENSE,
    *(f for f in GGML if f.name not in {g.name for g in MX}),
    *UNIFORM,
    *SHIFTED,
    *BIASED,
    *FP8,
    *MX,
    *BNB4,
    *LLM_INT8,
)

_BY_NAME = {f.name: f for f in FORMATS}


@lru_cache(maxsize=1024)
def get_format(name: str) -> Format:
    """The format by name, upper or lower case. Raises RecipeError with the closest known name."""
    wanted = name.strip().lower()
    found = _BY_NAME.get(wanted) or uniform(wanted) or shifted(wanted) or biased(wanted) or llm_int8(wanted)
    if found is not None:
        return found
    close = get_close_matches(wanted, _BY_NAME, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "see the list of formats"
    raise RecipeError(f"unknown format {name!r}", hint)


__all__ = ["FORMATS", "Format", "Grid", "Parts", "Quantized", "get_format"]
