"""Codes of 2 to 8 bits as a dense little-endian stream of 32-bit words, row by row: code k occupies bits k·b … k·b+b−1.
A row ends on a whole word; unused bits are zero. Torch, any device."""

from __future__ import annotations

import torch
from torch import Tensor


def words_per_row(columns: int, bits: int) -> int:
    return (columns * bits + 31) // 32


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] of non-negative codes below 2^bits, any integer dtype [rows, columns]."""
    rows, columns = codes.shape
    runs = (columns + 31) // 32
    padded = torch.zeros(rows, runs * 32, dtype=torch.int64, device=codes.device)
    padded[:, :columns] = codes
    # 32 codes fill `bits` words exactly, so every run of 32 has the same arrangement.
    values = padded.view(rows, runs, 32)
    out = torch.zeros(rows, runs, bits + 1, dtype=torch.int64, device=codes.device)
    for k in range(32):
        word, shift = divmod(k * bits, 32)
        moved = values[:, :, k] << shift
        out[:, :, word] |= moved & 0xFFFFFFFF
        if shift + bits > 32:
            out[:, :, word + 1] |= moved >> 32
    words = out[:, :, :bits].reshape(rows, runs * bits)[:, : words_per_row(columns, bits)]
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_rows(words: Tensor, bits: int, columns: int) -> Tensor:
    """uint8 [rows, columns]: the inverse of pack_rows."""
    rows = words.shape[0]
    runs = (columns + 31) // 32
    padded = torch.zeros(rows, runs * bits, dtype=torch.int64, device=words.device)
    padded[:, : words.shape[1]] = words.long() & 0xFFFFFFFF
    source = padded.view(rows, runs, bits)
    out = torch.empty(rows, runs, 32, dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for k in range(32):
        word, shift = divmod(k * bits, 32)
        value = source[:, :, word] >> shift
        if shift + bits > 32:
            value = value | source[:, :, word + 1] << (32 - shift)
        out[:, :, k] = (value & mask).to(torch.uint8)
    return out.view(rows, runs * 32)[:, :columns].contiguous()
