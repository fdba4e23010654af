"""Axes: values along the bottom, shares of all weights at the left, plain or logarithmic."""

from __future__ import annotations

import math

import pyqtgraph as pg
from PySide6.QtGui import QPainter, QPicture


class _Axis(pg.AxisItem):
    def prepare(self) -> None:
        """Works out ticks and words before they are painted: that takes longer than painting them."""
        if self.picture is None:
            nowhere = QPicture()  # the painter does not keep it
            painter = QPainter(nowhere)
            self.paint(painter, None, None)
            painter.end()


class ValueAxis(_Axis):
    """Real numbers, written as short as their step allows."""

    def __init__(self) -> None:
        super().__init__("bottom")
        self.enableAutoSIPrefix(False)
        self.setStyle(tickLength=-4, tickTextOffset=4)

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        return [number(v, spacing) for v in values]


class ShareAxis(_Axis):
    """Percent, from `base` on. With `logarithmic`, places are the decimal logarithms of percent."""

    def __init__(self) -> None:
        super().__init__("left")
        self.enableAutoSIPrefix(False)
        self.setStyle(tickLength=-4, tickTextOffset=4, maxTickLevel=0)
        self.logarithmic = False
        self.base = 0.0

    def tickValues(self, low: float, high: float, size: float) -> list[tuple[float, list[float]]]:
        if not self.logarithmic:
            levels = super().tickValues(low, high, size)
            return [(step, [v for v in values if v >= self.base]) for step, values in levels]
        low = max(low, self.base)
        decades = [float(d) for d in range(math.ceil(low), math.floor(high) + 1)]
        step = max(1, math.ceil(len(decades) * 24 / max(size, 1.0)))
        return [(float(step), [d for d in decades if d % step == 0])]

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        if not self.logarithmic:
            return [number(v, spacing) for v in values]
        return [f"{10**v:g}" if v >= -4 else f"1e{round(v)}" for v in values]


def number(value: float, step: float) -> str:
    """A tick's number with the decimals of its step: 0.05, −0.1, 2e-05. A true minus, and 0 for what is next to it."""
    if abs(value) < step * 1e-6:
        return "0"
    if step < 1e-5 or abs(value) >= 1e6:
        text = f"{value:.{max(0, math.floor(math.log10(abs(value))) - math.floor(math.log10(step)))}e}"
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text
