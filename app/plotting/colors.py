"""Every colour of the window, by role, as "#rrggbb", for light and dark. No Qt: app/theme.py makes QColors of them.

Data has the colour, the frame has none. Data colours are those of Okabe and Ito (2008), which people with colour-blind
eyes tell apart, moved in lightness until a line shows 3:1 against the ground of a plot. Text in any of them stands
at 4.5:1 at least. Strategies take their hue from the family of the format and their lightness from its bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class ColorTable:
    """One theme's colours.

    window, base, alternate  ground of the frame, of tables and plots, of every second row
    text, muted, disabled    what is read, what explains, what cannot be used now
    hairline, grid           lines between panels, lines behind data
    hover, selection         grounds of what is pointed at and what is chosen (text stays `text`)
    accent, accent_text      selection marks, the running job and the primary button; text on it
    original … caution       Okabe-Ito: the weights, what they become, the difference, success, doubt
    failure                  vermilion as well: what went wrong
    *_text                   the same hue where it is read as text
    """

    window: str
    base: str
    alternate: str
    text: str
    muted: str
    disabled: str
    hairline: str
    grid: str
    hover: str
    selection: str
    accent: str
    accent_text: str
    original: str
    dequantized: str
    residual: str
    done: str
    caution: str
    failure: str
    done_text: str
    caution_text: str
    failure_text: str

    def items(self) -> list[tuple[str, str]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]


LIGHT = ColorTable(
    window="#f3f4f5",
    base="#ffffff",
    alternate="#f8f9fa",
    text="#1a1d21",
    muted="#5a626b",
    disabled="#9aa1a9",
    hairline="#d7dade",
    grid="#e6e8eb",
    hover="#e8ebee",
    selection="#d3e4f5",
    accent="#0b62ad",
    accent_text="#ffffff",
    original="#7590ab",
    dequantized="#c27a00",
    residual="#d55e00",
    done="#009e73",
    caution="#a68a00",
    failure="#d55e00",
    done_text="#00704f",
    caution_text="#6f5b00",
    failure_text="#a84300",
)

DARK = ColorTable(
    window="#202326",
    base="#181a1d",
    alternate="#1c1f22",
    text="#e3e6e9",
    muted="#9ba3ac",
    disabled="#646c75",
    hairline="#363b40",
    grid="#2a2e33",
    hover="#2a2f34",
    selection="#1e3549",
    accent="#58a6e8",
    accent_text="#0d1a26",
    original="#6f8ba8",
    dequantized="#e69f00",
    residual="#e8702a",
    done="#1fb58a",
    caution="#d9c534",
    failure="#e8702a",
    done_text="#3cc79d",
    caution_text="#e5d450",
    failure_text="#f58a4b",
)

# Hue in degrees of OKLCH and chroma, by family. GGML's types are four families to the eye.
_HUES: dict[str, tuple[float, float]] = {
    "dense": (250.0, 0.012),
    "uniform": (250.0, 0.12),
    "kquants": (165.0, 0.11),
    "legacy": (65.0, 0.12),
    "iquants": (330.0, 0.12),
    "ternary": (20.0, 0.13),
    "floats": (100.0, 0.11),
    "other": (285.0, 0.10),
}


def contrast(a: str, b: str) -> float:
    """The WCAG 2 ratio of two colours, 1 … 21."""
    bright, dim = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def strategy_color(format: str, dark: bool = False) -> str:
    """The colour of a format's name ("q4_k", "int4-g128"; a method or parameters behind it change nothing; "keep" is
    grey)."""
    return _strategy_color(format.partition("+")[0].partition("(")[0].strip().lower(), dark)


@lru_cache(maxsize=512)
def _strategy_color(name: str, dark: bool) -> str:
    family, bits = _family(name)
    hue, chroma = _HUES[family]
    # Half a bit to sixteen, on a logarithmic scale: more bits stand out more from the ground.
    share = min(1.0, max(0.0, math.log2(max(bits, 1.0)) / 4))
    lightness = 0.56 + 0.30 * share if dark else 0.68 - 0.30 * share
    return oklch(lightness, chroma, hue)


def _family(name: str) -> tuple[str, float]:
    """The family a format's colour goes by, and its bits. Names that nobody knows are "other"."""
    from core.errors import RecipeError
    from core.formats import get_format

    if name == "keep":
        return "dense", 16.0
    try:
        known = get_format(name)
    except RecipeError:
        return "other", 4.0
    bits = float(known.bits)
    if known.family == "ggml":
        if name.startswith("iq"):
            return "iquants", bits
        if name.startswith("tq"):
            return "ternary", bits
        if "fp4" in name:
            return "floats", bits
        return ("kquants" if name.endswith("_k") else "legacy"), bits
    if known.family in _HUES:
        return known.family, bits
    return ("floats" if any(word in name for word in ("nf", "fp")) else "other"), bits


def oklch(lightness: float, chroma: float, hue: float) -> str:
    """OKLCH to sRGB (Ottosson 2020); colours that a screen lacks keep lightness and hue, and lose chroma."""
    while True:
        rgb = _oklch_linear(lightness, chroma, math.radians(hue))
        if chroma < 1e-4 or all(-1e-4 <= c <= 1.0001 for c in rgb):
            return "#" + "".join(f"{round(255 * _gamma(min(1.0, max(0.0, c)))):02x}" for c in rgb)
        chroma *= 0.96


def _oklch_linear(lightness: float, chroma: float, angle: float) -> tuple[float, float, float]:
    a, b = chroma * math.cos(angle), chroma * math.sin(angle)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _gamma(c: float) -> float:
    return 12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055


def _luminance(color: str) -> float:
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
