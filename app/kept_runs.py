"""Runs that are not finished, written down in the user's data folder: what it takes to go on with one after the window
was closed, or the program ended in some other way. What was computed lies beside the output (core/engine/journal.py);
here is only which run it was. No Qt.

A run's file is there from its beginning to its end, so a crash leaves it too. What cannot be read is left alone: it may
be from a newer program.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.calibration import CalibrationChoice
from core.errors import WorkbenchError
from core.recipes.model import Recipe

VERSION = 1


@dataclass(frozen=True)
class KeptRun:
    """One run.

    force      an existing output was to be replaced, and the user had agreed
    permille   how far it was when it stopped, −1: not known
    discard    what it left is unwanted, and could not be removed when the window closed
    time       seconds since 1970 of the last change
    """

    out: Path
    checkpoint: Path
    recipe: Recipe
    target: str
    device: str
    calibration: CalibrationChoice = field(default_factory=CalibrationChoice)
    force: bool = False
    permille: int = -1
    discard: bool = False
    time: float = 0.0

    @property
    def progress(self) -> str:
        """ "at 45 %", or "" where that is not known."""
        return f"at {self.permille / 10:.0f} %" if self.permille >= 0 else ""


def base_folder() -> Path:
    """QUANTBENCH_RUNS, or a part of the user's data."""
    import platformdirs

    given = os.environ.get("QUANTBENCH_RUNS")
    return Path(given) if given else Path(platformdirs.user_data_dir("quantbench", appauthor=False)) / "runs"


def keep(run: KeptRun) -> str:
    """Writes a run down, in the place of what was written of this output before. Returns why that did not work, or "":
    no run fails because of it."""
    from core.atomic import write_whole
    from core.recipes.toml import dumps

    choice = run.calibration
    entry = {
        "quantbench": VERSION,
        "out": str(run.out),
        "checkpoint": str(run.checkpoint),
        "recipe": dumps(run.recipe),
        "target": run.target,
        "device": run.device,
        "calibration": [choice.source, str(choice.path or ""), choice.samples, choice.length, choice.seed],
        "force": run.force,
        "permille": run.permille,
        "discard": run.discard,
        "time": time.time(),
    }
    path = _path(run.out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(entry))
    except (OSError, WorkbenchError) as error:
        return str(error)
    return ""


def forget(out: Path) -> None:
    """The run is over, or not wanted any more."""
    try:
        _path(out).unlink(missing_ok=True)
    except OSError:
        return  # it is looked at again at the next start, and is of no run then


def kept_runs() -> list[KeptRun]:
    """Runs that can go on, the last one first. Removes what is left of unwanted ones; forgets runs of which nothing is
    left; leaves those alone that another window is doing, or whose disk is not there now."""
    from core.engine.journal import in_use, journal_path
    from core.engine.pipeline import can_resume

    found = []
    try:
        paths = sorted(base_folder().glob("*.json"))
    except OSError:
        return []
    for path in paths:
        run = _read(path)
        if run is None or not run.out.parent.is_dir() or in_use(journal_path(run.out)):
            continue
        if run.discard:
            discard_rest(run.out)
        elif can_resume(run.out) or run.permille == 0:
            found.append(run)
        else:
            forget(run.out)
    return sorted(found, key=lambda run: -run.time)


def discard_rest(out: Path) -> None:
    """Removes what a stopped run left beside `out`, and forgets the run."""
    import shutil

    from core.engine.journal import journal_path
    from core.engine.writer import partial_path

    path = Path(out).absolute()
    partial = partial_path(path)
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)
    journal_path(path).unlink(missing_ok=True)
    forget(path)


def _path(out: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(out.absolute())).hexdigest()
    return base_folder() / f"{digest[:24]}.json"


def _read(path: Path) -> KeptRun | None:
    from core.recipes.toml import loads

    try:
        entry: Any = json.loads(path.read_text(encoding="utf-8"))
        if entry["quantbench"] != VERSION:
            return None
        source, text, samples, length, seed = entry["calibration"]
        choice = CalibrationChoice(source, Path(text) if text else None, int(samples), int(length), int(seed))
        return KeptRun(
            out=Path(entry["out"]),
            checkpoint=Path(entry["checkpoint"]),
            recipe=loads(entry["recipe"], path),
            target=str(entry["target"]),
            device=str(entry["device"]),
            calibration=choice,
            force=bool(entry["force"]),
            permille=int(entry["permille"]),
            discard=bool(entry["discard"]),
            time=float(entry["time"]),
        )
    except (OSError, ValueError, KeyError, TypeError, WorkbenchError):
        return None
