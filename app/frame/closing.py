"""How the window ends: asks once when work is under way, stops it, and waits until every job has told its end, so that
what a run left is kept or removed as was asked; a few seconds at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QTimer, Slot

from app.jobs import JobId, Outcome

if TYPE_CHECKING:
    from app.main_window import MainWindow

# Jobs get this long to stop.
CLOSE_SECONDS = 5.0


class Closing(QObject):
    """One per window, made after everything that listens to the end of jobs."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self._stopping = self._over = False
        self._patience = QTimer(self)
        self._patience.setSingleShot(True)
        self._patience.setInterval(int(1000 * CLOSE_SECONDS))
        self._patience.timeout.connect(self._close)
        window.jobs.finished.connect(self._job_finished)

    def may_close(self) -> bool:
        """Whether the window may close now. False: the user stays, or it closes by itself when jobs have stopped."""
        window = self._window
        if self._over or (not self._stopping and window.jobs.settled):
            return True
        if self._stopping:
            return False
        running = window.jobs.running()
        runs = tuple(info.title for info in running if window.quantizer.is_run(info.id))
        others = tuple(info.title for info in running if not window.quantizer.is_run(info.id))
        answer = window.dialogs.ask_close(window, runs, others) if running else "pause"
        if answer == "stay":
            return False
        self._stopping = True
        window.setEnabled(False)
        self._patience.start()
        # What was under way may have ended while the question was on the screen.
        for info in window.jobs.running():
            window.quantizer.stop(info.id, discard=answer == "discard", keep_waiting=answer == "pause")
        if window.jobs.settled:
            QTimer.singleShot(0, self, self._close)
        return False

    def leave(self) -> None:
        """The last step: ends all jobs. Those that would not stop are named in the window's `stuck`."""
        window = self._window
        window.stuck = window.jobs.shutdown(CLOSE_SECONDS)
        if window.stuck:
            window.quantizer.note_unwanted()

    def _job_finished(self, job: JobId, outcome: Outcome) -> None:
        if self._stopping and self._window.jobs.settled:
            # After all others who listen to the end of this job.
            QTimer.singleShot(0, self, self._close)

    @Slot()
    def _close(self) -> None:
        if not self._over:
            self._over = True
            self._window.close()
