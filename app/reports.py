"""A finished run in words: one line, and the details behind its disclosure. No Qt.

`describe` is called by the run's own task, so that the window finds the words ready: over 50,000 tensors they take
longer than the window may stop.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING

from core.engine.progress import bytes_text

if TYPE_CHECKING:
    from core.engine.model import Report

# Tensors that are listed: those with the largest error.
WORST = 20
_KEPT = 32


@dataclass(frozen=True, slots=True)
class ReportText:
    """line: size, speed, error, fallbacks; details: several lines, where it is and what was not as asked; fallbacks:
    what was not as asked, line by line."""

    line: str
    details: str
    fallbacks: tuple[str, ...]


_KNOWN: OrderedDict[int, tuple[Report, ReportText]] = OrderedDict()


def describe(report: Report) -> ReportText:
    """The words for a report; the same object is looked at once. Safe from any thread."""
    known = _KNOWN.get(id(report))
    if known is not None and known[0] is report:
        return known[1]
    text = ReportText(report_line(report), report_details(report), fallback_lines(report))
    _KNOWN[id(report)] = (report, text)
    while len(_KNOWN) > _KEPT:
        _KNOWN.popitem(last=False)
    return text


def fallback_lines(report: Report) -> tuple[str, ...]:
    """All that went otherwise than asked, the run's list and the tensors' own, each line once."""
    own = (f"{t.name}: {text}" for t in report.tensors for text in t.fallbacks)
    return tuple(dict.fromkeys((*report.fallbacks, *own)))


def report_line(report: Report) -> str:
    """ "4.1 GiB written · 31 M weights/s · SQNR mean 31.2 dB, worst 21.9 dB (blk.0.attn_k.weight)"."""
    parts = [f"{bytes_text(report.nbytes)} written"]
    if report.weights_per_second >= 1e5:
        parts.append(f"{report.weights_per_second / 1e6:.3g} M weights/s")
    measured = [(t.sqnr_db, t.name) for t in report.tensors if t.sqnr_db is not None and math.isfinite(t.sqnr_db)]
    if measured:
        mean = sum(v for v, _ in measured) / len(measured)
        worst = min(measured)
        parts.append(f"SQNR mean {mean:.1f} dB, worst {worst[0]:.1f} dB ({worst[1]})")
    count = len(fallback_lines(report))
    if count:
        parts.append(f"{count} fallback{'s' if count != 1 else ''}")
    return " · ".join(parts)


def report_details(report: Report) -> str:
    """Where the file is, what was not done as asked, and the tensors with the largest error."""
    lines = [
        str(report.out),
        f"{report.nbytes:,} bytes, {report.weights:,} weights, on {report.device}, "
        f"peak memory {bytes_text(report.peak_rss_bytes)}",
    ]
    lines += [f"{key}: {value}" for key, value in report.notes.items()]
    lines += fallback_lines(report)
    known = [(t.sqnr_db, t.strategy, t.name) for t in report.tensors if t.sqnr_db is not None]
    measured = [m for m in known if math.isfinite(m[0])]
    if measured:
        lines += ["", f"SQNR, dB, the worst {min(WORST, len(measured))} of {len(measured)} quantized tensors"]
        # Sorting all of them would keep the window's thread waiting.
        lines += [f"{value:7.1f}  {strategy:<12} {name}" for value, strategy, name in nsmallest(WORST, measured)]
    return "\n".join(lines)
