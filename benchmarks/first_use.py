"""What the first use of a format costs, and every later start: processor seconds, each in a process of its own.

    python -m benchmarks first_use [--types q4_k,nf4] [--times 1]

"first": quantizing, decoding and measuring once in the format's own effort, where nothing has been compiled yet;
"other": the same in its other effort besides, for those who ask for it. "later": the first of both in the next process,
which loads from disk what was compiled. "+importance": with an importance matrix. "numba": its start, once a process
and the same for all formats, which the other columns leave out, as they do torch's. Kernels that many formats share
(sums of errors, the search for NaN) are compiled each time: 1.5 to 2 s, which a second format does not cost again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.formats import chosen

TYPES = (
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"),
    *("tq1_0", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"),
    *("int4-g128-asym", "fp8-e4m3", "mxfp8", "nvfp4", "nf4", "llm-int8"),
)
# Formats whose kernels do not look at importance.
PLAIN = ("q8_0", "mxfp4", "tq1_0", "int4-g128-asym", "fp8-e4m3", "mxfp8", "nvfp4", "nf4", "llm-int8")
ONE = """
import sys, time, torch
began = time.process_time()
import numba
from numba.core.registry import cpu_target
cpu_target.target_context.refresh()
print(time.process_time() - began)
from core.formats import get_format
from core.formats.fitting import warm
torch.set_num_threads(1)
f = get_format(sys.argv[1])
for effort in sorted(f.efforts, key=lambda e: e != f.default_effort):
    began = time.process_time()
    warm(f, sys.argv[2] == "weighted", effort=effort)
    print(time.process_time() - began)
"""


def seconds(name: str, weighted: bool, folder: Path) -> list[float]:
    """Processor seconds of numba's start, the format's own effort and the other one, in a new process."""
    environment = {**os.environ, "QUANTBENCH_KERNELS": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ONE, name, "weighted" if weighted else "plain"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"first_use: {name}: {done.stderr.strip().splitlines()[-1]}")
    return [float(line) for line in done.stdout.split()]


def main(argv: Sequence[str] | None = ()) -> int:
    from core.formats import get_format

    parser = argparse.ArgumentParser(prog="python -m benchmarks first_use")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--times", type=int, default=1, help="of which the least counts")
    options = parser.parse_args(argv)
    print(f"{'':22}{'first':>8}{'other':>8}{'later':>8}{'numba':>8}")
    for name in chosen(options.types, TYPES, "type"):
        needed = get_format(name).needs_importance
        for weighted in [True] if needed else [False] if name in PLAIN else [False, True]:
            tries = []
            for _ in range(options.times):
                with tempfile.TemporaryDirectory() as folder:
                    first = seconds(name, weighted, Path(folder))
                    later = seconds(name, weighted, Path(folder))
                tries.append((first[1], sum(first[2:]), later[1], later[0]))
            own, other, again, start = (min(column) for column in zip(*tries, strict=True))
            label = name + (" +importance" if weighted else "")
            print(
                f"{label:22}{own:>8.1f}{f'{other:.1f}' if other >= 0.05 else '–':>8}{again:>8.2f}{start:>8.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
