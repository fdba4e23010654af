"""Codes that index sixteen uneven levels: IQ4_NL (blocks of 32) and IQ4_XS (super-blocks of 256)."""

from __future__ import annotations

import torch
from torch import Tensor

from core.formats.ggml.layout import (
    Fields,
    Layout,
    Steps,
    half,
    half_bytes,
    join_nibbles,
    nibbles,
    ramp,
    words16,
    words16_bytes,
)

LEVELS = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)


def _iq4_nl(blocks: Tensor) -> Fields:
    return {"d": half(blocks, 0), "codes": nibbles(blocks[:, 2:18])}


def _iq4_nl_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), join_nibbles(f["codes"])), 1)


def _iq4_xs(blocks: Tensor) -> Fields:
    high = words16(blocks, 2, 1)
    high = (high >> ramp(high, 8, 2) & 3).to(torch.uint8)
    low = blocks[:, 4:8]
    low = torch.stack((low & 15, low >> 4), -1).flatten(1)
    codes = nibbles(blocks[:, 8:].reshape(-1, 16)).view(-1, 256)
    return {"d": half(blocks, 0), "scales": (low | high << 4).view(torch.int8) - 32, "codes": codes}


def _iq4_xs_bytes(f: Fields) -> Tensor:
    stored = (f["scales"] + 32).to(torch.int32)
    high = ((stored >> 4) << ramp(stored, 8, 2)).sum(1, keepdim=True, dtype=torch.int32)
    low = (stored & 15).to(torch.uint8).view(-1, 4, 2)
    packed = low[..., 0] | low[..., 1] << 4
    codes = join_nibbles(f["codes"].reshape(-1, 32)).view(-1, 128)
    return torch.cat((half_bytes(f["d"]), words16_bytes(high), packed, codes), 1)


LAYOUTS = {
    "IQ4_NL": Layout("IQ4_NL", _iq4_nl, _iq4_nl_bytes, lambda f: Steps(f["d"].float()), 0, 15, table=LEVELS),
    "IQ4_XS": Layout(
        "IQ4_XS", _iq4_xs, _iq4_xs_bytes, lambda f: Steps(f["d"].float() * f["scales"].float()), 0, 15, table=LEVELS
    ),
}
