"""Folders given to vLLM on a CPU. No test: vLLM brings a hundred packages and is no dependency. docs/interop.md says
how to run it, and what it printed.

    python -m tests.interop.vllm_clients [--run] [TARGET[:RECIPE] …]

For every recipe a random Llama is quantized. vLLM reads its config, picks a scheme, builds the model, in which q, k and
v are one matrix, and gate and up, and loads the files; then every parameter must hold the stored numbers of its parts,
and none may be left over. That needs no kernel. With --run vLLM computes too, where its build for this processor can:
the logarithms of its probabilities are compared with those of transformers' model holding the weights that
`open_checkpoint` reads from the folder, both in bfloat16.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
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
    MASTER_ADDR="127.0.0.1",
    MASTER_PORT="29577",
)

import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.recipes import load
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.targets import get_target
from core.targets.fused import bundles
from tests.core.targets.build import save_model, size_of
from tests.core.targets.rounded import rounding_inputs, with_weights_of

# Behind a recipe that quantizes all but the head.
PLAIN_HEAD = ", head plain"
CASES = {
    "compressed-tensors": (
        "int4-g128",
        "int4-g64-asym",
        "int4",
        "int8-g128",
        "int8",
        "int3-g128",
        "int2-g32-asym",
        "int5-g128",
        "int6-g128",
        "int7-g128",
        "int4-tensor",
        "int8(inputs=dynamic)",
        "int8-tensor(inputs=dynamic)",
        "int4-g128(inputs=dynamic)",
        "int4(inputs=dynamic)",
        "fp8-e4m3",
        "fp8-e4m3-tensor",
        "fp8-e4m3-b128",
        f"fp8-e4m3-b128{PLAIN_HEAD}",
        f"fp8-e4m3-b128(inputs=dynamic){PLAIN_HEAD}",
        "fp8-e4m3(inputs=dynamic)",
        "fp8-e4m3-tensor(inputs=dynamic)",
        "mxfp8(inputs=dynamic)",
        "mxfp4(inputs=dynamic)",
        "NVFP4A16",
    ),
    "gptq": ("int4-g128", "int4-g64-asym", "int4-g32", "int4", "int8-g128", "int8-g32-asym", "int3-g128", "int2-g32"),
    "awq": ("int4-g32", "int4-g64-asym", "int4-g128", "int4-g128-asym"),
    "fp8": ("fp8-e4m3-b128",),
    "torchao": (
        "int8",
        f"int8{PLAIN_HEAD}",
        f"int8(inputs=dynamic){PLAIN_HEAD}",
        f"fp8-e4m3{PLAIN_HEAD}",
        f"int4-g32{PLAIN_HEAD}",
    ),
}
# What the build without AVX-512 has kernels for.
RUNS = {
    "compressed-tensors": (
        "int8(inputs=dynamic)",
        f"int8(inputs=dynamic){PLAIN_HEAD}",
        "int8-tensor(inputs=dynamic)",
        f"int8-tensor(inputs=dynamic){PLAIN_HEAD}",
    )
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
    running = "--run" in wanted
    wanted = [w for w in wanted if w != "--run"]
    with tempfile.TemporaryDirectory() as place:
        source = save_model(Path(place) / "source", **SHAPES)
        folders = {}
        for target, recipes in (RUNS if running else CASES).items():
            for recipe in recipes:
                if not wanted or target in wanted or f"{target}:{recipe}" in wanted:
                    out = Path(place) / f"{target}-{recipe}"
                    with open_checkpoint(source) as checkpoint:
                        plan = make_plan(checkpoint, _recipe(recipe), get_target(target))
                        run(plan, checkpoint, out)
                    assert size_of(out) == plan.nbytes
                    folders[target, recipe] = out
        if running:
            _compare_runs(source, folders)
        else:
            _compare_loads(folders)


def _recipe(text: str) -> Recipe:
    found = load(text.removesuffix(PLAIN_HEAD))
    keep = (Rule(Match(role=("head",)), Strategy("keep")),) if text.endswith(PLAIN_HEAD) else ()
    return Recipe(found.name, (*keep, *found.rules))


# Loading


def _compare_loads(folders: dict[tuple[str, str], Path]) -> None:
    print(f"{'target':18} {'recipe':32} {'parameters':>10} {'equal':>5}  taken as")
    for (target, recipe), folder in folders.items():
        try:
            model = _loaded(folder)
        except Exception as error:  # whatever it has against the folder is the answer
            said = " ".join(str(error).split())
            print(f"{target:18} {recipe:32} {'':10} {'no':>5}  {type(error).__name__}: {said[:240]}", flush=True)
            continue
        found = list(_parameters(model, _stored(folder)))
        layer = model.model.layers[0].self_attn.qkv_proj
        kind = getattr(layer, "scheme", None) or layer.quant_method
        same = sum(equal for _, equal in found)
        wrong = ", ".join(name for name, equal in found if not equal)
        print(f"{target:18} {recipe:32} {len(found):10} {same:5}  {type(kind).__name__} {wrong[:200]}", flush=True)


class _NoKernel:
    """In place of a kernel that this processor has none of. It computes nothing, and nothing is asked of it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: None


