"""The torch reference compiled by torch.compile, for those who want to measure it on their GPU: QUANTBENCH_COMPILE=1.
`compiles` alone decides.

Not the default: nothing was measured on a GPU yet, and tracing a search takes minutes (with importance a pass over the
columns of a row is unrolled). The bytes should stay: no product and sum become one operation (which rounds once instead
of twice), and divisions are correctly rounded, OPTIONS say so to the compiler; but compiled code has not been held to
the reference's bytes. What the compiler cannot take is run as written from then on, and the log says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

# Searches whose steps depend on what they find (the neighbours of runs that are no points) stay as written.
UNFIT = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"))
OPTIONS: dict[str, Any] = {
    "emulate_precision_casts": True,  # Triton: no fused multiply-add
    "eager_numerics.division_rounding": True,
    "cpp.enable_floating_point_contract_flag": "off",
}
# Searches that the compiler could not take, in this process.
_REFUSED: set[Callable[..., Any]] = set()


@cache
def compiles(device_type: str) -> bool:
    """Whether searches on a kind of device go through torch.compile: on CUDA, with Triton, where it was asked for. Said
    once in the log."""
    if device_type != "cuda" or not os.environ.get("QUANTBENCH_COMPILE"):
        return False
    possible = find_spec("triton") is not None and torch.cuda.is_available()
    log = logging.getLogger("quantbench")
    if possible:
        log.info("searches on %s are compiled by torch.compile at their first use", device_type)
    else:
        log.warning("searches on %s run step by step: torch.compile needs CUDA and Triton", device_type)
    return possible


@cache
def _made(function: Callable[..., Any]) -> Callable[..., Any]:
    # Numbers of blocks and rows are left open: one compilation serves every tensor.
    return torch.compile(function, fullgraph=True, dynamic=True, options=OPTIONS)


def fused(name: str, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The search of one type, of reference.FITS, as it is to be run on a device; effort `best` is run as written."""
    if name in UNFIT or not compiles(device.type):
        return function

    from torch._dynamo.exc import TorchDynamoException  # slow to import, and only here of use

    def run(*arguments: Any) -> Any:
        if function in _REFUSED:
            return function(*arguments)
        try:
            return _made(function)(*arguments)
        except TorchDynamoException as error:
            _REFUSED.add(function)
            reason = str(error).strip().partition("\n")[0]
            logging.getLogger("quantbench").warning("%s runs step by step: torch.compile refused it: %s", name, reason)
            return function(*arguments)

    return run
