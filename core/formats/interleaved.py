"""Codes of 4 bits in AWQ's order: eight neighbours of a column share a 32-bit word, nibble i of which holds neighbour
ORDER[i]. Torch, any device; the plain order of other containers is in bitstream.py."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of a word's eight nibbles, lowest bits first. Even rows come before odd ones: AWQ's kernels unpack two at a time.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_columns(codes: Tensor) -> Tensor:
    """int32 [columns, rows/8] of codes 0 … 15, uint8 [rows, columns] with rows a multiple of 8. Row of a word: one
    column's eight neighbours."""
    rows, columns = codes.shape
    eight = codes.view(rows // 8, 8, columns)
    pairs = torch.empty(rows // 8, 4, columns, dtype=torch.uint8, device=codes.device)
    for byte in range(4):
        low, high = ORDER[2 * byte], ORDER[2 * byte + 1]
        pairs[:, byte] = eight[:, low] | eight[:, high] << 4
    # Little-endian: the first byte of a word holds its lowest bits.
    return pairs.permute(2, 0, 1).contiguous().view(-1).view(torch.int32).view(columns, rows // 8)


def unpack_columns(words: Tensor) -> Tensor:
    """uint8 [rows, columns] of int32 [columns, rows/8]: the inverse of pack_columns."""
    columns, words_per_column = words.shape
    pairs = words.contiguous().view(-1).view(torch.uint8).view(columns, words_per_column, 4).permute(1, 2, 0)
    codes = torch.empty(words_per_column, 8, columns, dtype=torch.uint8, device=words.device)
    for byte in range(4):
        codes[:, ORDER[2 * byte]] = pairs[:, byte] & 15
        codes[:, ORDER[2 * byte + 1]] = pairs[:, byte] >> 4
    return codes.view(8 * words_per_column, columns)
