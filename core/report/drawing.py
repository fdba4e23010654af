"""SVG in words: elements, text, scales and axes. Colours are CSS variables of the page, so that a drawing follows light
and dark; what charts there are is in charts.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

# cividis (Nuñez, Anderton and Renslow 2018), ten of its colours at equal steps: lightness grows evenly, and people with
# colour-blind eyes see the same order.
CIVIDIS = (
    (0, 34, 78),
    (18, 53, 112),
    (59, 73, 108),
    (87, 93, 109),
    (112, 113, 115),
    (138, 134, 120),
    (165, 156, 116),
    (195, 179, 105),
    (225, 204, 85),
    (254, 232, 56),
)


def cividis(share: float) -> tuple[int, int, int]:
    """The colour at 0 … 1, red, green and blue of 0 … 255."""
    place = min(1.0, max(0.0, share)) * (len(CIVIDIS) - 1)
    i = min(int(place), len(CIVIDIS) - 2)
    part = place - i
    a, b = CIVIDIS[i], CIVIDIS[i + 1]
    return tuple(round(x + part * (y - x)) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def ink_on(color: tuple[int, int, int]) -> str:
    """Black or white, whichever reads better on a colour (WCAG's relative luminance)."""
    r, g, b = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    return "#000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#fff"


def rgb(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def element(tag: str, content: str = "", **attributes: object) -> str:
    """`<tag a="…">content</tag>`; `_` in names of attributes is `-`, a trailing one goes. Content is not escaped."""
    pairs = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(_word(v))}"' for k, v in attributes.items())
    return f"<{tag}{pairs}>{content}</{tag}>" if content else f"<{tag}{pairs}/>"


def label(x: float, y: float, text: str, anchor: str = "start", kind: str = "", **attributes: object) -> str:
    return element("text", escape(text), x=x, y=y, text_anchor=anchor, class_=kind or "label", **attributes)


def tip(text: str) -> str:
    """What is shown under the mouse; the first child of an element."""
    return f"<title>{escape(text)}</title>"


def svg(width: float, height: float, content: Sequence[str], title: str) -> str:
    """A drawing that scales with the page, as wide as it was made at most."""
    return (
        f'<svg viewBox="0 0 {_word(width)} {_word(height)}" style="max-width:{_word(width)}px" role="img" '
        f'aria-label="{escape(title)}">{"".join(content)}</svg>'
    )


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from low to high: 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    rough = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _word(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
