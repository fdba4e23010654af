"""Settings that llama.cpp has no counterpart for: those that change every answer are refused, those that matter only
beyond some length are noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import rotated

_SILU = ("silu", "swish")
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
# llama.cpp computes gelu by its tanh formula; the exact one differs in the fourth digit.
GELU = ("gelu", "gelu_python", *GELU_TANH)


def activation(hyper: Hyper, *, key: str = "hidden_act", known: Sequence[str] = _SILU, what: str = "silu") -> None:
    act = hyper.get(key, known[0])
    if act not in known:
        raise hyper.error(f"{key} is {act!r}, and llama.cpp computes {what} for this architecture")


def rope(hyper: Hyper, *, partial: bool = False, kinds: Sequence[str] = ("linear", "llama3", "yarn")) -> list[str]:
    """The rotary settings.

    partial  whether llama.cpp can turn only a part of each head
    kinds    of scaling that it knows for this architecture
    """
    found = hyper.rope
    if not partial and found.settings.get("partial_rotary_factor", hyper.get("partial_rotary_factor", 1)) not in (
        1,
        None,
    ):
        raise hyper.error("partial_rotary_factor is not 1, which llama.cpp does not do for this architecture")
    rotated(hyper)
    if found.kind == "dynamic":
        return ["dynamic rope scaling is not carried over: beyond the trained context llama.cpp computes otherwise"]
    if found.kind not in ("default", *kinds):
        raise hyper.error(f"rope type {found.kind!r} has no counterpart in GGUF", f"known: default, {', '.join(kinds)}")
    return _yarn(found.settings) if found.kind == "yarn" else []


def _yarn(settings: Mapping[str, Any]) -> list[str]:
    """Settings of YaRN that llama.cpp takes from no file of this architecture."""
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    odd = [key for key, value in usual.items() if settings.get(key, value) not in (value, None)]
    return [f"yarn's {', '.join(odd)} not carried over: llama.cpp computes slightly otherwise"] if odd else []


def window(hyper: Hyper) -> list[str]:
    """A sliding window that llama.cpp does not do for this architecture."""
    found = hyper.get("sliding_window")
    if isinstance(found, bool) or not isinstance(found, int) or hyper.get("use_sliding_window") is False:
        return []
    if 0 < found < hyper.whole("max_position_embeddings"):
        return [f"the sliding window of {found:,} is not carried over: llama.cpp attends to the whole context"]
    return []


def fixed(hyper: Hyper, why: str, **wanted: Any) -> None:
    """Raises TargetError where a setting is not what llama.cpp takes for granted; None in the config is the usual."""
    for key, value in wanted.items():
        given = hyper.get(key, value)
        if given != value or isinstance(given, bool) != isinstance(value, bool):
            raise hyper.error(f"{key} is {str(given)[:40]}, {why}")
