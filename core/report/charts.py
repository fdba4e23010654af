"""The charts of a report: error over layers and roles, error by strategy, bytes by role. Each is an SVG element and a
title that says what it shows; None where there is nothing to show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from core.engine.progress import bytes_text
from core.report.drawing import cividis, element, ink_on, label, rgb, svg, ticks, tip
from core.report.facts import Facts, Group, Row
from core.roles import ROLES

WIDTH = 960.0
_LEFT = 132.0
_ROW = 24.0

Chart = tuple[str, str]  # title, SVG


def error_map(facts: Facts) -> Chart | None:
    """Roles down, layers across; in each cell the worst tensor's SQNR. What belongs to no layer stands in front."""
    cells: dict[tuple[str, int | None], Row] = {}
    for row in reversed(facts.measured):
        cells[row.role, row.layer] = row  # the worst comes last
    if not cells:
        return None
    roles = [r for r in ROLES if any(role == r for role, _ in cells)]
    layers: list[int | None] = [*sorted({layer for _, layer in cells if layer is not None})]
    if any(layer is None for _, layer in cells):
        layers.insert(0, None)
    width = max(9.0, min(64.0, (WIDTH - _LEFT - 8) / len(layers)))
    values = [row.sqnr_db or 0.0 for row in cells.values()]
    low, high = min(values), max(values)
    drawn = []
    step = max(1, math.ceil(28 / width))
    for i, layer in enumerate(layers):
        if layer is None or layer % step == 0:
            drawn.append(label(_LEFT + (i + 0.5) * width, 14, "–" if layer is None else str(layer), "middle"))
    for j, role in enumerate(roles):
        y = 22 + j * _ROW
        drawn.append(label(_LEFT - 8, y + 16, role, "end"))
        for i, layer in enumerate(layers):
            if (role, layer) in cells:
                drawn.append(_cell(_LEFT + i * width, y, width, cells[role, layer], low, high))
    bottom = 22 + len(roles) * _ROW
    drawn.append(_scale(_LEFT, bottom + 20, low, high))
    worst = facts.measured[0]
    where = worst.role if worst.layer is None else f"{worst.role} of layer {worst.layer}"
    title = f"Error over layers and roles: the weakest is {where}, {worst.sqnr_db:.1f} dB"
    return title, svg(max(700.0, _LEFT + len(layers) * width + 8), bottom + 64, drawn, title)


def _cell(x: float, y: float, width: float, row: Row, low: float, high: float) -> str:
    value = row.sqnr_db or 0.0
    color = cividis((high - value) / (high - low) if high > low else 0.5)  # the worst is bright, as in the window
    box = element(
        "rect",
        tip(f"{row.name}\n{row.strategy}, SQNR {value:.1f} dB"),
        x=x + 0.5,
        y=y + 0.5,
        width=width - 1,
        height=_ROW - 1,
        fill=rgb(color),
    )
    if width < 30:
        return box
    text = label(x + width / 2, y + 16, f"{value:.1f}", "middle", "cell", style=f"fill:{ink_on(color)}")
    return box + text


def _scale(x: float, y: float, low: float, high: float) -> str:
    """The colours with their numbers."""
    width, parts = 200.0, 40
    drawn = [
        element(
            "rect",
            x=x + i * width / parts,
            y=y,
            width=width / parts + 0.5,
            height=10.0,
            fill=rgb(cividis(i / (parts - 1))),
        )
        for i in range(parts)
    ]
    drawn += [
        label(x, y + 26, f"{high:.1f}"),
        label(x + width, y + 26, f"{low:.1f}", "end"),
        label(x + width + 12, y + 10, "SQNR, dB; low is worse, the worst tensor of each cell"),
    ]
    return "".join(drawn)


