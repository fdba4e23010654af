"""Super-blocks of 256: Q2_K … Q6_K, and Q8_K, which lives in memory only."""

from __future__ import annotations

import torch
from torch import Tensor

from core.formats.ggml.layout import Fields, Layout, Steps, gather, half, half_bytes, ramp, spread


def _mins(f: Fields) -> Steps:
    """d·sc and −dmin·m of every sub-block."""
    return Steps(f["d"].float() * f["scales"].float(), -(f["dmin"].float() * f["mins"].float()))


def _scales(f: Fields) -> Steps:
    return Steps(f["d"].float() * f["scales"].float())


def _crumbs(blocks: Tensor, at: int) -> Tensor:
    """Codes of 2 bits of both halves: byte l of a half holds elements l, l+32, l+64, l+96."""
    n = len(blocks)
    x = blocks[:, at : at + 64].reshape(n, 2, 1, 32)
    return (x >> ramp(x, 4, 2)[:, None] & 3).reshape(n, 256)


def _crumb_bytes(codes: Tensor) -> Tensor:
    return gather(codes.reshape(-1, 4, 32), 2).view(-1, 64)


def _q2_k(blocks: Tensor) -> Fields:
    packed = blocks[:, :16]
    return {
        "scales": packed & 15,
        "mins": packed >> 4,
        "codes": _crumbs(blocks, 16),
        "d": half(blocks, 80),
        "dmin": half(blocks, 82),
    }


def _q2_k_bytes(f: Fields) -> Tensor:
    packed = f["scales"] | f["mins"] << 4
    return torch.cat((packed, _crumb_bytes(f["codes"]), half_bytes(f["d"]), half_bytes(f["dmin"])), 1)


def _q3_k(blocks: Tensor) -> Fields:
    high = spread(blocks[:, :32], 8, 1).reshape(-1, 256)
    s = blocks[:, 96:108]
    low4 = torch.cat((s[:, :8] & 15, s[:, :8] >> 4), 1)
    high2 = spread(s[:, 8:], 4, 2).reshape(-1, 16)
    scales = (low4 | high2 << 4).view(torch.int8) - 32
    return {"codes": _crumbs(blocks, 32) | high << 2, "scales": scales, "d": half(blocks, 108)}


def _q3_k_bytes(f: Fields) -> Tensor:
    stored = (f["scales"] + 32).view(torch.uint8)
    low, high = stored & 15, stored >> 4
    packed = torch.cat((low[:, :8] | low[:, 8:] << 4, gather(high.view(-1, 4, 4), 2)), 1)
    top = gather((f["codes"] >> 2).view(-1, 8, 32), 1)
    return torch.cat((top, _crumb_bytes(f["codes"] & 3), packed, half_bytes(f["d"])), 1)


def _six(s: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight mins of 6 bits from 12 bytes."""
    a, b, c = s[:, :4], s[:, 4:8], s[:, 8:]
    scales = torch.cat((a & 63, c & 15 | a >> 6 << 4), 1)
    mins = torch.cat((b & 63, c >> 4 | b >> 6 << 4), 1)
    return scales, mins


def _six_bytes(scales: Tensor, mins: Tensor) -> Tensor:
    s0, s1, m0, m1 = *scales.chunk(2, 1), *mins.chunk(2, 1)
    return torch.cat((s0 | s1 >> 4 << 6, m0 | m1 >> 4 << 6, s1 & 15 | (m1 & 15) << 4), 1)


def _q4_k(blocks: Tensor) -> Fields:
    scales, mins = _six(blocks[:, 4:16])
    codes = spread(blocks[:, 16:].reshape(-1, 32), 2, 4).reshape(-1, 256)
    return {"d": half(blocks, 0), "dmin": half(blocks, 2), "scales": scales, "mins": mins, "codes": codes}


def _nibble_bytes(codes: Tensor) -> Tensor:
    return gather(codes.reshape(-1, 2, 32), 4).view(-1, 128)


def _q4_k_bytes(f: Fields) -> Tensor:
    head = (half_bytes(f["d"]), half_bytes(f["dmin"]), _six_bytes(f["scales"], f["mins"]))
    return torch.cat((*head, _nibble_bytes(f["codes"])), 1)


def _q5_k(blocks: Tensor) -> Fields:
    scales, mins = _six(blocks[:, 4:16])
    fifth = spread(blocks[:, 16:48], 8, 1).reshape(-1, 256)
    codes = spread(blocks[:, 48:].reshape(-1, 32), 2, 4).reshape(-1, 256) | fifth << 4
    return {"d": half(blocks, 0), "dmin": half(blocks, 2), "scales": scales, "mins": mins, "codes": codes}


def _q5_k_bytes(f: Fields) -> Tensor:
    head = (half_bytes(f["d"]), half_bytes(f["dmin"]), _six_bytes(f["scales"], f["mins"]))
    fifth = gather((f["codes"] >> 4).view(-1, 8, 32), 1)
    return torch.cat((*head, fifth, _nibble_bytes(f["codes"] & 15)), 1)


def _q6_k(blocks: Tensor) -> Fields:
    n = len(blocks)
    low = blocks[:, :128].reshape(n * 2, 64)
    high = spread(blocks[:, 128:192].reshape(n * 2, 32), 4, 2).reshape(n, 256)
    codes = torch.cat((low & 15, low >> 4), 1).view(n, 256) | high << 4
    return {"codes": codes, "scales": blocks[:, 192:208].contiguous().view(torch.int8), "d": half(blocks, 208)}


def _q6_k_bytes(f: Fields) -> Tensor:
    halves = f["codes"].reshape(-1, 2, 64)
    low = ((halves[:, 0] & 15) | (halves[:, 1] & 15) << 4).view(-1, 128)
    high = gather((f["codes"] >> 4).reshape(-1, 4, 32), 2).view(-1, 64)
    return torch.cat((low, high, f["scales"].view(torch.uint8), half_bytes(f["d"])), 1)


def _q8_k(blocks: Tensor) -> Fields:
    return {
        "d": blocks[:, :4].contiguous().view(torch.float32),
        "codes": blocks[:, 4:260].contiguous().view(torch.int8),
        "sums": blocks[:, 260:].contiguous().view(torch.int16),
    }


def _q8_k_bytes(f: Fields) -> Tensor:
    return torch.cat([f[k].contiguous().view(torch.uint8) for k in ("d", "codes", "sums")], 1)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("Q2_K", _q2_k, _q2_k_bytes, _mins, 0, 3),
        Layout("Q3_K", _q3_k, _q3_k_bytes, _scales, 0, 7, zero=4),
        Layout("Q4_K", _q4_k, _q4_k_bytes, _mins, 0, 15),
        Layout("Q5_K", _q5_k, _q5_k_bytes, _mins, 0, 31),
        Layout("Q6_K", _q6_k, _q6_k_bytes, _scales, 0, 63, zero=32),
        Layout("Q8_K", _q8_k, _q8_k_bytes, lambda f: Steps(f["d"]), -128, 127),
    )
}
