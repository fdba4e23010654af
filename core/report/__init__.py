"""A finished run as one HTML page that needs nothing else: no script, no font, no picture from elsewhere, plots as SVG,
light and dark as the reader's system is, fit for printing. What it says is gathered in facts.py, drawn in drawing.py
and charts.py, put together in page.py. No Qt: the command line and the window both call `write_report`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.engine.model import Plan, Report


def write_report(path: str | Path, plan: Plan, report: Report) -> int:
    """Writes the page of a finished run, whole or not at all; returns its size in bytes.

    raises  OutputError
    """
    from core.atomic import write_whole
    from core.report.facts import facts_of
    from core.report.page import page_of

    data = page_of(facts_of(plan, report)).encode("utf-8")
    write_whole(path, data)
    return len(data)
