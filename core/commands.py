"""What each sub-command does: the call into the engine, the object for `--json`, the lines for people. What they
accept, and how they fail, is in cli.py.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.engine.progress import bytes_text, duration_text
from core.errors import CalibrationError, OutputError
from core.target_choice import make_plan_for
from core.terminal import Progress, table

if TYPE_CHECKING:
    from core.calibration.text import TextSettings
    from core.checkpoints.base import Checkpoint
    from core.context import JobContext
    from core.engine.model import Plan, Report, TensorReport
    from core.evaluation.experiments import Experiment

# The object for --json, and the lines for people.
Answer = tuple[dict[str, Any], list[str]]


def inspect(args: argparse.Namespace) -> Answer:
    from core.checkpoints import open_checkpoint

    with open_checkpoint(args.checkpoint) as checkpoint:
        tensors = list(checkpoint.tensors.values())
        answer = {
            "path": str(checkpoint.path),
            "kind": checkpoint.kind,
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "bytes": t.nbytes}
                | ({"alias": t.alias} if t.alias else {})
                for t in tensors
            ],
            "parameters": checkpoint.parameters,
            "bytes": checkpoint.nbytes,
        }
    rows = [(t.name, _shape_text(t.shape), t.dtype, bytes_text(t.nbytes)) for t in tensors]
    total = (
        f"{len(tensors):,} tensors · {answer['parameters']:,} parameters · {bytes_text(checkpoint.nbytes)} "
        f"({checkpoint.nbytes:,} bytes) · {checkpoint.kind}"
    )
    return answer, [*table(("tensor", ">shape", "dtype", ">size"), rows), "", total]


def plan(args: argparse.Namespace) -> Answer:
    from core.checkpoints import open_checkpoint
    from core.engine.plan import plan_json
    from core.recipes import load

    with open_checkpoint(args.checkpoint) as checkpoint, progress() as ctx:
        made, why = make_plan_for(checkpoint, load(args.recipe), args.target, ctx, **plan_options(args))
    rows = [
        (t.tensor.name, str(t.strategy), t.rule_text, bytes_text(t.nbytes), f"{t.bpw:.2f}", t.reason)
        for t in made.tensors
    ]
    lines = list(table(("tensor", "strategy", "rule", ">size", ">bpw", "note"), rows))
    answer = plan_json(made) | {"target": made.target.name, "target_why": why}
    return answer, [*lines, "", *_plan_lines(made, why), *map(problem_text, answer["problems"])]


def quantize(args: argparse.Namespace) -> Answer:
    from core.checkpoints import open_checkpoint
    from core.engine.pipeline import run
    from core.evaluation.experiments import of_quantization
    from core.recipes import load

    with open_checkpoint(args.checkpoint) as checkpoint, progress() as ctx:
        options = plan_options(args)
        if args.calibration is not None:
            options |= calibrated(args, checkpoint, ctx, options)
        made, why = make_plan_for(checkpoint, load(args.recipe), args.target, ctx, **options)
        out = output_path(args.out, checkpoint, made)
        if args.report is not None:
            _check_report(args.report, out)
        if not args.json:
            _tell([*_plan_lines(made, why), *(f"{p.severity}: {p}" for p in made.problems if p.severity != "error")])
        report = run(
            made,
            checkpoint,
            out,
            device=args.device,
            workers=args.workers,
            ctx=ctx,
            resume=args.resume,
            force=args.force,
            measure=not args.no_errors,
            keep_partial=args.keep_partial,
            cluster=args.cluster,
        )
    unlogged = log(of_quantization(made, report))
    answer, lines = _report_json(made, report, why) | {"unlogged": unlogged}, _report_lines(report)
    if args.report is not None:
        from core.report import write_report

        write_report(args.report, made, report)
        answer["report"] = str(args.report)
        lines.append(f"{args.report}: the report")
    return answer, lines


def imatrix(args: argparse.Namespace) -> Answer:
    from core.calibration.imatrix import write_imatrix
    from core.calibration.runner import gather
    from core.checkpoints import open_checkpoint
    from core.engine.devices import parse_device
    from core.engine.known import by_gguf
    from core.engine.writer import output_error

    if os.path.lexists(args.out) and not args.force:
        raise OutputError("exists already", "choose another name, or --force to replace it", args.out)
    device = parse_device(args.device)
    with open_checkpoint(args.checkpoint) as checkpoint, progress() as ctx:
        found, _ = gather(checkpoint, _text_settings(args, args.text), device=device, ctx=ctx)
        named, known = by_gguf(found, checkpoint)
        try:
            nbytes = write_imatrix(args.out, named, args.length)
        except OSError as error:
            raise output_error(error, args.out) from error
    unreached = {name: t.counts.count(0) for name, t in named.tensors.items() if not all(t.counts)}
    answer = {
        "out": str(args.out),
        "bytes": nbytes,
        "dataset": named.provenance.dataset,
        "samples": args.samples,
        "length": args.length,
        "seed": args.seed,
        "gguf_names": known,
        "tensors": [{"name": name, "tokens": max(t.counts)} for name, t in named.tensors.items()],
        "unreached": unreached,
    }
    lines = [f"{name}: no token reached {count} of its experts" for name, count in unreached.items()]
    lines += [] if known else ["this model has no names in GGUF: tensors are named as in the checkpoint"]
    total = f"{args.out}: {len(named.tensors):,} tensors · {args.samples:,} samples of {args.length:,} tokens"
    return answer, [*lines, f"{total} of {named.provenance.dataset}"]


def formats(args: argparse.Namespace) -> Answer:
    from core.formats import FORMATS
    from core.methods import METHODS
    from core.recipes import PRESETS
    from core.roles import Role
    from core.targets import TARGETS
    from core.targets.base import OutputTensor, Plain

    # A size that every format fits, and a part that every container quantizes.
    shape = (4096, 4096)
    sample = OutputTensor("blk.0.ffn_down.weight", Plain("w"), shape, "BF16", Role("down", 0))
    listed: list[dict[str, Any]] = [
        {
            "name": f.name,
            "title": f.title,
            "family": f.family,
            "bits": f.bits,
            "bpw": f.bpw(shape),
            "columns": f.columns_per_grid,
            "encodable": f.encodable,
            "targets": [t.name for t in TARGETS if f.encodable and t.refuses(f, sample) is None],
        }
        for f in FORMATS
    ]
    answer = {
        "formats": listed,
        "methods": [{"name": m.name, "title": m.title, "help": m.help} for m in METHODS],
        "presets": [{"name": p.name, "title": p.title, "available": p.available} for p in PRESETS],
        "targets": [{"name": t.name, "title": t.title, "help": t.help} for t in TARGETS],
    }
    rows = [
        (
            f["name"],
            f"{f['bits']:g}",
            f"{f['bpw']:.4g}",
            f["family"],
            str(f["columns"]) if f["columns"] > 1 else "any",
            ", ".join(f["targets"]) if f["encodable"] else "read only",
            f["title"],
        )
        for f in listed
    ]
    lines = list(table(("format", ">bits", ">bpw", "family", ">columns", "targets", "title"), rows))
    lines += ["", "presets: " + ", ".join(p.name for p in PRESETS if p.available)]
    lines += ["methods: " + ", ".join(m.name for m in METHODS)]
    return answer, [*lines, "bpw: bits stored per weight of a 4096×4096 matrix; columns: must be a multiple of this"]


# Choices that the user may leave to us; each is stated in the output


def plan_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `plan` and `quantize` say about a plan besides recipe and target."""
    from core.calibration.imatrix import read_imatrix

    gathered = read_imatrix(args.imatrix) if args.imatrix is not None else None
    return {"gathered": gathered, "shard_bytes": args.shard_size}


