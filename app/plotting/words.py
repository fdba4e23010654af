"""Numbers as people read them beside a plot. No Qt."""

from __future__ import annotations

import math


def percent(value: float, column: bool = False) -> str:
    """0.3 → "0.3 %", 12.34 → "12 %": two figures; less than a ten-thousandth of a percent says so. column: zeros at the
    end stay ("0.30 %"), as the numbers stand under one another."""
    if value == 0:
        return "0 %"
    if value < 1e-4:
        return "< 0.0001 %"
    if value >= 99.95:
        return "100 %"
    digits = max(0, 1 - math.floor(math.log10(value)))
    text = f"{value:.{min(digits, 5)}f}"
    return f"{text if column or not digits else text.rstrip('0').rstrip('.')} %"


def short(value: float, column: bool = False, figures: int = 3) -> str:
    """Three figures, a true minus: 0.0213, −1.2e-5. column: zeros at the end stay (0.100, 1.90)."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value:#.{figures}g}".rstrip(".") if column else f"{value:.{figures}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return "−" + text[1:] if text.startswith("-") else text


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 column", "12 columns", "3,120 weights"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
