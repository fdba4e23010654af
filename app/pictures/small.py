"""Pictures of a window as small files: a palette of 256 colours, picked so that large areas keep theirs exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PySide6.QtGui import QImage

COLORS = 256


def save_small(image: QImage, path: Path) -> bool:
    """Writes a PNG with a palette. Whether it could be written."""
    rgb = image.convertToFormat(QImage.Format.Format_RGB32)
    height, width = rgb.height(), rgb.width()
    words = np.frombuffer(rgb.constBits(), np.uint32).reshape(height, rgb.bytesPerLine() // 4)[:, :width] & 0xFFFFFF
    found, place, counts = np.unique(words, return_inverse=True, return_counts=True)
    palette, index = reduced(found, counts)
    codes = np.ascontiguousarray(index[place].reshape(height, width).astype(np.uint8))
    padded = np.zeros((height, -(-width // 4) * 4), np.uint8)
    padded[:, :width] = codes
    small = QImage(padded.data, width, height, padded.shape[1], QImage.Format.Format_Indexed8)
    small.setColorTable([0xFF000000 | int(c) for c in palette])
    return small.save(str(path), "PNG", 0)  # type: ignore[call-overload]  # the stubs want bytes


def reduced(found: NDArray[np.uint32], counts: NDArray[np.intp]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """A palette of at most COLORS colours, and which of them stands for each of `found`, by cutting the box of colours
    that holds most in two until there are enough (Heckbert 1982). The most frequent half of the palette is kept as it
    is: grounds and text of a window are a few colours that many pixels have."""
    if len(found) <= COLORS:
        return found, np.arange(len(found))
    kept = np.sort(np.argsort(counts)[::-1][: COLORS // 2])
    others = np.setdiff1d(np.arange(len(found)), kept)
    points = np.stack([(found >> shift) & 0xFF for shift in (16, 8, 0)], 1).astype(np.float64)
    boxes = [others]
    while len(boxes) < COLORS - len(kept):
        worth = [np.sqrt(counts[b]).sum() * np.ptp(points[b], axis=0).max() ** 2 if len(b) > 1 else 0.0 for b in boxes]
        at = int(np.argmax(worth))
        if not worth[at]:
            break
        box = boxes.pop(at)
        axis = int(np.argmax(np.ptp(points[box], axis=0)))
        order = box[np.argsort(points[box, axis], kind="stable")]
        total = np.cumsum(np.sqrt(counts[order]))
        cut = int(np.clip(np.searchsorted(total, total[-1] / 2), 1, len(order) - 1))
        boxes += [order[:cut], order[cut:]]
    index = np.empty(len(found), np.intp)
    index[kept] = np.arange(len(kept))
    palette = [found[kept]]
    for i, box in enumerate(boxes):
        mean = np.average(points[box], axis=0, weights=np.sqrt(counts[box])).round().astype(np.uint32)
        palette.append(np.array([(mean[0] << 16) | (mean[1] << 8) | mean[2]], np.uint32))
        index[box] = len(kept) + i
    return np.concatenate(palette), index
