"""The command line: what the sub-commands accept, and how they end. What they do is in commands.py. No Qt.

stdout carries the result (`--json`: one object and nothing else), stderr progress and the one line of a failure.
Exit status: 0 done, 1 failed, 2 wrong usage, 130 cancelled with Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import core
from core import commands, compare_command, quality_commands
from core.calibration.text import LENGTH, SAMPLES, SEED
from core.errors import Cancelled, WorkbenchError, one_line
from core.evaluation.text import SCORES, WINDOW
from core.terminal import json_text, prepare_streams, silence_stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status and raises nothing."""
    prepare_streams()
    args = argparse.Namespace()
    try:
        args = _parser().parse_args(argv)
        answer, lines = args.run(args)
        print(json_text(answer) if args.json else "\n".join(lines), flush=True)
        for problem in answer.get("problems", ()):
            if problem["severity"] == "error" and args.command == "plan":
                return _fail(commands.problem_text(problem))
        return 0
    except SystemExit as leave:  # argparse: --help, --version, usage
        return leave.code if isinstance(leave.code, int) else 2
    except BrokenPipeError:
        silence_stdout()
        return 141
    except (Cancelled, KeyboardInterrupt):
        kept = getattr(args, "keep_partial", False) or getattr(args, "resume", False)
        _fail("cancelled; --resume continues it" if kept else "cancelled")
        return 130
    except WorkbenchError as error:
        return _fail(one_line(error))
    except Exception as error:  # a fault of ours: still one line, and the traceback for those who ask
        if os.environ.get("QUANTBENCH_TRACEBACK"):
            raise
        return _fail(f"internal error, please report it (QUANTBENCH_TRACEBACK=1 shows more): {one_line(error)}")


def _fail(line: str) -> int:
    with contextlib.suppress(OSError):  # when nobody listens, the exit status still says it
        print(f"quantbench: {line}", file=sys.stderr, flush=True)
    return 1


