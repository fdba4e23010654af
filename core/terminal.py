"""What the command line looks like: tables, the progress line, streams that never break. What is said is in cli.py."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from core.engine.progress import Meter, Speed, bytes_text, duration_text
from core.errors import Cancelled

# A terminal is repainted this often; a log file gets a line this often.
_REPAINT_SECONDS = 0.1
_LINE_SECONDS = 10.0


def prepare_streams() -> None:
    """Characters that a console cannot show become "?" instead of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def silence_stdout() -> None:
    """The reader of our output has left (`| head`): nothing more is said, the interpreter's last flush included."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def json_text(value: Any) -> str:
    """One JSON object that every parser reads: what is not finite becomes null."""
    return json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned lines. A column whose title begins with ">" is right-aligned."""
    titles = [title.removeprefix(">") for title in columns]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    right = [title.startswith(">") for title in columns]
    for row in (titles, *rows):
        cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        yield "  ".join(cells).rstrip()


class Progress:
    """A JobContext for people: one line on stderr, repainted on a terminal, now and then repeated elsewhere.

    Ctrl-C inside `interruptible()` makes check() raise Cancelled; a second one ends the program the hard way.

    amount  how done, total and rate are said
    """

    def __init__(self, stream: TextIO | None = None, amount: Callable[[float], str] = bytes_text) -> None:
        self._amount = amount
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._meter = Meter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last = 0.0 if self._terminal else time.monotonic()
        self._width = 0

    def progress(self, done: int, total: int, note: str = "") -> None:
        with self._lock:
            speed = self._meter.update(done, total)
            now = time.monotonic()
            if now - self._last < (_REPAINT_SECONDS if self._terminal else _LINE_SECONDS):
                return
            self._last = now
            self._say(_progress_text(speed, note, self._amount))

    def partial(self, value: Any) -> None:
        pass

    def check(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a closed stderr stops no job
            if self._terminal:
                text = text[: max(20, shutil.get_terminal_size().columns - 1)]
                self._stream.write("\r" + text.ljust(self._width))
                self._width = len(text)
            else:
                self._stream.write(text + "\n")
            self._stream.flush()

    def clear(self) -> None:
        """The line is gone; what follows starts at the left."""
        with self._lock, contextlib.suppress(OSError):
            if self._terminal and self._width:
                self._stream.write("\r" + " " * self._width + "\r")
                self._stream.flush()
                self._width = 0

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[Progress]:
        before = signal.getsignal(signal.SIGINT)

        def stop(*_: object) -> None:
            self._stop.set()
            signal.signal(signal.SIGINT, before)

        own = threading.current_thread() is threading.main_thread()
        if own:
            signal.signal(signal.SIGINT, stop)
        try:
            yield self
        finally:
            if own:
                signal.signal(signal.SIGINT, before)
            self.clear()


def tokens_text(count: float) -> str:
    return f"{count:,.0f} tokens"


def _progress_text(speed: Speed, note: str, amount: Callable[[float], str]) -> str:
    parts = [f"{100 * speed.share:3.0f} %", f"{amount(speed.done)} of {amount(speed.total)}"]
    if speed.rate:
        parts.append(f"{amount(speed.rate)}/s")
    if speed.eta_seconds is not None and speed.done < speed.total:
        parts.append(f"{duration_text(speed.eta_seconds)} left")
    if note:
        parts.append(note)
    return "  ".join(parts)
