"""Folders loaded and run by vLLM on a CPU, against our own weights. No test: vLLM brings a hundred packages and is no
dependency. docs/interop.md says how to run it, and what it printed.

    python -m tests.interop.vllm_clients [TARGET[:RECIPE] …]

For every recipe a random Llama is quantized and loaded by vLLM, which joins q, k, v, and gate, up; and the logarithms
of the probabilities it gives are compared with those of transformers' model holding the weights that `open_checkpoint`
reads from the folder. Both compute in bfloat16; how far vLLM is from transformers with the same plain weights stands in
the first line.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    HF_HUB_OFFLINE="1",
)

import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.recipes import load
from core.targets import get_target
from tests.core.targets.build import save_model, size_of

CASES = {
    "compressed-tensors": (
        "int4-g128",
        "int4-g32",
        "int4-g64-asym",
        "int4",
        "int8-g128",
        "int8",
        "int3-g128",
        "int8(inputs=dynamic)",
        "int8-tensor(inputs=dynamic)",
        "int4-g128(inputs=dynamic)",
        "int4(inputs=dynamic)",
        "fp8-e4m3",
        "fp8-e4m3(inputs=dynamic)",
        "fp8-e4m3-tensor(inputs=dynamic)",
        "fp8-e4m3-b128(inputs=dynamic)",
        "mxfp8",
        "mxfp8(inputs=dynamic)",
        "mxfp4",
        "mxfp4(inputs=dynamic)",
        "nvfp4",
    ),
    "gptq": ("int4-g128", "int4-g64-asym", "int4-g32", "int4", "int8-g128", "int8-g32-asym", "int3-g128", "int2-g32"),
    "awq": ("int4-g32", "int4-g64-asym", "int4-g128", "int4-g128-asym"),
    "fp8": ("fp8-e4m3-b128",),
    "torchao": ("int8", "int8(inputs=dynamic)", "fp8-e4m3", "int4-g32"),
    "bitsandbytes": ("nf4", "nf4-dq", "fp4", "llm-int8"),
}
SHAPES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
IDS = [3, 70, 8, 255, 19, 44, 101, 7]


def main(wanted: list[str]) -> None:
    warnings.simplefilter("ignore")
    print("target             recipe                           dtype     bytes = plan  effect   off by")
    with tempfile.TemporaryDirectory() as place:
        source = save_model(Path(place) / "source", **SHAPES)
        before = transformers_says(source, None, torch.bfloat16)
        line("dense", "(the model as it is)", torch.bfloat16, "", before, before, vllm_says(source, torch.bfloat16))
        for target, recipes in CASES.items():
            for recipe in recipes:
                if wanted and target not in wanted and f"{target}:{recipe}" not in wanted:
                    continue
                out = Path(place) / f"{target}-{recipe}"
                with open_checkpoint(source) as checkpoint:
                    plan = make_plan(checkpoint, load(recipe), get_target(target))
                    run(plan, checkpoint, out)
                same = "yes" if size_of(out) == plan.nbytes else "NO"
                try:
                    dtype = torch.bfloat16
                    got = vllm_says(out, dtype)
                except Exception as error:  # whatever the client has against it is the answer
                    said = str(error).strip().splitlines() or [type(error).__name__]
                    print(f"{target:18} {recipe:32} {same:>12}  not on a CPU: {said[0][:200]}", flush=True)
                    continue
                line(target, recipe, dtype, same, before, transformers_says(source, out, dtype), got)


def line(target: str, recipe: str, dtype: Any, same: str, before: Any, wanted: Any, got: Any) -> None:
    effect, off = ((a - wanted).square().mean().sqrt() for a in (before, got))
    name = str(dtype).removeprefix("torch.")
    print(f"{target:18} {recipe:32} {name:9} {same:>12} {effect:7.4f} {off:8.4f}", flush=True)


def vllm_says(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """float32 [len(IDS) − 1, vocabulary]: the logarithm of every token's probability after each prefix. In a process of
    its own, since vLLM sets its machinery up once; a failure there is a RuntimeError here."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return torch.tensor(alone.submit(_vllm_says, str(folder), dtype).result())


def _vllm_says(folder: str, dtype: torch.dtype) -> list[list[float]]:
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(folder, dtype=dtype, enforce_eager=True, max_model_len=64, skip_tokenizer_init=True, max_logprobs=-1)
        asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, detokenize=False)
        (answer,) = llm.generate([{"prompt_token_ids": IDS}], asked, use_tqdm=False)
    except Exception as error:  # not every error of vLLM's goes through a pipe
        traceback.print_exc()
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
    return [[given[token].logprob for token in range(SHAPES["vocab_size"])] for given in answer.prompt_logprobs[1:]]


def transformers_says(source: Path, folder: Path | None, dtype: torch.dtype) -> torch.Tensor:
    """The same of transformers' model, with the weights that we read from the folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    if folder is not None:
        with open_checkpoint(folder) as checkpoint:
            weights = {n: checkpoint.read(n).float().reshape(i.shape) for n, i in checkpoint.tensors.items()}
        model.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        return model.to(dtype)(torch.tensor([IDS])).logits[0, :-1].float().log_softmax(-1)


if __name__ == "__main__":
    main(sys.argv[1:])
