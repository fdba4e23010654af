"""MLX and mlx-lm on our MLX folders: weights bit for bit, logits against transformers'. Needs
`pip install mlx[cpu] mlx-lm` (on a Mac `mlx mlx-lm`), which are no dependencies of ours.

    python -m benchmarks.mlx
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DEMO = Path(__file__).resolve().parent.parent / "resources" / "demo"
RECIPES = [f"int{b}-g{g}-bias" for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)]
RECIPES += ["int4-g32", "int4-g64", "int8-g128", "mxfp4", "mxfp8"]


def decoded(module: Any) -> np.ndarray:
    """What MLX makes of a quantized module's weight, float32."""
    import mlx.core as mx

    affine = module.mode == "affine"
    # Half-precision scales are widened first: the products are rounded to their type otherwise.
    scales = module.scales.astype(mx.float32) if affine else module.scales
    biases = module.biases.astype(mx.float32) if affine else None
    w = mx.dequantize(module.weight, scales, biases, module.group_size, module.bits, module.mode, dtype=mx.float32)
    return np.array(w)


def check(recipe: str, folder: Path) -> tuple[int, float, float]:
    """Quantized modules whose weights are equal, and the RMS difference of logits: MLX to our weights in transformers,
    and for scale that to the original."""
    import mlx.core as mx
    import torch
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model
    from transformers import AutoModelForCausalLM

    from core.checkpoints import open_checkpoint
    from core.engine.pipeline import run
    from core.engine.plan import make_plan
    from core.recipes import load
    from core.targets import get_target

    with open_checkpoint(DEMO) as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target("mlx"))
        run(plan, checkpoint, folder, workers=1)
    theirs, _ = load_model(folder)
    original = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    modules, equal = dict(theirs.named_modules()), 0
    with open_checkpoint(folder) as checkpoint, torch.no_grad():
        for name, parameter in ours.named_parameters():
            w = checkpoint.read(name).float().reshape(parameter.shape)
            parameter.copy_(w)
            module = modules[name.removesuffix(".weight")]
            if hasattr(module, "scales"):
                if not np.array_equal(decoded(module), w.numpy()):
                    raise SystemExit(f"{recipe}: {name} differs")
                equal += 1
    theirs.update(mapped(tree_flatten(theirs.parameters())))
    ids = list(range(3, 67))
    with torch.inference_mode():
        a, b = (m(torch.tensor([ids])).logits[0].float().numpy() for m in (ours, original))
    c = np.array(theirs(mx.array([ids])).astype(mx.float32))[0]
    return equal, float(np.sqrt(((a - c) ** 2).mean())), float(np.sqrt(((a - b) ** 2).mean()))


def mapped(parameters: list[tuple[str, Any]]) -> Any:
    """The same parameters in float32, but for codes and bytes."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    floats = (mx.bfloat16, mx.float16)
    return tree_unflatten([(k, v.astype(mx.float32) if v.dtype in floats else v) for k, v in parameters])


def main() -> None:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    print(f"mlx {mx.__version__}, the demo model; RMS of logits")
    print(f"{'recipe':<14} {'equal weights':>13} {'MLX − ours':>11} {'ours − original':>16}")
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            equal, apart, change = check(recipe, Path(folder) / "m")
        print(f"{recipe:<14} {equal:>13} {apart:>11.1e} {change:>16.3f}")


if __name__ == "__main__":
    main()
