"""What the jobs panel says of every job, in words and numbers: no Qt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from app.jobs import Done, Failed, JobId, JobInfo, Outcome, Progress
from app.reports import describe
from core.engine.model import Report
from core.engine.progress import bytes_text, duration_text

Stage = Literal["waiting", "running", "paused", "done", "failed", "stopped"]

# Icon, colour role and word of each stage: never colour alone.
STAGES: dict[Stage, tuple[str, str, str]] = {
    "waiting": ("clock", "muted", "Waiting"),
    "running": ("play", "accent", "Running"),
    "paused": ("pause", "caution_text", "Paused"),
    "done": ("check-circle", "done_text", "Done"),
    "failed": ("x-circle", "failure_text", "Failed"),
    "stopped": ("prohibit", "muted", "Stopped"),
}


@dataclass(slots=True)
class JobRow:
    """One job, as far as it is known."""

    info: JobInfo
    stage: Stage = "waiting"
    progress: Progress | None = None
    outcome: Outcome | None = None

    @property
    def over(self) -> bool:
        return self.stage in ("done", "failed", "stopped")

    @property
    def permille(self) -> int:
        if self.stage == "done":
            return 1000
        return self.progress.permille if self.progress is not None else 0

    @property
    def read(self) -> str:
        """ "1.2 of 4.1 GiB": how much of the source is done."""
        if self.progress is None or not self.progress.total:
            return ""
        if self.info.unit == "tokens":
            return _tokens(self.progress.done, self.progress.total)
        total, done = bytes_text(self.progress.total), bytes_text(self.progress.done)
        amount, _, unit = total.rpartition(" ")
        if self.progress.done >= self.progress.total:
            return total
        short, _, own = done.rpartition(" ")
        return f"{short} of {amount} {unit}" if own == unit else f"{done} of {total}"

    @property
    def rate(self) -> str:
        if self.stage != "running" or self.progress is None or self.progress.rate is None:
            return ""
        if self.info.unit == "tokens":
            return f"{self.progress.rate:,.0f} tok/s"
        return f"{bytes_text(self.progress.rate)}/s"

    @property
    def left(self) -> str:
        """Empty until an estimate means something."""
        if self.stage != "running" or self.progress is None or self.progress.eta_seconds is None:
            return ""
        return duration_text(self.progress.eta_seconds) if self.progress.eta_seconds else ""

    @property
    def memory(self) -> str:
        """Of this program while the job runs; the peak of a finished run. GiB."""
        report = self.report
        if report is not None and report.peak_rss_bytes:
            return f"{report.peak_rss_bytes / 2**30:.2f}"
        if self.progress is None or not self.progress.rss_bytes:
            return ""
        return f"{self.progress.rss_bytes / 2**30:.2f}"

    @property
    def device(self) -> str:
        return self.info.device

    @property
    def elapsed(self) -> str:
        report = self.report
        if report is not None:
            return duration_text(report.seconds)
        return duration_text(self.progress.elapsed) if self.progress is not None else ""

    @property
    def report(self) -> Report | None:
        result = self.outcome.result if isinstance(self.outcome, Done) else None
        return result if isinstance(result, Report) else None

    @property
    def line(self) -> str:
        """What is under the title: the tensor at work, how it ended, why it failed."""
        if isinstance(self.outcome, Failed):
            return self.outcome.line
        if self.report is not None:
            return describe(self.report).line
        if self.stage == "stopped":
            return "Stopped before the end" if self.progress is not None else "Stopped before it began"
        if self.stage == "done":
            return ""
        return self.progress.note if self.progress is not None else ""

    @property
    def details(self) -> str:
        """What the disclosure opens: a traceback, or the report."""
        if isinstance(self.outcome, Failed):
            return self.outcome.details
        return describe(self.report).details if self.report is not None else ""


def _tokens(done: int, total: int) -> str:
    """ "16 of 66 k tokens", in thousands where there are many."""
    if total < 10_000:
        return f"{done:,} of {total:,} tokens"
    return f"{done / 1000:,.0f} of {total / 1000:,.0f} k tokens"


class JobsState:
    """Heavy jobs of this session, the newest first."""

    def __init__(self) -> None:
        self._rows: dict[JobId, JobRow] = {}

    def __iter__(self) -> Iterator[JobRow]:
        return reversed(tuple(self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, id: JobId) -> JobRow | None:
        return self._rows.get(id)

    def add(self, info: JobInfo) -> JobRow | None:
        """A new job; None for a preview, which has no row."""
        if info.lane != "heavy":
            return None
        return self._rows.setdefault(info.id, JobRow(info))

    def start(self, id: JobId) -> JobRow | None:
        return self._move(id, "running")

    def hold(self, id: JobId, paused: bool) -> JobRow | None:
        row = self._rows.get(id)
        if row is None or row.over:
            return None
        # A job that is let go before its turn waits again.
        return self._move(id, "paused" if paused else "running" if row.progress is not None else "waiting")

    def advance(self, progress: Progress) -> JobRow | None:
        row = self._rows.get(progress.id)
        if row is not None:
            row.progress = progress
            if row.stage == "waiting":
                row.stage = "running"
        return row

    def finish(self, id: JobId, outcome: Outcome) -> JobRow | None:
        row = self._rows.get(id)
        if row is not None:
            row.outcome = outcome
            row.stage = "done" if isinstance(outcome, Done) else "failed" if isinstance(outcome, Failed) else "stopped"
        return row

    def clear(self) -> tuple[JobId, ...]:
        """Forgets the jobs that are over; returns which."""
        gone = tuple(job for job, row in self._rows.items() if row.over)
        for job in gone:
            del self._rows[job]
        return gone

    def _move(self, id: JobId, stage: Stage) -> JobRow | None:
        row = self._rows.get(id)
        if row is not None and not row.over:
            row.stage = stage
        return row
