"""E2M1 codes: MXFP4 (a power of two per 32) and NVFP4 (an unsigned 8-bit float per 16). The table of ggml holds doubled
values, so both scales are halved; its code 8 is +0, not −0."""

from __future__ import annotations

import torch
from torch import Tensor

from core.formats.ggml.layout import Fields, Layout, Steps, join_nibbles, nibbles

DOUBLED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0)


def half_e8m0(e: Tensor) -> Tensor:
    """float32 2^(e−128); e uint8. The two smallest are subnormal."""
    wide = e.to(torch.int32)
    bits = torch.where(wide < 2, (1 << 21) << wide.clamp(max=1), (wide - 1) << 23)
    return bits.view(torch.float32)


def half_ue4m3(s: Tensor) -> Tensor:
    """float32 half of an unsigned E4M3; 0x7F (NaN) counts as 0, as in ggml; the sign bit is ignored."""
    wide = s.to(torch.int32)
    exponent, mantissa = wide >> 3 & 15, (wide & 7).to(torch.float32)
    value = torch.where(
        exponent == 0, torch.ldexp(mantissa, torch.tensor(-9)), torch.ldexp(1 + mantissa / 8, exponent - 7)
    )
    return torch.where(wide == 0x7F, 0.0, value * 0.5)


def _mxfp4(blocks: Tensor) -> Fields:
    return {"e": blocks[:, :1], "codes": nibbles(blocks[:, 1:])}


def _mxfp4_bytes(f: Fields) -> Tensor:
    return torch.cat((f["e"], join_nibbles(f["codes"])), 1)


def _nvfp4(blocks: Tensor) -> Fields:
    return {"s": blocks[:, :4], "codes": nibbles(blocks[:, 4:].reshape(-1, 8)).view(-1, 64)}


def _nvfp4_bytes(f: Fields) -> Tensor:
    return torch.cat((f["s"], join_nibbles(f["codes"].reshape(-1, 16)).view(-1, 32)), 1)


LAYOUTS = {
    "MXFP4": Layout(
        "MXFP4", _mxfp4, _mxfp4_bytes, lambda f: Steps(half_e8m0(f["e"])), 0, 15, table=DOUBLED, counter=("e", 1)
    ),
    "NVFP4": Layout(
        "NVFP4", _nvfp4, _nvfp4_bytes, lambda f: Steps(half_ue4m3(f["s"])), 0, 15, table=DOUBLED, counter=("s", 4)
    ),
}
