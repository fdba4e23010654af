"""What 50,000 tensors cost before any weight is read: opening, outlining, matching rules, planning, preflight.

    python -m benchmarks.headers

The floor of opening is reading the header once (5 MB) and making one record per tensor: about 2 µs each, 0.1 s.
Planning makes some ten small objects per tensor, 5 µs or so each way: 0.5 s. Expected therefore: under 1 s for either.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TENSORS = 50_000
RUNS = 3


def main() -> None:
    from benchmarks.window_stall import write_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        write_checkpoint(folder, layers=(TENSORS - 3) // 9)
        print(f"\n{TENSORS:,} tensors, Hugging Face folder, seconds: first run, best of {RUNS}")
        for name, first, best in rows(folder):
            print(f"  {name:<34} {first:6.2f} {best:6.2f}")


def rows(folder: Path) -> list[tuple[str, float, float]]:
    from core.checkpoints import open_checkpoint
    from core.engine.plan import make_plan
    from core.engine.preflight import preflight
    from core.recipes import load, match_counts, resolve
    from core.recipes.model import Match, Recipe, Rule, Strategy
    from core.targets import get_target

    gguf = get_target("gguf")
    made = [("open, headers only", *timed(lambda: open_checkpoint(folder)))]
    assert "torch" not in sys.modules, "opening imported torch"
    checkpoint = open_checkpoint(folder)
    outline = gguf.outline(checkpoint)
    preset = load("Q4_K_M")
    globs = Recipe("globs", tuple(Rule(Match(f"*.{i}.*_proj.weight"), Strategy("q8_0")) for i in range(20)))
    made.append(("outline (rename, check complete)", *timed(lambda: gguf.outline(checkpoint))))
    made.append(("match 20 rules", *timed(lambda: match_counts(globs, outline))))
    made.append(("resolve Q4_K_M", *timed(lambda: resolve(preset, outline, gguf))))
    made.append(
        ("plan, layout and header included", *timed(lambda: make_plan(checkpoint, preset, gguf, outline=outline)))
    )
    plan = make_plan(checkpoint, preset, gguf, outline=outline)
    out = folder.parent / "out.gguf"
    made.append(("preflight", *timed(lambda: preflight(plan, checkpoint, out))))
    return made


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds[0], min(seconds)


if __name__ == "__main__":
    main()
