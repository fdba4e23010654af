"""How long the window takes to come up, empty and with a checkpoint, and what Python imports for it.

    python -m benchmarks.startup [--runs 5] [--imports]

Each run is a process of its own. wall: since the process was started, medians; cpu: processor time of the process,
which other programs on the machine do not change. --imports lists the modules that take longest, the later ones too.

The floor: the interpreter itself 20 ms, PySide6's three modules 120 ms, QApplication 30 ms; a window of some 60 widgets
with style sheet and icons 100 ms. Nothing that computes (torch, numba, scipy, pyqtgraph) before the first paint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAVY = ("torch", "numba", "scipy", "pandas", "pyqtgraph", "transformers", "numpy")
DEMO = Path(__file__).resolve().parent.parent / "resources" / "demo"
_SECONDS = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when something heavy was imported before the first paint."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--child", choices=("empty", "demo"), help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        _child(args.child, args.began)
        return 0
    heavy: set[str] = set()
    print(f"{'window':<8}{'reached':<30}{'wall, ms':>10}{'cpu, ms':>10}")
    for window in ("empty", "demo"):
        found = [_run(window) for _ in range(args.runs)]
        heavy.update(*(f["heavy"] for f in found))
        for mark in found[0]["marks"]:
            wall, cpu = (statistics.median(f["marks"][mark][i] for f in found) for i in (0, 1))
            print(f"{window:<8}{mark:<30}{wall:>10.0f}{cpu:>10.0f}")
    print(f"imported before the first paint of what computes: {', '.join(sorted(heavy)) or 'nothing'}")
    if args.imports:
        print(_imports())
    return 1 if heavy - {"numpy"} else 0


def _run(window: str) -> dict[str, Any]:
    done = subprocess.run(_command(window), capture_output=True, text=True, timeout=_SECONDS, check=True, env=_env())
    return json.loads(done.stdout.splitlines()[-1])


def _command(window: str, *options: str) -> list[str]:
    child = ["-m", "benchmarks.startup", "--child", window, "--began", str(time.time())]
    return [sys.executable, *options, *child]


def _env() -> dict[str, str]:
    return {**os.environ, "QT_QPA_PLATFORM": os.environ.get("QT_QPA_PLATFORM", "offscreen")}


def _imports() -> str:
    """The modules with the most time of their own."""
    done = subprocess.run(
        _command("empty", "-X", "importtime"), capture_output=True, text=True, timeout=_SECONDS, check=True, env=_env()
    )
    rows = []
    for line in done.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            rows.append((int(parts[0]), int(parts[1]), parts[2].strip()))
    rows.sort(reverse=True)
    lines = [f"{own / 1000:8.1f}{total / 1000:9.1f}  {name}" for own, total, name in rows[:25]]
    return "\n".join(["own, ms    total  module", *lines, f"{sum(r[0] for r in rows) / 1000:8.1f}           all"])


def _child(what: str, began: float) -> None:
    """Comes up as the program does, and prints when it got how far."""
    marks: dict[str, tuple[float, float]] = {}

    def mark(name: str) -> None:
        marks[name] = 1000 * (time.time() - began), 1000 * time.process_time()

    mark("interpreter")
    from PySide6.QtCore import QEvent, QObject, QSettings

    from app.main import Timing, finish_loading, make_application

    app = make_application()
    mark("Qt ready")
    from app.main_window import MainWindow
    from app.settings import Settings
    from app.theme import Theme

    class Painted(QObject):
        def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802  # Qt's name
            if event.type() == QEvent.Type.Paint and watched not in seen:
                seen.append(watched)
            return False

    seen: list[QObject] = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(QSettings(str(Path(scratch) / "s.ini"), QSettings.Format.IniFormat))
        window = MainWindow(Theme(app), settings)
        mark("window built")
        watch = Painted(window)
        window.centralWidget().installEventFilter(watch)
        window.show()
        while not seen:
            app.processEvents()
        mark("first paint")
        heavy = [name for name in HEAVY if name in sys.modules]
        finish_loading(window, Timing())
        if what == "demo":
            table = window.commands.tensors.table
            table.viewport().installEventFilter(watch)
            window.commands.open_path(DEMO)
            while not (window.session.planned and table.tensors.rowCount() and table.viewport() in seen):
                app.processEvents()
                if not table.tensors.rowCount():
                    seen[:] = [w for w in seen if w is not table.viewport()]
                time.sleep(0.001)
            mark("demo planned and on screen")
        while not window.ready:
            app.processEvents()
            time.sleep(0.001)
        mark("libraries and plots ready")
        window.close()
    print(json.dumps({"marks": marks, "heavy": heavy}))


if __name__ == "__main__":
    sys.exit(main())
