"""What calibrated methods are worth: perplexity, KLD and top-1 agreement of the demo model on held-out text, in one
run, beside llama.cpp's own quantizer with an importance matrix.

    python -m benchmarks.quality [--full] [--efforts] [--windows N] [--samples N] [--only WORD]

First table: rows of one size stand together; head and embedding are left alone, so that nothing but the decoder's
matrices differs. llama.cpp's rows are ggml_quantize_chunk on the same tensors, with the same importance that ours is
given. Second table, with --full: whole files in 16 types. llama.cpp's figures there come with the model
(resources/demo/llamacpp.json), from its files with an importance matrix, and are compared with our files of the same
types per tensor: nearest with importance, and GPTQ. Third, with --efforts, and alone: llama.cpp's own search (`exact`)
beside the finer one (`best`) in every type that has both.

Text: resources/demo/heldout.txt, windows of 256 tokens, all but the first scored. Calibration: other files, in
resources/demo/calibration.txt. KLD in nats per token. ±: standard errors over tokens of one row; two rows are read from
the same tokens, and their difference is known better than that.

Below what is a regression: GPTQ's KLD on Q4_K and Q3_K at most 0.6 of llama.cpp's; on int3-g128 GPTQ < AWQ and
importance < nearest, and act-order no worse than without. The end of the output says whether it held.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration.runner import gather
from core.calibration.statistics import Statistic, Statistics
from core.calibration.text import Samples, TextSettings
from core.checkpoints import open_checkpoint
from core.checkpoints.base import Checkpoint
from core.engine.model import Plan
from core.engine.plan import make_plan
from core.evaluation.figures import Distance
from core.evaluation.perplexity import Evaluation, evaluate
from core.evaluation.subjects import as_written
from core.evaluation.text import Windows, WindowSettings, read_windows
from core.recipes import KEEP, Match, Recipe, Rule, Strategy, load
from core.targets import get_target
from core.terminal import table

if TYPE_CHECKING:
    import torch

DEMO = Path(__file__).parent.parent / "resources" / "demo"
LENGTH = 256
GGUF, INTEGERS = "gguf", "compressed-tensors"
# Statistics that a row's method is given.
NOTHING, IMPORTANCE, WALK = "", "importance", "walk"
TYPES = tuple(
    "Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S IQ3_S IQ3_XXS Q2_K IQ2_S".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Row:
    """format, method: as the table names them. recipe: of ours; "" for llama.cpp's quantizer. given: see above."""

    format: str
    method: str
    recipe: str
    given: str
    target: str = GGUF


def rows() -> tuple[Row, ...]:
    """Of the first table."""
    found: list[Row] = []
    for name in ("int3-g128", "int4-g128"):
        found += [
            Row(name, "nearest", name, NOTHING, INTEGERS),
            Row(name, "nearest, importance", f"{name}(range=rmse)", IMPORTANCE, INTEGERS),
            Row(name, "AWQ", f"{name}+awq", WALK, INTEGERS),
            Row(name, "GPTQ", f"{name}+gptq(act_order=off)", WALK, INTEGERS),
            Row(name, "GPTQ, act-order", f"{name}+gptq", WALK, INTEGERS),
        ]
    for name in ("q4_k", "q3_k"):
        found += [
            Row(name, "llama.cpp, imatrix", "", IMPORTANCE),
            Row(name, "nearest", name, NOTHING),
            Row(name, "nearest, importance", name, IMPORTANCE),
            Row(name, "GPTQ", f"{name}+gptq", WALK),
        ]
    return tuple(found)


def effort_rows() -> tuple[Row, ...]:
    """Of the table of efforts."""
    from core.formats import get_format
    from core.formats.ggml.format import NEED_IMPORTANCE, UNWEIGHTED, WRITTEN

    found: list[Row] = []
    for name in (w for w in WRITTEN if "best" in get_format(w.lower()).efforts):
        for given in (NOTHING, IMPORTANCE):
            if (given and name in UNWEIGHTED) or (not given and name in NEED_IMPORTANCE):
                continue
            for effort in ("exact", "best"):
                recipe = f"{name.lower()}(effort={effort})"
                found.append(Row(name.lower(), effort + (", importance" if given else ""), recipe, given))
    return tuple(found)


@dataclass(frozen=True)
class Judged:
    """bytes and bpw: of the quantized tensors alone. seconds: quantizing and evaluating."""

    row: Row
    nbytes: int
    bpw: float
    found: Evaluation
    seconds: float

    @property
    def distance(self) -> Distance:
        assert self.found.against is not None
        return self.found.against.distance