def error_by_strategy(facts: Facts) -> Chart | None:
    """A line of dots per strategy, smallest bits first: where its tensors lie on the scale of SQNR."""
    measured = facts.measured
    groups = [g for g in facts.strategies if g.mean_db is not None]
    if not groups:
        return None
    low, high = measured[0].sqnr_db or 0.0, measured[-1].sqnr_db or 0.0
    pad = max(0.5, 0.04 * (high - low))
    low, high = low - pad, high + pad
    left, right = 200.0, WIDTH - 24
    bottom = 12 + len(groups) * _ROW
    scale = (right - left) / (high - low)
    drawn = []
    for value in ticks(low, high, 8):
        x = left + (value - low) * scale
        drawn += [
            element("line", x1=x, x2=x, y1=8.0, y2=bottom, class_="grid"),
            label(x, bottom + 18, f"{value:g}", "middle"),
        ]
    drawn.append(label((left + right) / 2, bottom + 38, "SQNR, dB", "middle"))
    by: dict[str, list[float]] = {}
    for row in measured:
        by.setdefault(row.strategy, []).append(row.sqnr_db or 0.0)
    for j, group in enumerate(groups):
        y = 12 + j * _ROW + _ROW / 2
        drawn.append(label(left - 12, y + 4, f"{_shortened(group.name)}  {group.bpw:.2f} bpw", "end"))
        drawn += _dots(group, by[group.name], left, y, low, scale)
    # Bits buy decibels: say how many.
    few, many = groups[0], groups[-1]
    if few is many:
        title = f"Error by strategy: {few.name} at {few.mean_db:.1f} dB on average"
    else:
        title = f"Error by strategy: {few.mean_db:.1f} dB with {few.name}, {many.mean_db:.1f} dB with {many.name}"
    return title, svg(WIDTH, bottom + 46, drawn, title)


def _dots(group: Group, values: Sequence[float], left: float, y: float, low: float, scale: float) -> list[str]:
    """Tensors within three pixels of each other are one dot whose area grows with their number."""
    counts = Counter(round((v - low) * scale / 3) for v in values)
    drawn = []
    for place, count in sorted(counts.items()):
        about = low + 3 * place / scale
        many = f"{count:,} tensors" if count > 1 else "1 tensor"
        drawn.append(
            element(
                "circle",
                tip(f"{group.name}: {many} at about {about:.1f} dB"),
                cx=left + 3 * place,
                cy=y,
                r=min(9.0, 3 * count**0.35),
                class_="dot",
            )
        )
    if group.mean_db is not None:
        x = left + (group.mean_db - low) * scale
        drawn.append(
            element("line", tip(f"mean {group.mean_db:.1f} dB"), x1=x, x2=x, y1=y - 9, y2=y + 9, class_="mean")
        )
    return drawn


def bytes_by_role(facts: Facts) -> Chart | None:
    """Two bars per role: what it takes in the source, what it takes now."""
    groups = [g for g in facts.roles if g.nbytes]
    if not groups:
        return None
    largest = max(max(g.source_bytes, g.nbytes) for g in groups)
    left, right = _LEFT, WIDTH - 200
    scale = (right - left) / largest
    drawn = []
    for j, g in enumerate(groups):
        y = 4 + j * (_ROW + 4)
        drawn.append(label(left - 8, y + 16, g.name, "end"))
        for offset, nbytes, kind in ((2.0, g.source_bytes, "before"), (12.0, g.nbytes, "after")):
            drawn.append(element("rect", x=left, y=y + offset, width=max(1.0, nbytes * scale), height=9.0, class_=kind))
        end = left + max(g.source_bytes, g.nbytes) * scale + 8
        drawn.append(label(end, y + 16, f"{bytes_text(g.source_bytes)} → {bytes_text(g.nbytes)}", kind="label strong"))
    bottom = 8 + len(groups) * (_ROW + 4)
    for x, kind, text in ((left, "before", "in the source"), (left + 130, "after", "in the output")):
        drawn += [element("rect", x=x, y=bottom + 6, width=12.0, height=9.0, class_=kind)]
        drawn += [label(x + 18, bottom + 15, text)]
    top = max(groups, key=lambda g: g.nbytes)
    share = 100 * top.nbytes / sum(g.nbytes for g in groups)
    title = f"Where the bytes are: {top.name} holds {share:.0f} % of the output"
    return title, svg(WIDTH, bottom + 24, drawn, title)


def _shortened(text: str, limit: int = 18) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
