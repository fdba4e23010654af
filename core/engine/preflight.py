"""The last look before the first byte: the plan's own problems, and whether output, disk, memory and device will do.

Reads the file system, writes nothing. What goes wrong later, while writing, is the writer's to say.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration.statistics import Statistic
from core.engine.model import Plan, PlannedTensor, Problem
from core.errors import DeviceError, PlanError, WorkbenchError

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint

_ORDER = {"error": 0, "warning": 1, "note": 2}
# Below this many bits, codes chosen without knowing which columns matter cost visibly.
LOW_BITS = 4
# Beside the slice of a worker: interpreter, torch, compiled kernels.
_BASE_BYTES = 400 << 20
# Of one weight at work: float32 source, float32 decoded, codes, packed bytes and a copy under way.
_WORK_BYTES = 16


def preflight(
    plan: Plan,
    checkpoint: Checkpoint,
    out: Path | str,
    *,
    device: str = "cpu",
    force: bool = False,
) -> tuple[Problem, ...]:
    """Everything worth knowing before the run, errors first; plan.problems are among them. Errors stop a run."""
    out = Path(os.path.abspath(out))
    found = [*plan.problems, *_source(plan, checkpoint)]
    taken = list(_place(plan, checkpoint, out, force))
    found += taken
    if not any(p.severity == "error" for p in taken):
        found += _disk(plan, out, force)
    found += _device(device)
    found += _memory(plan, device)
    found += _low_bits(plan)
    found += _calibration(plan, checkpoint)
    return tuple(sorted(found, key=lambda p: _ORDER.get(p.severity, 0)))


def require(problems: Sequence[Problem]) -> None:
    """Raises PlanError, with all problems, when one of them is an error."""
    errors = [p for p in problems if p.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise PlanError(f"{errors[0]}{more}", problems=problems)


def working_bytes(plan: Plan, device: str = "cpu", workers: int = 1) -> int:
    """About how much memory a run needs at most: every worker at a largest piece, and the program itself."""
    return _BASE_BYTES + workers * _largest_piece(plan, device)[0] * _WORK_BYTES


def _largest_piece(plan: Plan, device: str) -> tuple[int, PlannedTensor | None]:
    """Weights that a worker holds at once, at most, and whose they are."""
    from core.engine.task import PIECE_WEIGHTS
    from core.engine.units import UNIT_WEIGHTS, row_multiple, rows_within

    limit = PIECE_WEIGHTS if device == "cpu" else UNIT_WEIGHTS
    largest: tuple[int, PlannedTensor | None] = (0, None)
    # Many tensors, few shapes.
    for t in {(t.format, t.tensor.shape): t for t in reversed(plan.planned.samples) if not t.copy}.values():
        multiple = row_multiple(t, plan.target.row_multiple)
        rows = min(t.tensor.rows, rows_within(limit, t.tensor.columns, multiple)) if multiple else t.tensor.rows
        if rows * t.tensor.columns > largest[0]:
            largest = (rows * t.tensor.columns, t)
    return largest


def _source(plan: Plan, checkpoint: Checkpoint) -> Iterable[Problem]:
    try:
        same = checkpoint.fingerprint() == plan.fingerprint
    except (OSError, WorkbenchError) as error:
        yield Problem("error", f"{checkpoint.path} cannot be read any more: {error}", hint="open it again")
        return
    if not same:
        yield Problem("error", f"{checkpoint.path} has changed since it was planned", hint="open it again")


def _place(plan: Plan, checkpoint: Checkpoint, out: Path, force: bool) -> Iterable[Problem]:
    """Whether the output may appear under this name."""
    clash = _clash(plan, checkpoint, out)
    if clash:
        yield Problem("error", f"{out}: {clash}", hint="choose another place")
        return
    parent = out.parent
    if not parent.is_dir():
        word = "is a file" if parent.exists() else "does not exist"
        yield Problem("error", f"the folder {parent} {word}", hint="create it, or choose another place")
        return
    if os.path.lexists(out):
        folder = out.is_dir()
        if folder != plan.folder:
            what, wanted = ("a folder", "a file") if folder else ("a file", "a folder")
            yield Problem(
                "error",
                f"{out} is {what}, and {plan.target.name} writes {wanted}",
                hint=f"name {wanted} that is not there",
            )
            return
        if not force and not (folder and not any(out.iterdir())):
            yield Problem("error", f"{out} exists already", hint="choose another name, or --force to replace it")
            return
    why = _unwritable(parent)
    if why:
        yield Problem("error", f"the folder {parent} cannot be written to: {why}", hint="choose another place")
    suffix = plan.target.suffix
    if suffix and not plan.folder and out.suffix.lower() != suffix:
        yield Problem("note", f"{out.name} does not end in {suffix}, by which programs know such files")


def _clash(plan: Plan, checkpoint: Checkpoint, out: Path) -> str:
    """How the output would meet its own input, symbolic and hard links followed, or ""."""
    here = out.resolve()
    inputs = {Path(path) for path in (checkpoint.path, *checkpoint.files)}
    for path in inputs:
        source = path.resolve()
        if source == here or _same_file(source, here):
            return "is the input itself"
        if here in source.parents:
            return f"holds the input {path}, which would be replaced with it"
    folder = checkpoint.path.resolve()
    if not folder.is_dir() or folder not in here.parents:
        return ""
    if plan.folder:
        return f"lies inside the input folder {checkpoint.path}"
    # A new GGUF beside the weights is how people work; anything that is there already belongs to the input.
    if here.exists() and here.suffix.lower() != ".gguf":
        return f"belongs to the input folder {checkpoint.path}"
    return ""


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def _unwritable(folder: Path) -> str:
    """Why no file can be made here, or "". Permission bits do not know about read-only and network disks: it is tried,
    with a file that has no name or goes at once."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _disk(plan: Plan, out: Path, force: bool) -> Iterable[Problem]:
    """Room for all bytes beside what is there: an output that is replaced goes only after the new one is complete."""
    from core.engine.writer import partial_path

    parent = next(p for p in (out.parent, *out.parents) if p.exists())
    try:
        free = shutil.disk_usage(parent).free
    except OSError as error:
        yield Problem("warning", f"the free space at {parent} is unknown: {error.strerror or error}")
        return
    free += _allocated(partial_path(out))
    if free >= plan.nbytes:
        return
    message = f"{plan.nbytes:,} bytes to write, {max(0, free):,} free at {parent}"
    if force and os.path.lexists(out):
        message += "; the output that is replaced is freed only after the new one is complete"
    yield Problem("error", message, hint=f"free {plan.nbytes - free:,} bytes, or choose another disk")