def _without_kernels() -> None:
    """vLLM asks for kernels when it builds a layer; before its schemes are imported, these are put off."""
    import vllm.model_executor.kernels.linear as kernels

    kernels.choose_mp_linear_kernel = lambda *given, **named: _NoKernel
    for name in vars(kernels):
        if name.startswith("init_") and name.endswith("linear_kernel"):
            setattr(kernels, name, _NoKernel)


def _loaded(folder: Path) -> Any:
    """vLLM's model with the files' contents in its parameters, before any kernel rearranges them."""
    _without_kernels()
    import vllm.model_executor.model_loader.base_loader as loader
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    loader.process_weights_after_loading = lambda *given, **named: None
    torch.accelerator.empty_cache = lambda: None  # type: ignore[assignment]
    asked = EngineArgs(
        model=str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=64, skip_tokenizer_init=True
    )
    config = asked.create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, "env://", 0, "gloo")
            initialize_model_parallel(1, 1)
        config.compilation_config.static_forward_context.clear()
        return get_model(vllm_config=config)


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _parameters(model: Any, stored: dict[str, torch.Tensor]) -> Iterator[tuple[str, bool]]:
    """(name of a parameter of vLLM's model, whether it holds what is stored of its parts). All stored tensors must have
    found their place."""
    modules = {name.rpartition(".")[0] for name in stored}
    parts_of = bundles(modules)
    taken: set[str] = set()
    for name, parameter in model.named_parameters():
        module, _, piece = name.rpartition(".")
        if piece == "weight_shape":  # of the parts, without a meaning for the whole
            taken.update(f"{part}.{piece}" for part in parts_of.get(module, (module,)))
            continue
        names = [f"{part}.{piece}" for part in parts_of.get(module, (module,))]
        if not stored.keys() >= set(names):
            yield f"{name} is not in the file", piece not in ("weight", "weight_packed", "qweight", "weight_scale")
            continue
        taken.update(names)
        wanted = [stored[part].to(parameter.dtype).reshape(-1, *stored[part].shape[1:]) for part in names]
        # Along whichever dimension the layout has its outputs.
        joined = [_cat(wanted, dim) for dim in range(wanted[0].dim())]
        fit = [w for w in joined if w is not None and w.numel() == parameter.numel()]
        yield name, any(torch.equal(w.reshape(parameter.shape).float(), parameter.data.float()) for w in fit)
    # Which group a column is in matters to it only where they are out of order.
    left = sorted(name for name in set(stored) - taken if not name.endswith(".g_idx"))
    yield from ((f"{name} is stored and not taken", False) for name in left)


def _cat(parts: list[torch.Tensor], dim: int) -> torch.Tensor | None:
    others = {tuple(n for d, n in enumerate(part.shape) if d != dim) for part in parts}
    return torch.cat(parts, dim) if len(others) == 1 else None


# Running


def _compare_runs(source: Path, folders: dict[tuple[str, str], Path]) -> None:
    print(f"{'target':18} {'recipe':32} {'effect':>8} {'off by':>8}")
    before = _transformers_says(source, None)
    _line("dense", "(the model as it is)", before, before, _vllm_says(source))
    for (target, recipe), folder in folders.items():
        _line(target, recipe, before, _transformers_says(source, folder), _vllm_says(folder))


def _line(target: str, recipe: str, before: torch.Tensor, wanted: torch.Tensor, got: torch.Tensor) -> None:
    effect, off = ((a - wanted).square().mean().sqrt() for a in (before, got))
    print(f"{target:18} {recipe:32} {effect:8.4f} {off:8.4f}", flush=True)


def _vllm_says(folder: Path) -> torch.Tensor:
    """float32 [len(IDS) − 1, vocabulary]: the logarithm of every token's probability after each prefix. In a process of
    its own, since vLLM sets its machinery up once."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return torch.tensor(alone.submit(_vllm_run, str(folder)).result())


def _vllm_run(folder: str) -> list[list[float]]:
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype="bfloat16", enforce_eager=True, max_model_len=64, skip_tokenizer_init=True, max_logprobs=-1)
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, detokenize=False)
    (answer,) = llm.generate([{"prompt_token_ids": IDS}], asked, use_tqdm=False)
    return [[given[token].logprob for token in range(SHAPES["vocab_size"])] for given in answer.prompt_logprobs[1:]]


def _transformers_says(source: Path, folder: Path | None) -> torch.Tensor:
    """The same of transformers' model, with the weights that we read from the folder, and inputs rounded to int8."""
    from transformers import AutoModelForCausalLM

    if folder is None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    else:
        model = with_weights_of(folder, source, torch.bfloat16)
        layers = [name.removesuffix(".weight_scale") for name in _stored(folder) if name.endswith(".weight_scale")]
        rounding_inputs(model, "int8", dict.fromkeys(layers))
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0, :-1].float().log_softmax(-1)


if __name__ == "__main__":
    main(sys.argv[1:])
