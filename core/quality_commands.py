"""The sub-commands that judge a model, as commands.py has those that make one: the call into core/evaluation, the
object for `--json`, the lines for people.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core.calibration.text import LENGTH, SAMPLES, SEED
from core.commands import Answer, calibrated, log, make_plan_for, plan_options
from core.engine.progress import bytes_text, duration_text
from core.errors import EvaluationError
from core.terminal import Progress, table, tokens_text

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.context import JobContext
    from core.engine.model import Plan
    from core.evaluation.perplexity import Against, Evaluation
    from core.evaluation.text import Windows


def evaluate(args: argparse.Namespace) -> Answer:
    from core.checkpoints import open_checkpoint
    from core.engine.devices import parse_device
    from core.evaluation import experiments, perplexity
    from core.evaluation.subjects import as_model, as_written
    from core.evaluation.text import WindowSettings, read_windows

    if args.against is not None and args.recipe is not None:
        raise EvaluationError("--against and --recipe both say what to compare with", "give one of them")
    device = parse_device(args.device)
    settings = WindowSettings(args.text, args.window, args.stride, args.samples, args.score)
    settings.check()
    with ExitStack() as stack:
        ctx: JobContext = stack.enter_context(_progress())
        checkpoint = stack.enter_context(open_checkpoint(args.checkpoint))
        model = stack.enter_context(as_model(checkpoint))
        windows = read_windows(model.folder(), settings)
        other: Checkpoint | None = None
        plan: Plan | None = None
        if args.against is not None:
            opened = stack.enter_context(open_checkpoint(args.against))
            other = stack.enter_context(as_model(opened, model))
        elif args.recipe is not None:
            plan = _plan(args, checkpoint, ctx)
            other = stack.enter_context(as_written(plan, checkpoint, device=device, ctx=ctx))
        result = perplexity.evaluate(model, windows, against=other, layers=args.layers, device=device, ctx=ctx)
        nbytes = checkpoint.nbytes
        other_bytes = 0 if other is None else other.nbytes
        row = experiments.of_evaluation(
            result,
            windows,
            args.checkpoint,
            recipe="" if plan is None else plan.recipe.name,
            target="" if plan is None else plan.target.name,
            judged=args.against,
            nbytes=nbytes if other is None else other_bytes,
            parameters=model.parameters,
        )
    unlogged = log(row)
    answer = {
        "checkpoint": str(args.checkpoint),
        "text": windows.samples.name,
        "convention": windows.convention,
        "window": args.window,
        "stride": args.stride or args.window,
        "score": args.score,
        "windows": windows.count,
        "tokens": result.perplexity.tokens,
        "perplexity": result.perplexity.value,
        "perplexity_error": result.perplexity.error,
        "bytes": nbytes,
        "device": result.device,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "peak_rss_bytes": result.peak_rss_bytes,
        "original_kept": result.kept,
        "unlogged": unlogged,
    }
    if result.against is not None:
        answer["against"] = {
            "path": None if args.against is None else str(args.against),
            "recipe": None if plan is None else plan.recipe.name,
            "target": None if plan is None else plan.target.name,
            "bytes": other_bytes,
            "bpw": _bpw(model, other_bytes),
            **_against_json(result.against, args.layers),
        }
    return answer, _lines(args, windows, result, plan)


def generate(args: argparse.Namespace) -> Answer:
    from core.checkpoints import open_checkpoint
    from core.evaluation import experiments, generation

    request = generation.Request(args.prompt, args.tokens, args.temperature, args.seed)
    request.check()
    with open_checkpoint(args.checkpoint) as checkpoint, _progress() as ctx:
        made = generation.generate(checkpoint, request, runtime=args.runtime, device=args.device, ctx=ctx)
        row = experiments.of_generation(made, args.checkpoint, checkpoint.nbytes, checkpoint.parameters)
    unlogged = log(row)
    answer = {"checkpoint": str(args.checkpoint), "prompt": args.prompt} | asdict(made) | {"unlogged": unlogged}
    figures = (
        f"{made.output_tokens:,} tokens behind {made.input_tokens:,} in {made.seconds:.2f} s · first after "
        f"{1000 * made.prompt_seconds:,.0f} ms · {made.tokens_per_second:,.1f} tokens/s on {made.runtime}, "
        f"{made.device} · peak memory {bytes_text(made.peak_rss_bytes)}"
    )
    return answer, [args.prompt + made.text, "", figures]


def experiments(args: argparse.Namespace) -> Answer:
    from datetime import datetime
    from pathlib import PurePath

    from core.evaluation.experiments import Log, as_csv, as_json

    log = Log()
    rows = log.rows()
    answer = {"log": str(log.path), "experiments": [as_json(row) for row in rows]}
    if args.csv:
        return answer, as_csv(rows).splitlines()
    if not rows:
        return answer, ["no experiments yet: quantize, evaluate and generate write a row each"]
    shown = [
        (
            datetime.fromtimestamp(row.time).strftime("%Y-%m-%d %H:%M"),
            row.kind,
            PurePath(row.model).name,
            row.recipe or PurePath(row.out).name,
            "" if row.bytes is None else bytes_text(row.bytes),
            _number(row.bpw, ".2f"),
            _number(row.perplexity, ".4f"),
            _number(row.kld, ".5f"),
            _number(row.tokens_per_second, ",.0f"),
            "" if row.seconds is None else duration_text(row.seconds),
        )
        for row in rows
    ]
    titles = ("time", "kind", "model", "recipe", ">size", ">bpw", ">perplexity", ">KLD", ">tokens/s", ">took")
    return answer, list(table(titles, shown))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _plan(args: argparse.Namespace, checkpoint: Checkpoint, ctx: JobContext) -> Plan:
    """Of the recipe, with what it needs to know."""
    from core.recipes import load

    given = argparse.Namespace(
        **{**vars(args), "shard_size": None, "samples": SAMPLES, "length": LENGTH, "seed": SEED},
    )
    options = plan_options(given)
    if args.calibration is not None:
        options |= calibrated(given, checkpoint, ctx, options)
    return make_plan_for(checkpoint, load(args.recipe), args.target, ctx, **options)[0]


def _bpw(model: Checkpoint, nbytes: int) -> float:
    return 8 * nbytes / model.parameters if model.parameters else 0.0


def _against_json(against: Against, layers: bool) -> dict[str, Any]:
    d = against.distance
    found: dict[str, Any] = {
        "perplexity": against.perplexity.value,
        "perplexity_error": against.perplexity.error,
        "perplexity_ratio": d.ratio,
        "perplexity_ratio_error": d.ratio_error,
        "perplexity_difference": d.difference,
        "perplexity_difference_error": d.difference_error,
        "kld_mean": d.kld_mean,
        "kld_error": d.kld_error,
        "kld_median": d.kld_median,
        "kld_p90": d.kld_p90,
        "kld_p99": d.kld_p99,
        "kld_max": d.kld_max,
        "top1_agreement": d.top1_agreement,
        "top1_error": d.top1_error,
        "blocks": [{"name": b.name, "hidden_error": b.relative_error} for b in against.blocks],
    }
    if layers:
        found["layers"] = [
            {"name": e.name, "output_error": e.output_error, "weight_error": e.weight_error, "tokens": e.tokens}
            for e in against.layers
        ]
    return found


def _lines(args: argparse.Namespace, windows: Windows, result: Evaluation, plan: Plan | None) -> list[str]:
    p = result.perplexity
    lines = [
        f"{windows.samples.name}: {windows.convention}, {p.tokens:,} in all",
        f"perplexity {p.value:.4f} ± {p.error:.4f}  {args.checkpoint}",
    ]
    if result.against is not None:
        lines += against_lines(result.against, str(args.against) if plan is None else plan.recipe.name)
    lines += ["the original's part is that of an earlier evaluation of the same text"] if result.kept else []
    lines.append(
        f"{duration_text(result.seconds)} · {result.tokens_per_second:,.0f} tokens/s on {result.device} · "
        f"peak memory {bytes_text(result.peak_rss_bytes)}"
    )
    return lines


def against_lines(against: Against, name: str) -> list[str]:
    """The other model's figures for people."""
    p, d = against.perplexity, against.distance
    lines = [
        f"perplexity {p.value:.4f} ± {p.error:.4f}  {name}",
        f"  ratio {d.ratio:.5f} ± {d.ratio_error:.5f}, difference {d.difference:+.4f} ± {d.difference_error:.4f}",
        f"  KLD mean {d.kld_mean:.6f} ± {d.kld_error:.6f}, median {d.kld_median:.6f}, 99 % {d.kld_p99:.6f}, "
        f"max {d.kld_max:.4f} nats",
        f"  same top token {100 * d.top1_agreement:.2f} ± {100 * d.top1_error:.2f} %",
    ]
    if against.layers:
        rows = [
            (e.name, "–" if e.output_error is None else f"{e.output_error:.3g}", f"{e.weight_error:.3g}")
            for e in against.layers
        ]
        title = "Relative errors of single layers: of their outputs on real inputs, and of their weights"
        lines += ["", title, *table(("tensor", ">output error", ">weight error"), rows), ""]
    return lines


def _progress() -> AbstractContextManager[Progress]:
    return Progress(amount=tokens_text).interruptible()
