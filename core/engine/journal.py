"""Which units of a run are finished, in a file beside the growing output: one JSON line each, after a first line that
says which run it belongs to. A resumed run continues from it; a finished run removes it.

A unit's line is written only after its bytes were flushed, so a line is never ahead of the data. A torn last line is
what a killed writer leaves; it counts as not written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import core
from core.calibration import kept
from core.engine import units
from core.engine.model import Plan
from core.engine.work import UnitResult
from core.engine.writer import output_error
from core.errors import OutputError

JOURNAL_VERSION = 2
# What each digest of the first line stands for, as a user would say it.
_WORDS = {
    "version": "the version of Quantbench",
    "checkpoint": "the checkpoint",
    "target": "the target",
    "recipe": "the recipe",
    "layout": "the layout of the file",
    "statistics": "the calibration data",
    "device": "the device",
    "measure": "the measuring of errors",
}


def journal_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.journal")


def identity(plan: Plan, device: str, measure: bool) -> dict[str, str]:
    """What must be equal for the bytes of two runs to be equal, each as a short text."""
    tensors = hashlib.sha256()
    for t in plan.tensors:
        tensors.update(repr((t.tensor.name, t.tensor.shape, t.strategy, t.format, t.copy)).encode())
    layout = hashlib.sha256()
    for file in plan.layout.files:
        layout.update(repr((file.name, file.nbytes, len(file.head))).encode())
        layout.update(file.head)
    for name, content in plan.layout.sides.items():
        layout.update(repr((name, len(content))).encode())
        layout.update(content)
    for name, places in plan.layout.places.items():
        layout.update(repr((name, [(p.stored.name, p.file, p.offset, p.stored.nbytes) for p in places])).encode())
    return {
        "version": f"{core.__version__} {JOURNAL_VERSION} {units.UNIT_WEIGHTS}",
        "checkpoint": plan.fingerprint,
        "target": plan.target.name,
        "recipe": tensors.hexdigest(),
        "layout": layout.hexdigest(),
        "statistics": calibration_identity(plan) or plan.known.identity,
        "device": device.partition(":")[0],
        "measure": str(measure),
    }


def calibration_identity(plan: Plan) -> str:
    """What must be equal for two calibrated runs to gather the same; "" for a run that gathers nothing."""
    if plan.calibration is None:
        return ""
    return f"calibration {kept.VERSION} {plan.calibration.identity} {kept.libraries()}"


class Journal:
    """Open for appending, and locked: a second run on the same output is refused.

    done  results of the units that an earlier run finished
    """

    def __init__(self, path: Path, run: Mapping[str, str], *, resume: bool) -> None:
        """raises  OutputError when another run holds it, or, resuming, when it belongs to another run"""
        self.path = path
        self.done: dict[int, UnitResult] = {}
        created = not path.exists()
        try:
            self._file = open(path, "x+b" if created else "r+b")  # noqa: SIM115 (held for the whole run)
        except FileExistsError as error:
            raise OutputError("another run is writing this output", where=path) from error
        except OSError as error:
            raise output_error(error, path.parent) from error
        try:
            self._lock()
            if not path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                raise OutputError("another run has just finished this output", "try again", path)
            self._run = dict(run)
            end = self._read(run) if resume else 0
            if end:
                self._file.seek(end)
                self._file.truncate()
            else:
                self.restart()
        except BaseException:
            self.close()
            if created:
                path.unlink(missing_ok=True)
            raise

    def restart(self) -> None:
        """Nothing is finished."""
        self.done = {}
        self._file.seek(0)
        self._file.truncate()
        self._append([{"quantbench": "journal", **self._run}])

    def _lock(self) -> None:
        try:
            _hold(self._file)
        except OSError as error:
            raise OutputError("another run is writing this output", "wait for it, or stop it", self.path) from error

    def _read(self, run: Mapping[str, str]) -> int:
        """Fills `done`; returns the offset behind the last good line, 0 when there is nothing to continue."""
        lines = self._file.read().split(b"\n")
        complete = lines[:-1]  # what follows the last line break is torn, or empty
        header = _header(complete[0]) if complete else None
        if header is None:
            return 0
        changed = _changed(header, run)
        if changed:
            raise OutputError(
                f"cannot be resumed: {_listed(changed)} changed since it was stopped",
                "run it again without --resume to start from the beginning",
                self.path,
            )
        end = len(complete[0]) + 1
        for line in complete[1:]:
            result = _result(_parsed(line))
            if result is None:
                break
            self.done[result.index] = result
            end += len(line) + 1
        return end

    def write(self, results: list[UnitResult]) -> None:
        """The bytes of these units are on disk. Raises OutputError."""
        self._append(
            [
                {
                    "unit": r.index,
                    "seconds": round(r.seconds, 6),
                    "written": r.written,
                    "errors": r.errors,
                    "fallbacks": r.fallbacks,
                    "outputs": r.outputs,
                }
                for r in results
            ]
        )

    def _append(self, lines: list[dict[str, Any]]) -> None:
        try:
            self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise output_error(error, self.path) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be flushed was reported by write()
            self._file.close()

    def remove(self) -> None:
        """The run is over; nothing to continue."""
        if os.name == "nt":
            self.close()  # Windows removes closed files only
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.close()


def in_use(path: Path) -> bool:
    """Whether a run holds this journal now, in this process or another."""
    try:
        with open(path, "r+b") as file:
            try:
                _hold(file)
            except OSError:
                return True
    except OSError:
        return False
    return False


def _hold(file: BinaryIO) -> None:
    """Locks a file for one run. The lock goes when it is closed, or with the process, however that ends. raises OSError
    when another has it"""
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 40)  # locks forbid reading there; far beyond any journal
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        file.seek(0)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def differences(path: Path, run: Mapping[str, str]) -> list[str]:
    """What about the journal's run is not as in this one, in words. What is no journal differs in nothing: a resumed
    run starts from the beginning then."""
    try:
        with open(path, "rb") as file:
            header = _header(file.readline(1 << 16))
    except OSError:
        return ["the journal"]
    return [] if header is None else _changed(header, run)


def _header(line: bytes) -> dict[str, Any] | None:
    entry = _parsed(line)
    return entry if isinstance(entry, dict) and entry.get("quantbench") == "journal" else None


def _changed(header: Mapping[str, Any], run: Mapping[str, str]) -> list[str]:
    return [word for key, word in _WORDS.items() if header.get(key) != run.get(key)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _result(entry: Any) -> UnitResult | None:
    try:
        errors, outputs = entry["errors"], entry["outputs"]
        return UnitResult(
            index=int(entry["unit"]),
            seconds=float(entry["seconds"]),
            written=int(entry["written"]),
            errors=None if errors is None else tuple(float(v) for v in errors),
            fallbacks=tuple(str(text) for text in entry["fallbacks"]),
            outputs=None if outputs is None else tuple(float(v) for v in outputs),
        )
    except (TypeError, KeyError, ValueError):
        return None


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
