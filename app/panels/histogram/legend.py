"""What the colours and lines of the histogram mean, as a line of rich text."""

from __future__ import annotations

from PySide6.QtGui import QColor

from app.panels.histogram.state import HistogramState
from app.theme import Colors

# Lines of tensors laid over the first: colours that stand for nothing else in this plot.
OVERLAY_ROLES = ("accent", "done", "text", "caution")


def legend_html(state: HistogramState, colors: Colors) -> str:
    """An entry for everything that is drawn; "" where nothing is."""
    if state.result is None:
        return ""
    parts = [_key("■", colors.original, "original")]
    if state.result.dequantized is not None:
        parts.append(_key("━", colors.dequantized, "dequantized"))
        if state.result.residual is not None:
            parts.append(_key("■", colors.residual, "residual, below"))
    if state.legend_zero():  # beside the short ones, so that two lines do where the panel is narrow
        parts.append(_key("┊", colors.muted, state.legend_zero()))
    for role, other in zip(OVERLAY_ROLES, state.laid_over, strict=False):
        parts.append(_key("━", getattr(colors, role), other.name))
    if state.legend_levels():
        parts.append(_key("││", colors.text, state.legend_levels()))
    if state.place is not None and state.group is not None:
        parts.append(_key("││", colors.original, "its weights"))
    if state.legend_limits():
        parts.append(_key("┆", colors.text, state.legend_limits()))
    return f'<div style="line-height: 120%">{"&nbsp;&nbsp; ".join(parts)}</div>'


def _key(sign: str, color: QColor, text: str) -> str:
    """An entry of the legend; it never breaks inside."""
    return f'<span style="color:{color.name()}">{sign}</span>&nbsp;{text.replace(" ", "&nbsp;")}'