def _text_settings(args: argparse.Namespace, path: Path | None) -> TextSettings:
    from core.calibration.text import TextSettings

    return TextSettings(path, args.samples, args.length, args.seed)


def calibrated(
    args: argparse.Namespace, checkpoint: Checkpoint, ctx: JobContext, options: dict[str, Any]
) -> dict[str, Any]:
    """What --calibration adds to the plan. Where importance is all that the recipe's methods use, the model is walked
    through as it is, once for any number of recipes; else the samples go through it while it is quantized."""
    from core.calibration.runner import ALL, LIGHT, gather
    from core.calibration.text import read_samples
    from core.engine.devices import parse_device
    from core.engine.stages import wanted
    from core.recipes import load

    if args.imatrix is not None:
        raise CalibrationError("--imatrix and --calibration both say which columns matter", "give one of them")
    settings = _text_settings(args, Path(args.calibration) if args.calibration else None)
    first, _ = make_plan_for(checkpoint, load(args.recipe), args.target, ctx, **options, statistics=ALL)
    if wanted(first) <= LIGHT:
        return {"gathered": gather(checkpoint, settings, device=parse_device(args.device), ctx=ctx)[0]}
    return {"calibration": read_samples(checkpoint, settings)}


def log(row: Experiment) -> str:
    """Notes a run in the log of experiments. Returns "", or why it waits beside the log, which stderr says too."""
    from core.evaluation.experiments import Log

    why = Log().add(row)
    if why:
        _tell([f"note: {why}"])
    return why


