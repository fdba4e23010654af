"""Quality of whole files: KLD, perplexity and top-1 agreement of the demo model in llama.cpp's types, as it writes them
and as we do.

    python -m benchmarks.evaluation [--model FOLDER] [--text FILE] [--calibration FILE] [--theirs FILE.json] [TYPE …]

text         what is predicted: windows of 256 tokens, all but the first scored (default: resources/demo/heldout.txt)
calibration  for the lines with +imatrix (default: resources/demo/calibration.txt)
theirs       figures of llama-quantize's own files on the same text, by type: {"Q4_0": {"kld", "ppl", "top1", "bytes"}}
             (default: resources/demo/llamacpp.json)

What calibrated methods add to that is quality.py's question.

`exact` is llama.cpp's own search, whose file is its byte for byte where no imatrix is involved; ours is the default, a
finer search into the same number of bytes. Both are written as GGUF, read back, and compared with the original.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.calibration.runner import gather
from core.calibration.text import TextSettings
from core.checkpoints import open_checkpoint
from core.checkpoints.base import Checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.evaluation.perplexity import Evaluation, evaluate
from core.evaluation.subjects import as_model
from core.evaluation.text import Windows, WindowSettings, read_windows
from core.recipes import load
from core.targets import get_target

DEMO = Path(__file__).parent.parent / "resources" / "demo"
TYPES = tuple(
    "Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_0 Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0 IQ4_XS IQ4_NL IQ3_S IQ3_XXS IQ2_S".split()  # noqa: SIM905
)
NEEDS_IMATRIX = ("IQ3_XXS", "IQ2_S")
WINDOW, WINDOWS = 256, 48
SAMPLES = 256


def judged(checkpoint: Checkpoint, windows: Windows, recipe: str, folder: Path, gathered: Any = None) -> Evaluation:
    """The figures of one file."""
    plan = make_plan(checkpoint, load(recipe), get_target("gguf"), gathered=gathered)
    out = folder / "model.gguf"
    run(plan, checkpoint, out, measure=False, force=True)
    with open_checkpoint(out) as made, as_model(made, checkpoint) as other:
        return evaluate(checkpoint, windows, against=other)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--text", type=Path, default=DEMO / "heldout.txt")
    parser.add_argument("--calibration", type=Path, default=DEMO / "calibration.txt")
    parser.add_argument("--theirs", type=Path, default=DEMO / "llamacpp.json")
    parser.add_argument("types", nargs="*", default=TYPES)
    args = parser.parse_args(argv)
    theirs = json.loads(args.theirs.read_text("utf-8"))
    with open_checkpoint(args.model) as checkpoint, tempfile.TemporaryDirectory() as name:
        windows = read_windows(checkpoint.folder(), WindowSettings(args.text, WINDOW, windows=WINDOWS))
        original = evaluate(checkpoint, windows).perplexity
        print(f"{windows.samples.name}: {windows.convention}")
        print(f"original: perplexity {original.value:.4f} ± {original.error:.4f}")
        settings = TextSettings(args.calibration, SAMPLES, WINDOW)
        gathered, _ = gather(checkpoint, settings)
        print(f"{'':18}{'llama.cpp':>24}{'exact':>24}{'ours':>24}{'':>8}{'top-1, %':>20}{'perplexity':>24}")
        print(
            f"{'':18}{'KLD':>10}{'99 %':>14}" + f"{'KLD':>10}{'99 %':>14}" * 2 + f"{'':>8}{'l.cpp':>10}{'ours':>10}",
            end="",
        )
        print(f"{'l.cpp':>12}{'ours':>12}")
        for kind in args.types:
            for imatrix in (False, True):
                if not imatrix and kind in NEEDS_IMATRIX:
                    continue
                label = f"{kind}+imatrix" if imatrix else kind
                known = gathered if imatrix else None
                exact = judged(checkpoint, windows, f"{kind}(effort=exact)", Path(name), known)
                ours = judged(checkpoint, windows, kind, Path(name), known)
                print(line(label, theirs.get(label), exact, ours), flush=True)


def line(label: str, theirs: dict[str, float] | None, exact: Evaluation, ours: Evaluation) -> str:
    assert exact.against is not None
    assert ours.against is not None
    e, o = exact.against.distance, ours.against.distance
    first = f"{theirs['kld']:10.5f}{theirs['kld_p99']:14.4f}" if theirs else f"{'–':>10}{'–':>14}"
    middle = f"{e.kld_mean:10.5f}{e.kld_p99:14.4f}{o.kld_mean:10.5f}{o.kld_p99:14.4f}"
    gain = f"{100 * (o.kld_mean / theirs['kld'] - 1):+7.1f}%" if theirs else f"{'':8}"
    top = f"{100 * theirs['top1']:10.2f}" if theirs else f"{'–':>10}"
    ppl = f"{theirs['ppl']:12.3f}" if theirs else f"{'–':>12}"
    mine = f"{ours.against.perplexity.value:12.3f}"
    return f"{label:18}{first}{middle}{gain}{top}{100 * o.top1_agreement:10.2f}{ppl}{mine}"


if __name__ == "__main__":
    main()