@dataclass(frozen=True)
class Bench:
    """The original, the text, and what calibration knows."""

    checkpoint: Checkpoint
    windows: Windows
    samples: Samples
    gathered: Statistics

    def plan(self, recipe: Recipe, target: str, given: str) -> Plan:
        options = {IMPORTANCE: {"gathered": self.gathered}, WALK: {"calibration": self.samples}}.get(given, {})
        return make_plan(self.checkpoint, recipe, get_target(target), **options)

    def judge(self, row: Row, whole_file: bool = False) -> Judged:
        began = time.perf_counter()
        recipe = load(row.recipe or row.format)
        if not whole_file:
            recipe = without_head(recipe)
        plan = self.plan(recipe, row.target, row.given)
        if row.recipe:
            with as_written(plan, self.checkpoint) as model:
                found = evaluate(self.checkpoint, self.windows, against=model)
        else:
            model = LlamaCpp(self.checkpoint, plan, self.gathered)
            found = evaluate(self.checkpoint, self.windows, against=model)
        done = [t for t in plan.tensors if whole_file or t.quantized]
        nbytes = sum(t.nbytes for t in done)
        weights = sum(t.tensor.numel for t in done)
        return Judged(row, nbytes, 8 * nbytes / weights, found, time.perf_counter() - began)


def without_head(recipe: Recipe) -> Recipe:
    kept = Rule(Match(role=("head", "embedding")), Strategy(KEEP))
    return Recipe(recipe.name, (kept, *recipe.rules), recipe.comment)


class LlamaCpp(Checkpoint):
    """The checkpoint with the tensors that a plan quantizes as llama.cpp's own quantizer makes them."""

    kind = "simulated"

    def __init__(self, checkpoint: Checkpoint, plan: Plan, known: Statistics) -> None:
        self.path, self.files, self.config = checkpoint.path, checkpoint.files, checkpoint.config
        self.tensors, self.metadata = checkpoint.tensors, checkpoint.metadata
        self._checkpoint, self._known = checkpoint, known
        self._types = {
            name: t.format.name.upper() for t in plan.tensors if t.quantized for name in t.tensor.source.names()
        }

    def folder(self) -> Path:
        return self._checkpoint.folder()

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError("what is not written has no stored bytes")

    def fingerprint(self) -> str:
        return f"{self._checkpoint.fingerprint()} by llama.cpp"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        import torch

        from tests.core.formats import llama

        w = self._checkpoint.read(name, start, stop)
        if name not in self._types:
            return w
        importance = self._known.tensors[name].values[Statistic.IMPORTANCE]
        blocks = llama.quantize(self._types[name], w.float().numpy(), importance)
        return torch.from_numpy(llama.dequantize(self._types[name], blocks, w.shape[1]))


@contextmanager
def own_caches() -> Iterator[None]:
    """Nothing of earlier runs is used, and nothing of this one is left."""
    variables = ("QUANTBENCH_CALIBRATION", "QUANTBENCH_ORIGINALS")
    before = {variable: os.environ.get(variable) for variable in variables}
    with tempfile.TemporaryDirectory(prefix="quantbench-quality-") as name:
        try:
            for variable in variables:
                os.environ[variable] = str(Path(name) / variable.lower())
            yield
        finally:
            for variable, value in before.items():
                if value is None:
                    os.environ.pop(variable, None)
                else:
                    os.environ[variable] = value


def methods_table(found: Sequence[Judged]) -> list[str]:
    titles = (
        "format", "method", ">KiB", ">bpw", ">perplexity", ">more than original", ">KLD", ">median", ">99 %", ">max",
        ">top-1, %",
    )  # fmt: skip
    lines = []
    for j in found:
        assert j.found.against is not None
        d, p = j.distance, j.found.against.perplexity
        lines.append(
            (
                j.row.format,
                j.row.method,
                f"{j.nbytes / 1024:,.0f}",
                f"{j.bpw:.3f}",
                f"{p.value:.3f}",
                f"{d.difference:+.3f} ± {d.difference_error:.3f}",
                f"{d.kld_mean:.5f} ± {d.kld_error:.5f}",
                f"{d.kld_median:.5f}",
                f"{d.kld_p99:.4f}",
                f"{d.kld_max:.2f}",
                f"{100 * d.top1_agreement:.2f} ± {100 * d.top1_error:.2f}",
            )
        )
    return list(table(titles, lines))


def claims(found: Sequence[Judged]) -> list[str]:
    """What the docs say of these figures, and whether it held in this run."""
    kld = {(j.row.format, j.row.method): j.distance.kld_mean for j in found}
    lines = []
    three = {method: value for (name, method), value in kld.items() if name == "int3-g128"}
    if len(three) == 5:
        between = sorted((three["AWQ"], three["nearest, importance"]))
        held = max(three["GPTQ"], three["GPTQ, act-order"]) < between[0] and between[1] < three["nearest"]
        lines.append(f"int3-g128: GPTQ < AWQ and importance < nearest: {'held' if held else 'NOT HELD'}")
    for name in ("int3-g128", "int4-g128"):
        if (name, "GPTQ, act-order") in kld:
            plain, ordered = kld[name, "GPTQ"], kld[name, "GPTQ, act-order"]
            held = "held" if ordered <= plain else "NOT HELD"
            lines.append(f"{name}: act-order {100 * (ordered / plain - 1):+.1f} % to GPTQ without, wanted ≤ 0: {held}")
    for name in ("q4_k", "q3_k"):
        if (name, "GPTQ") in kld and (name, "llama.cpp, imatrix") in kld:
            less = 100 * (kld[name, "GPTQ"] / kld[name, "llama.cpp, imatrix"] - 1)
            held = "held" if less <= -40 else "NOT HELD"
            lines.append(f"{name}: GPTQ {less:+.1f} % to llama.cpp with imatrix, wanted ≤ −40: {held}")
    return lines


