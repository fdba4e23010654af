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
    """A palette of at most COLORS colours, and which of them stands for each of `found`.

    The box of colours that is farthest from its mean, pixel by pixel, is cut in two until there are enough (Heckbert
    1982, with the variance of Wu 1991): a line in a colour of its own weighs more than a thousand shades of grey. Where
    one colour makes up most of a box, it stands for it exactly.
    """
    if len(found) <= COLORS:
        return found, np.arange(len(found))
    points = np.stack([(found >> shift) & 0xFF for shift in (16, 8, 0)], 1).astype(np.float64)

    def spread(box: NDArray[np.intp]) -> tuple[float, int, float]:
        """Sum of squared distances, the widest axis, the mean along it."""
        weights, own = counts[box].astype(np.float64), points[box]
        mean = np.average(own, axis=0, weights=weights)
        parts = (weights[:, None] * (own - mean) ** 2).sum(0)
        axis = int(np.argmax(parts))
        return float(parts.sum()), axis, float(mean[axis])

    boxes = [(spread(every := np.arange(len(found))), every)]
    while len(boxes) < COLORS:
        at = max(range(len(boxes)), key=lambda i: boxes[i][0][0])
        (worth, axis, mean), box = boxes.pop(at)
        if worth <= 0:
            boxes.append(((worth, axis, mean), box))
            break
        lower = points[box, axis] <= mean
        boxes += [(spread(part), part) for part in (box[lower], box[~lower])]
    palette, index = np.empty(len(boxes), np.uint32), np.empty(len(found), np.intp)
    for i, (_, box) in enumerate(boxes):
        most = box[np.argmax(counts[box])]
        mean_color = np.average(points[box], axis=0, weights=counts[box]).round().astype(np.uint32)
        whole = 2 * counts[most] > counts[box].sum()
        palette[i] = found[most] if whole else (mean_color[0] << 16) | (mean_color[1] << 8) | mean_color[2]
        index[box] = i
    return palette, index
