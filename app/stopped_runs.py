"""Runs that were stopped and can go on: of this window, and those that earlier windows left. The notice bar offers one
after the other, Resume and Discard are about the one that is offered. What is written down of them is in kept_runs.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.edits import Document
from app.kept_runs import KeptRun, discard_rest
from app.session import Notice

if TYPE_CHECKING:
    from app.main_window import MainWindow
    from app.quantizing import Reopened


class StoppedRuns:
    """One per window."""

    def __init__(self, window: MainWindow) -> None:
        self._window = window
        self.runs: list[KeptRun] = []

    @property
    def first(self) -> KeptRun | None:
        """The run that Resume and Discard are about."""
        return self.runs[0] if self.runs else None

    def took_rest(self, run: KeptRun) -> None:
        """What a run left, and that it can go on, is said by whoever calls."""
        self.no_more(run.out)
        self.runs.insert(0, run)

    def took_stop(self, run: KeptRun) -> None:
        self.took_rest(run)
        self._offer(f"{run.out.name} was stopped; what is done is kept")

    def took_kept(self, runs: list[KeptRun]) -> None:
        """Runs that earlier windows left. One that began here meanwhile is not offered."""
        known = {info.out for info in self._window.jobs.jobs()} | {run.out for run in self.runs}
        new = [run for run in runs if run.out not in known]
        self.runs += new
        if new and self.runs[0] is new[0]:
            self._offer_next()

    def took_reopened(self, reopened: Reopened) -> None:
        """A run of an earlier window goes on: its checkpoint and recipe come back, unless another is open."""
        request, session = reopened.request, self._window.session
        if session.checkpoint is None:
            choice = request.kept.calibration
            session.open(request.checkpoint, self, reopened.totals)
            session.begin(Document(request.plan.recipe, request.plan.target.name, choice))
            session.set_device(request.device, self)

    def resume(self) -> None:
        run = self.first
        if run is not None:
            self.no_more(run.out)
            self._window.quantizer.again(run)
            self._window.notices.dismiss()
            self._window.show_panel("jobs")
            self._offer_next()

    def discard(self) -> None:
        run = self.first
        if run is not None:
            self.no_more(run.out)
            discard_rest(run.out)
            self._window.notices.dismiss()
            self._offer_next()

    def no_more(self, out: Path) -> None:
        """A run to this output is not stopped any more."""
        self.runs = [run for run in self.runs if run.out != out]

    def _offer_next(self) -> None:
        run = self.first
        if run is not None:
            more = f" ({len(self.runs) - 1} more like it)" if len(self.runs) > 1 else ""
            self._offer(" ".join(f"{run.out.name} stopped {run.progress}".split()) + f" and can go on{more}")

    def _offer(self, text: str) -> None:
        self._window.session.notify(Notice("warning", text, actions=("resume-run", "discard-run")))
        self._window.refresh_actions()