CHECKPOINT = "a Hugging Face folder, .safetensors, .pt, .pth, .bin or .gguf file"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"quantbench: {message}; see `{self.prog} --help`\n")


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _size(text: str) -> int:
    """Bytes of "5GB", "500M", "40000"; powers of ten, as files are counted."""
    number = text.strip().upper().removesuffix("B")
    factor = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(number[-1:], 1)
    try:
        found = int(float(number if factor == 1 else number[:-1]) * factor)
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="quantbench", description="Quantize model checkpoints. Without arguments: the window.")
    parser.add_argument("--version", action="version", version=f"quantbench {core.__version__}")
    known = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], commands.Answer], help: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = known.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return made

    def recipe(made: argparse.ArgumentParser) -> None:
        made.add_argument("checkpoint", type=Path, help=CHECKPOINT)
        made.add_argument("--recipe", required=True, metavar="R", help="preset, format, or recipe file (TOML)")
        made.add_argument(
            "--target",
            default="",
            metavar="T",
            help="container to write (default: the first that fits, said); `formats` lists all",
        )
        made.add_argument(
            "--shard-size", type=_size, metavar="SIZE", help="largest file, such as 2GB (default: as the target does)"
        )

        made.add_argument(
            "--imatrix",
            type=Path,
            metavar="FILE",
            help="importance of columns, as llama-imatrix or `imatrix` writes it",
        )

    def samples(made: argparse.ArgumentParser) -> None:
        made.add_argument("--samples", type=_workers, default=SAMPLES, metavar="N", help=f"of the text ({SAMPLES})")
        made.add_argument("--length", type=_workers, default=LENGTH, metavar="L", help=f"tokens of a sample ({LENGTH})")
        made.add_argument("--seed", type=int, default=SEED, metavar="S", help=f"of the choice of samples ({SEED})")

    command("inspect", commands.inspect, "list the tensors of a checkpoint").add_argument(
        "checkpoint", type=Path, help=CHECKPOINT
    )
    recipe(command("plan", commands.plan, "show what would be written, to the byte"))
    made = command("quantize", commands.quantize, "write a quantized checkpoint")
    recipe(made)
    made.add_argument("--out", required=True, type=Path, help="file or folder to write; or a folder to put the file in")
    made.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    made.add_argument("--workers", type=_workers, metavar="N", help="slices at the same time (default: one per core)")
    made.add_argument(
        "--calibration",
        nargs="?",
        const="",
        metavar="TEXT",
        help="run the model on this text (default: Python's standard library) to learn which columns matter",
    )
    samples(made)
    made.add_argument("--cluster", default="", metavar="ADDRESS", help="scheduler of a Dask cluster that does the work")
    made.add_argument("--resume", action="store_true", help="continue a run that was killed or stopped")
    made.add_argument("--force", action="store_true", help="replace an existing output")
    made.add_argument(
        "--keep-partial", action="store_true", help="when stopped with Ctrl-C, leave the rest for --resume"
    )
    made.add_argument("--no-errors", action="store_true", help="do not measure the error of each tensor")
    made.add_argument("--report", type=Path, metavar="FILE.html", help="write what was done, and its error, as a page")
    made = command("imatrix", commands.imatrix, "gather the importance of columns, as llama-imatrix does")
    made.add_argument("checkpoint", type=Path, help="a Hugging Face folder")
    made.add_argument("--text", type=Path, metavar="FILE", help="text to run (default: Python's standard library)")
    made.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="to write: .gguf, or .dat for the older form"
    )
    made.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    made.add_argument("--force", action="store_true", help="replace an existing file")
    samples(made)
    made = command("compare", compare_command.compare, "show how far apart two checkpoints are, tensor by tensor")
    made.add_argument("a", type=Path, metavar="A", help="a folder or file of any kind we read")
    made.add_argument("b", type=Path, metavar="B", help="another of the same model, of the same kind or another")
    made.add_argument("--source", type=Path, metavar="C", help="what both were made from: the error of each against it")
    made.add_argument("--csv", type=Path, metavar="FILE", help="write the table as comma-separated values, too")
    made.add_argument("--filter", default="", metavar="WORDS", help="list tensors with these words in name, role, type")
    made.add_argument("--sort", choices=compare_command.SORTS, default="name", help="what comes first (name)")
    made = command(
        "evaluate", quality_commands.evaluate, "measure perplexity, and the distance of what was made from a model"
    )
    made.add_argument("checkpoint", type=Path, help="the original: a Hugging Face folder; or a GGUF by itself")
    made.add_argument("--against", type=Path, metavar="QUANTIZED", help="a folder or GGUF made from it")
    made.add_argument("--recipe", metavar="R", help="or what this recipe would make of it, without writing it")
    made.add_argument(
        "--target", default="", metavar="T", help="container for the recipe (default: the first that fits)"
    )
    made.add_argument("--imatrix", type=Path, metavar="FILE", help="importance of columns, for the recipe")
    made.add_argument(
        "--calibration",
        nargs="?",
        const="",
        metavar="TEXT",
        help="for the recipe: calibrate on this text (default: Python's standard library)",
    )
    made.add_argument("--text", type=Path, metavar="FILE", help="text to predict (default: Python's standard library)")
    made.add_argument("--window", type=_workers, default=WINDOW, metavar="N", help=f"tokens of a window ({WINDOW})")
    made.add_argument("--stride", type=_workers, metavar="N", help="tokens between windows (default: a window)")
    made.add_argument("--samples", type=_workers, metavar="N", help="windows at most (default: all of the text)")
    made.add_argument(
        "--score",
        choices=SCORES,
        default=SCORES[0],
        help="all tokens of a window but its first, or the second half of it, as llama.cpp does",
    )
    made.add_argument("--layers", action="store_true", help="also the output error of every matrix on real inputs")
    made.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    made = command(
        "generate", quality_commands.generate, "let a model go on from a prompt, and measure time and memory"
    )
    made.add_argument("checkpoint", type=Path, help="a Hugging Face folder, or a .gguf file")
    made.add_argument("--prompt", required=True, metavar="TEXT", help="what the model goes on from")
    made.add_argument("--tokens", type=_workers, default=128, metavar="N", help="to generate at most (128)")
    made.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the likeliest token")
    made.add_argument("--seed", type=int, default=0, metavar="S", help="of sampling (0)")
    made.add_argument(
        "--runtime",
        choices=("transformers", "llama.cpp"),
        default="",
        help="what runs it (default: llama.cpp for a GGUF, transformers for all else)",
    )
    made.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    made = command(
        "experiments", quality_commands.experiments, "list all runs: quantizations, evaluations, generations"
    )
    made.add_argument("--csv", action="store_true", help="as a table for spreadsheets")
    command("formats", commands.formats, "list every format, and which target takes it")
    return parser


COMMANDS = (
    "inspect",
    "plan",
    "quantize",
    "imatrix",
    "compare",
    "evaluate",
    "generate",
    "experiments",
    "formats",
)
