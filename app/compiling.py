"""Says in the window that a kernel is being compiled: the first preview or run in a format waits for that, some seconds
and once per machine. Kernels are compiled in whichever thread needs them; the notice is shown from the window's own.
"""

from __future__ import annotations

import weakref

from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot
from shiboken6 import isValid

from app.frame.notices import NoticeBar
from app.session import Notice
from core.formats.fitting.compiled import watch

# What takes less is not worth a line.
PATIENCE_MS = 400

# The kernel that is no format's.
COUNTING = "what counts weights"


class CompilingNotice(QObject):
    """Puts a note into the bar while kernels are compiled, and takes it away afterwards."""

    _told = Signal(str, bool)

    def __init__(self, bar: NoticeBar) -> None:
        super().__init__(bar)
        self._bar = bar
        self._under_way: list[str] = []
        self._shown: Notice | None = None
        self._patience = QTimer(self)
        self._patience.setSingleShot(True)
        self._patience.setInterval(PATIENCE_MS)
        self._patience.timeout.connect(self._show)
        self._told.connect(self._take, Qt.ConnectionType.QueuedConnection)
        me = weakref.ref(self)

        def tell(name: str, begins: bool) -> None:
            notice = me()
            if notice is not None and isValid(notice):
                notice._told.emit(name, begins)

        end = watch(tell)
        self.destroyed.connect(lambda: end())

    @Slot(str, bool)
    def _take(self, name: str, begins: bool) -> None:
        if begins:
            self._under_way.append(name)
            self._patience.start()
            return
        if name in self._under_way:
            self._under_way.remove(name)
        if not self._under_way:
            self._patience.stop()
            if self._shown is not None and self._bar.notice is self._shown:
                self._bar.dismiss()
            self._shown = None

    @Slot()
    def _show(self) -> None:
        names = list(dict.fromkeys(self._under_way))
        formats = ", ".join(n for n in names if n != "count_into")
        parts = [COUNTING] if "count_into" in names else []
        parts += [f"the search for {formats}"] if formats else []
        notice = Notice("note", f"Compiling {' and '.join(parts)}: some seconds, once on this machine")
        self._bar.show_notice(notice)
        # Something more important may be on show.
        self._shown = notice if self._bar.notice is notice else None
