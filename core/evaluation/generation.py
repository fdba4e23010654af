"""Text from a model, with what it took: tokens, time, memory. On transformers, with the weights as they are read, or,
for a GGUF, on llama.cpp, in a process of its own (llama_process.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import core
from core.calibration.library import quiet, require_transformers
from core.calibration.purpose import Purpose
from core.calibration.skeleton import Skeleton
from core.calibration.text import tokenizer_of
from core.checkpoints.base import Checkpoint
from core.checkpoints.gguf import Gguf
from core.context import SILENT, JobContext
from core.engine.devices import out_of_memory, parse_device, usable_cores
from core.engine.memory import PeakMemory
from core.errors import DeviceError, EvaluationError, MissingExtra, one_line
from core.evaluation.subjects import as_model

GENERATING = Purpose("generation", shorter="generate fewer tokens", extra="evaluation")
TRANSFORMERS, LLAMA = "transformers", "llama.cpp"
RUNTIMES = (TRANSFORMERS, LLAMA)
TOKENS = 128
_TICK_SECONDS = 0.1


@dataclass(frozen=True)
class Request:
    """What to generate.

    tokens       at most; fewer where the model ends its text
    temperature  0: always the likeliest token
    seed         of sampling
    """

    prompt: str
    tokens: int = TOKENS
    temperature: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raises EvaluationError."""
        if self.tokens < 1:
            raise EvaluationError(f"{self.tokens} tokens are none", "give 1 or more")
        if not 0 <= self.temperature <= 10:
            raise EvaluationError(f"a temperature of {self.temperature:g} is not within 0 and 10")


@dataclass(frozen=True)
class Generation:
    """seconds            of the request, loading not counted
    prompt_seconds     until the first token
    tokens_per_second  of the tokens behind the first
    peak_rss_bytes     of the process that ran the model
    """

    text: str
    input_tokens: int
    output_tokens: int
    seconds: float
    prompt_seconds: float
    tokens_per_second: float
    load_seconds: float
    peak_rss_bytes: int
    device: str
    runtime: str


def generate(
    checkpoint: Checkpoint, request: Request, *, runtime: str = "", device: str = "cpu", ctx: JobContext = SILENT
) -> Generation:
    """Text from a model.

    runtime  TRANSFORMERS or LLAMA; "": llama.cpp for a GGUF, transformers for all else
    ctx      progress in tokens
    raises   EvaluationError, CalibrationError (no tokenizer, a model that cannot be built), MissingExtra, DeviceError,
             Cancelled
    """
    request.check()
    device = parse_device(device)
    chosen = runtime or (LLAMA if isinstance(checkpoint, Gguf) else TRANSFORMERS)
    if chosen not in RUNTIMES:
        raise EvaluationError(f"no runtime is called {runtime!r}", f"known: {', '.join(RUNTIMES)}")
    if chosen == LLAMA:
        if not isinstance(checkpoint, Gguf):
            raise EvaluationError("llama.cpp runs GGUF files only", "use --runtime transformers", checkpoint.path)
        return _on_llama(checkpoint.path, request, device, ctx)
    with as_model(checkpoint) as model:
        return _on_transformers(model, request, device, ctx)


def _on_transformers(checkpoint: Checkpoint, request: Request, device: str, ctx: JobContext) -> Generation:
    import torch

    memory = PeakMemory()
    _check_memory(checkpoint, device)
    tokenizer = tokenizer_of(checkpoint.folder(), GENERATING)
    ids = tokenizer(request.prompt, return_tensors="pt")["input_ids"].to(device)
    if not ids.numel():
        raise EvaluationError("the prompt has no tokens", "give a text with --prompt")
    began = time.perf_counter()
    try:
        with quiet():
            skeleton = Skeleton(checkpoint, device, GENERATING)
            for part in ("", *skeleton.blocks):
                ctx.check()
                skeleton.load(part)
            model = skeleton.model
            _settle(model, checkpoint.folder())
            memory.sample()
            clock = _Clock(ctx, ids.shape[1], request.tokens)
            torch.manual_seed(request.seed)
            loaded = time.perf_counter()
            sampled: dict[str, Any] = {"do_sample": False}
            if request.temperature:
                sampled = {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": 1.0}
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.tokens,
                use_cache=True,
                stopping_criteria=[clock],
                pad_token_id=_pad(tokenizer),
                **sampled,
            )[0, ids.shape[1] :]
            seconds = time.perf_counter() - loaded
    except RuntimeError as error:
        if out_of_memory(error):
            raise DeviceError(f"{device} has no memory left for the model", GENERATING.shorter) from error
        raise EvaluationError(f"the model cannot generate: {one_line(error)[:200]}", where=checkpoint.path) from error
    count = len(made)
    first = clock.first - loaded if clock.first else seconds
    memory.sample()
    return Generation(
        tokenizer.decode(made, skip_special_tokens=True),
        ids.shape[1],
        count,
        seconds,
        first,
        (count - 1) / (seconds - first) if count > 1 and seconds > first else 0.0,
        loaded - began,
        memory.peak(),
        device,
        TRANSFORMERS,
    )


