"""`make demo`: the main job on a real checkpoint, from the folder beside this file to a GGUF that llama.cpp loads.

Quantizes to Q4_K_M, prints what each tensor cost, and opens the window on the checkpoint where there is a display; else
it saves the window's picture and says where.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from core.checkpoints import open_checkpoint
from core.engine.model import Plan, Report
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import WorkbenchError
from core.formats.fitting import warm
from core.recipes import load
from core.targets import get_target

DEMO = Path(__file__).parent
PRESET = "Q4_K_M"


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the GGUF and the picture")
    parser.add_argument("--no-window", action="store_true", help="save a picture even where there is a display")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        gguf = args.out / f"pycode-llama-3m-{PRESET}.gguf"
        with open_checkpoint(DEMO) as checkpoint:
            plan = make_plan(checkpoint, load(PRESET), get_target("gguf"))
            print(f"{checkpoint.path} · {checkpoint.parameters:,} weights · {checkpoint.nbytes / 2**20:.2f} MiB")
            print(f"plan: {plan.nbytes:,} bytes, {plan.bpw:.2f} bits per weight\n", flush=True)
            compile_kernels(plan)
            report = run(plan, checkpoint, gguf, force=True)
        print_table(plan, report)
        if gguf.stat().st_size != plan.nbytes:
            print(f"the plan said {plan.nbytes} bytes, the file has {gguf.stat().st_size}", file=sys.stderr)
            return 1
        return show(args.out, args.no_window)
    except WorkbenchError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def compile_kernels(plan: Plan) -> None:
    """The first use of a format on a machine compiles its kernels. Said, so that nobody takes it for the speed."""
    began = time.perf_counter()
    for fmt in {t.format for t in plan.tensors if t.quantized}:
        warm(fmt)
    seconds = time.perf_counter() - began
    if seconds > 1:
        print(
            f"kernels for {PRESET} compiled or loaded in {seconds:.0f} s; next time they come from the disk\n",
            flush=True,
        )


def print_table(plan: Plan, report: Report) -> None:
    by_name = {t.name: t for t in report.tensors}
    width = max(len(t.tensor.name) for t in plan.tensors)
    print(f"{'tensor':<{width}}  {'stored as':<9} {'KiB':>8} {'bpw':>6} {'SQNR, dB':>9}  why")
    for planned in plan.tensors:
        done = by_name[planned.tensor.name]
        exact = done.sqnr_db is None or done.sqnr_db == float("inf")
        sqnr = "exact" if exact else f"{done.sqnr_db:.1f}"
        why = planned.reason or planned.rule_text
        print(
            f"{planned.tensor.name:<{width}}  {planned.format.name:<9} {planned.nbytes / 1024:>8.1f} "
            f"{planned.bpw:>6.2f} {sqnr:>9}  {why}"
        )
    print(
        f"\n{report.out}: {report.nbytes:,} bytes, as planned · {report.seconds:.2f} s "
        f"({report.weights_per_second / 1e6:.0f} M weights/s) · peak memory {report.peak_rss_bytes / 2**20:.0f} MiB"
    )


def has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show(out: Path, no_window: bool) -> int:
    """Opens the window, or saves its picture. In a process of its own: the window must start without our threads."""
    sys.stdout.flush()
    if has_display() and not no_window:
        print("opening the window …", flush=True)
        if subprocess.call([sys.executable, "main.py", str(DEMO)]) == 0:
            return 0
        print("the window did not open (see above; the README names what Linux needs); saving its picture", flush=True)
    code = subprocess.call(  # app.screenshot prints where its pictures are
        [sys.executable, "-m", "app.screenshot", "--out", str(out), str(DEMO)],
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
    )
    if code == 0:
        print(f"the window's pictures are in {out}")
    return code


if __name__ == "__main__":
    sys.exit(main())