def efforts_table(found: Sequence[Judged]) -> list[str]:
    """Pairs of rows, and how much lower the second one's KLD is."""
    titles = (
        "format",
        "method",
        ">KLD exact",
        ">best",
        ">difference, %",
        ">99 % exact",
        ">best",
        ">top-1 exact",
        ">best",
    )
    lines = []
    for exact, best in zip(found[::2], found[1::2], strict=True):
        a, b = exact.distance, best.distance
        lines.append(
            (
                exact.row.format,
                exact.row.method.replace("exact, ", "").replace("exact", ""),
                f"{a.kld_mean:.5f} ± {a.kld_error:.5f}",
                f"{b.kld_mean:.5f} ± {b.kld_error:.5f}",
                f"{100 * (b.kld_mean / a.kld_mean - 1):+.1f}",
                f"{a.kld_p99:.4f}",
                f"{b.kld_p99:.4f}",
                f"{100 * a.top1_agreement:.2f}",
                f"{100 * b.top1_agreement:.2f}",
            )
        )
    return list(table(titles, lines))


def files_table(bench: Bench, only: str) -> Iterator[str]:
    """Line by line: whole files of llama.cpp's mixtures, theirs and ours."""
    theirs = json.loads((DEMO / "llamacpp.json").read_text("utf-8"))
    yield f"{'':10}{'':>8}{'llama.cpp, imatrix':>30}{'ours, importance':>32}{'ours, GPTQ':>30}"
    yield f"{'':10}{'KiB':>8}" + f"{'KLD':>12}{'99 %':>9}{'top-1':>9}" + f"{'KLD':>14}{'':9}{'99 %':>9}" * 2
    for kind in TYPES:
        known = theirs.get(f"{kind}+imatrix", theirs.get(kind))
        if known is None or (only and only.lower() not in kind.lower()):
            continue
        near = bench.judge(Row(kind, "nearest", kind, IMPORTANCE), True)
        gptq = bench.judge(Row(kind, "GPTQ", f"{kind}+gptq", WALK), True)
        text = f"{kind:10}{near.nbytes / 1024:8,.0f}"
        text += f"{known['kld']:12.5f}{known['kld_p99']:9.4f}{100 * known['top1']:8.2f} "
        for j in (near, gptq):
            d = j.distance
            text += f"{d.kld_mean:14.5f}{100 * (d.kld_mean / known['kld'] - 1):+8.1f}%{d.kld_p99:9.4f}"
        yield text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="whole files in 16 types, too, and twice the calibration")
    parser.add_argument("--efforts", action="store_true", help="only exact beside best, in every type that has both")
    parser.add_argument(
        "--windows", type=int, default=48, metavar="N", help="of the text (48, as llamacpp.json has it)"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="of 256 tokens, for calibration (128; full: 256)")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose format has this in its name")
    args = parser.parse_args(argv)
    count = args.samples or (256 if args.full else 128)
    began = time.perf_counter()
    with own_caches(), open_checkpoint(DEMO) as checkpoint:
        windows = read_windows(checkpoint.folder(), WindowSettings(DEMO / "heldout.txt", LENGTH, windows=args.windows))
        gathered, samples = gather(checkpoint, TextSettings(DEMO / "calibration.txt", count, LENGTH))
        bench = Bench(checkpoint, windows, samples, gathered)
        print("\nCalibrated methods on the demo model")
        print(f"{windows.samples.name}: {windows.convention}; {samples.name}: {count} samples of {LENGTH} tokens")
        print(f"{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%d %B %Y')}")
        original = evaluate(checkpoint, windows).perplexity
        print(
            f"original: perplexity {original.value:.4f} ± {original.error:.4f} on {original.tokens:,} tokens\n",
            flush=True,
        )
        found = []
        for row in effort_rows() if args.efforts else rows():
            if args.only.lower() in row.format:
                found.append(bench.judge(row))
                d = found[-1].distance
                print(f"… {row.format}, {row.method}: KLD {d.kld_mean:.5f} in {found[-1].seconds:.0f} s", flush=True)
        print()
        if args.efforts:
            print("\n".join(efforts_table(found)))
        else:
            print("\n".join([*methods_table(found), "", *claims(found)]), flush=True)
        if args.full:
            print("\nWhole files, llama.cpp's and ours")
            for line in files_table(bench, args.only):
                print(line, flush=True)
    print(f"took {time.perf_counter() - began:.0f} s, {time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    main()