class _Clock:
    """Called after every token: when the first came, progress, and whether to go on."""

    def __init__(self, ctx: JobContext, prompt: int, tokens: int) -> None:
        self._ctx, self._prompt, self._tokens = ctx, prompt, tokens
        self.first = 0.0

    def __call__(self, ids: Any, scores: Any, **more: Any) -> Any:
        import torch

        self.first = self.first or time.perf_counter()
        self._ctx.check()
        self._ctx.progress(ids.shape[1] - self._prompt, self._tokens, "generating")
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)


def _settle(model: Any, folder: Path) -> None:
    """Generating keeps keys and values, and ends where the folder's settings say."""
    transformers = require_transformers(GENERATING)
    for part in (model.config, model.config.get_text_config()):
        part.use_cache = True
    if (folder / "generation_config.json").is_file():
        try:
            given = transformers.GenerationConfig.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, TypeError):
            return
        # Its habits of sampling are not asked for; where a text ends is.
        for key in ("eos_token_id", "bos_token_id"):
            if getattr(given, key, None) is not None:
                setattr(model.generation_config, key, getattr(given, key))


def _pad(tokenizer: Any) -> int:
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    return 0


def _check_memory(checkpoint: Checkpoint, device: str) -> None:
    if device != "cpu":
        return
    import psutil

    from core.engine.progress import bytes_text

    wanted, there = 4 * checkpoint.parameters, psutil.virtual_memory().available
    if wanted > there:
        raise DeviceError(
            f"generating holds the whole model in float32, {bytes_text(wanted)}, and {bytes_text(there)} are free",
            "write a GGUF and generate from that",
            checkpoint.path,
        )


def _on_llama(path: Path, request: Request, device: str, ctx: JobContext) -> Generation:
    """llama.cpp's threads cannot be ended from inside, so a process of its own does it and leaves at once."""
    import importlib.util

    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra(
            "llama.cpp needs the package xllamacpp",
            'pip install "quantbench[llama]", or use --runtime transformers',
        )
    order = {
        "path": str(path),
        "prompt": request.prompt,
        "tokens": request.tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "gpu_layers": 0 if device == "cpu" else 999,
        "threads": usable_cores(),
    }
    home = str(Path(core.__file__).resolve().parent.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    }
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as answered:
        process = subprocess.Popen(
            [sys.executable, "-m", "core.evaluation.llama_process"],
            stdin=subprocess.PIPE,
            stdout=answered,
            stderr=said,
            env=environment,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
            while process.poll() is None:
                ctx.check()
                time.sleep(_TICK_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        answered.seek(0)
        said.seek(0)
        return _answer(answered.read(), said.read(), path, device)


def _answer(answered: bytes, said: bytes, path: Path, device: str) -> Generation:
    line = next((x for x in answered.splitlines() if x.startswith(b"ANSWER ")), None)
    found = json.loads(line[7:]) if line else {"error": _reason(said.decode("utf-8", "replace"))}
    if "error" in found:
        raise EvaluationError(f"llama.cpp cannot run it: {found['error']}", where=path)
    return Generation(device=device, runtime=LLAMA, **found)


def _reason(said: str) -> str:
    """The first error among llama.cpp's lines, without its time stamp."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return (wrong or lines or ["it ended without a word"])[0].split(" E ")[-1][:200]
