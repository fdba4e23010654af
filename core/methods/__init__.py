"""How codes are chosen: the methods and their registry. Importing it costs no torch."""

from __future__ import annotations

from difflib import get_close_matches

from core.errors import RecipeError
from core.methods.awq import Awq
from core.methods.base import Method, Statistic
from core.methods.gptq import Gptq
from core.methods.hqq import Hqq
from core.methods.nearest import Nearest
from core.methods.obq import Obq
from core.methods.smoothquant import SmoothQuant

METHODS: tuple[Method, ...] = (Nearest(), Gptq(), Obq(), Hqq(), Awq(), SmoothQuant())

_BY_NAME = {m.name: m for m in METHODS}


def get_method(name: str) -> Method:
    """The method by name, upper or lower case. Raises RecipeError with the closest known name."""
    wanted = name.strip().lower()
    if wanted in _BY_NAME:
        return _BY_NAME[wanted]
    close = get_close_matches(wanted, _BY_NAME, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(_BY_NAME)}"
    raise RecipeError(f"unknown method {name!r}", hint)


__all__ = ["METHODS", "Method", "Statistic", "get_method"]