def _allocated(partial: Path) -> int:
    """Bytes of the disk that the rest of a stopped run holds: a new run takes them over."""
    try:
        files = [partial] if partial.is_file() else [p for p in partial.rglob("*") if p.is_file()]
        # Windows does not say how many blocks; there, files are not sparse.
        return sum(s.st_blocks * 512 if hasattr(s, "st_blocks") else s.st_size for s in (p.stat() for p in files))
    except OSError:
        return 0


def _device(device: str) -> Iterable[Problem]:
    from core.engine.devices import parse_device

    try:
        parse_device(device)
    except DeviceError as error:
        yield Problem("error", error.message, hint=error.hint)


def _memory(plan: Plan, device: str) -> Iterable[Problem]:
    """Slices keep memory small whatever the model; only a format that takes a tensor as a whole can ask for more."""
    import psutil

    there = psutil.virtual_memory()
    weights, largest = _largest_piece(plan, device)
    needed = _BASE_BYTES + weights * _WORK_BYTES
    if largest is None or needed <= there.available:
        return
    name, given = largest.tensor.name, largest.format.name
    if needed > there.total:
        message = (
            f"{given} takes the tensor as a whole: about {needed:,} bytes of memory, and there are {there.total:,}"
        )
        yield Problem("error", message, name, "choose a format with scales per row or group")
    else:
        message = f"about {needed:,} bytes of memory needed, {there.available:,} are free"
        yield Problem("warning", message, name, "close other programs")


def _calibration(plan: Plan, checkpoint: Checkpoint) -> Iterable[Problem]:
    """Room for the hidden states of a calibrated run: two files in the user's cache."""
    from core.calibration.kept import base_folder

    if plan.calibration is None:
        return
    config = checkpoint.config or {}
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    sizes = [config.get(key) for key in ("hidden_size", "n_embd", "d_model")]
    hidden = next((n for n in sizes if isinstance(n, int)), 0)
    needed = 2 * 4 * plan.calibration.ids.size * hidden
    folder = base_folder()
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        yield Problem(
            "error",
            f"calibration needs {needed:,} bytes for hidden states, {free:,} are free at {parent}",
            hint="give fewer or shorter samples, or set QUANTBENCH_CALIBRATION to a folder elsewhere",
        )


def _low_bits(plan: Plan) -> Iterable[Problem]:
    """Nearest codes of few bits, where nobody says which columns matter."""
    if Statistic.IMPORTANCE in plan.kinds:
        return

    def blind(t: PlannedTensor) -> bool:
        low = t.format.bits < LOW_BITS and not t.format.needs_importance
        return low and t.quantized and not t.copy and t.strategy.method == "nearest"

    low = plan.planned.where(blind)
    hint = "give --imatrix, take 4 bits or more, or expect a visible loss"
    by_format: dict[str, list[str]] = {}
    for t in low:
        by_format.setdefault(t.format.name, []).append(t.tensor.name)
    for name, (first, *others) in by_format.items():
        yield Problem("warning", f"{name} without importance data", first, hint, tuple(others))
