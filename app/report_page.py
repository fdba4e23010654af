"""The report of a finished run as a page: where to is asked, it is written behind the window, and the bar says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.jobs import Done, Failed, JobId, Outcome
from app.session import Notice
from core.context import JobContext

if TYPE_CHECKING:
    from app.main_window import MainWindow
    from core.engine.model import Plan, Report


@dataclass(frozen=True)
class PageRequest:
    """A report to write: of which run, where to."""

    plan: Plan
    report: Report
    path: Path


def page_task(request: PageRequest, ctx: JobContext) -> Path:
    """Writes the report of a finished run as a page; returns where it is."""
    from core.report import write_report

    write_report(request.path, request.plan, request.report)
    return request.path


class ReportPage:
    """One per window, about the last finished run."""

    def __init__(self, window: MainWindow) -> None:
        self._window = window
        self._job: JobId | None = None  # a page that is being written

    @property
    def possible(self) -> bool:
        return self._window.quantizer.last is not None

    def save(self) -> None:
        """Asks where to and writes the page."""
        last = self._window.quantizer.last
        if last is None:
            return
        plan, report = last
        suggested = report.out.with_name(f"{report.out.stem or report.out.name}-report.html")
        path = self._window.dialogs.save_file(self._window, "Save report", suggested, "Page (*.html)")
        if path is not None:
            request = PageRequest(plan, report, path)
            self._job = self._window.jobs.submit(
                page_task, request, title=f"Report {path.name}", lane="preview", key="report"
            )

    def took_page(self, job: JobId, outcome: Outcome) -> None:
        if job != self._job:
            return
        self._job = None
        if isinstance(outcome, Done):
            self._window.session.notify(Notice("done", f"Report saved as {outcome.result}"))
        elif isinstance(outcome, Failed):
            self._window.session.notify(Notice("error", outcome.line, outcome.details))