def output_path(out: Path, checkpoint: Checkpoint, plan: Plan) -> Path:
    """`out`, or inside it `model-Q4_K_M.gguf` when it is an existing folder and the target a single file."""
    if plan.folder or not out.is_dir():
        return out
    source = checkpoint.path.resolve()
    stem = source.name if source.is_dir() else re.sub(r"-\d{5}-of-\d{5}$", "", source.stem)
    label = re.sub(r"[^\w.+-]+", "-", plan.recipe.name).strip("-.") or "quantized"
    return out / f"{stem or 'model'}-{label}{plan.target.suffix}"


# Words and figures


def progress() -> AbstractContextManager[Progress]:
    return Progress().interruptible()


def _tell(lines: list[str]) -> None:
    """What is worth knowing before the work is over: on stderr, like all progress."""
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def _plan_lines(plan: Plan, why: str) -> list[str]:
    label = plan.recipe.name or "recipe"
    line = (
        f"{label} → {plan.target.name} ({why}) · {bytes_text(plan.nbytes)} ({plan.nbytes:,} bytes) · "
        f"{plan.bpw:.2f} bits per weight"
    )
    where = plan.outline.statistics
    return [line] if where is None else [line, f"importance from {where.file or where.dataset}"]


def _report_json(plan: Plan, report: Report, why: str) -> dict[str, Any]:
    from core.engine.plan import statistics_json

    return {
        "out": str(report.out),
        "bytes": report.nbytes,
        "seconds": report.seconds,
        "weights": report.weights,
        "weights_per_second": report.weights_per_second,
        "peak_rss_bytes": report.peak_rss_bytes,
        "fallbacks": list(report.fallbacks),
        "target": plan.target.name,
        "target_why": why,
        "bpw": plan.bpw,
        "statistics": statistics_json(plan),
        "device": report.device,
        "notes": dict(report.notes),
        "warnings": [str(p) for p in plan.problems if p.severity == "warning"],
        "tensors": [
            {
                "name": t.name,
                "strategy": t.strategy,
                "bytes": t.nbytes,
                "sqnr_db": t.sqnr_db,
                "relative_mse": t.relative_mse,
                "max_abs": t.max_abs,
                "cosine": t.cosine,
                "output_error": t.output_error,
                "seconds": t.seconds,
            }
            for t in report.tensors
        ],
    }


def _check_report(path: Path, out: Path) -> None:
    """Before hours of work: whether the page can be written at their end."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError("the report cannot be written there", "name a file in a folder that exists", path)
    if path.absolute() == out.absolute():
        raise OutputError("is the output itself", "name another file for the report", path)


def _report_lines(report: Report) -> list[str]:
    from core.analysis.error import decibel

    def error(t: TensorReport) -> float:
        return math.inf if t.sqnr_db is None else t.sqnr_db

    worst = [t for t in sorted(report.tensors, key=error)[:5] if math.isfinite(error(t))]
    lines = []
    if worst:
        rows = [(t.name, t.strategy, bytes_text(t.nbytes), decibel(t.sqnr_db)) for t in worst]
        lines = ["largest errors", *table(("tensor", "strategy", ">size", ">SQNR, dB"), rows), ""]
    known = sorted((t for t in report.tensors if t.output_error is not None), key=lambda t: -(t.output_error or 0.0))
    if known:
        rows = [(t.name, t.strategy, bytes_text(t.nbytes), f"{t.output_error:.3g}") for t in known[:5]]
        head = ("tensor", "strategy", ">size", ">relative")
        lines += ["largest errors of outputs, on the calibration text", *table(head, rows), ""]
    lines += [f"fallback: {text}" for text in report.fallbacks] + [f"note: {text}" for text in report.notes.values()]
    speed = f"{report.weights_per_second / 1e6:.1f} M weights/s on {report.device}"
    return [
        *lines,
        f"{report.out}: {bytes_text(report.nbytes)} ({report.nbytes:,} bytes) in {duration_text(report.seconds)} · "
        f"{speed} · peak memory {bytes_text(report.peak_rss_bytes)}",
    ]


def problem_text(problem: dict[str, Any]) -> str:
    where = f"{problem['tensor']}: " if problem.get("tensor") else ""
    hint = f"; {problem['hint']}" if problem.get("hint") else ""
    return f"{problem['severity']}: {where}{problem['message']}{hint}"


def _shape_text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def figure(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–" if value is None else "NaN" if math.isnan(value) else "∞"
    return "0" if value == 0 else f"{value:.3g}"
