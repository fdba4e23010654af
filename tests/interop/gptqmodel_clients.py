"""GPTQ and AWQ folders loaded by transformers through GPTQModel on a CPU, against our own weights. No test: GPTQModel
compiles on installation and is no dependency. docs/interop.md says how to run it, and what it printed.

    python -m tests.interop.gptqmodel_clients

For every recipe a random Llama is quantized, loaded by the client, and its logits are compared with those of the same
model holding the weights that `open_checkpoint` reads from the folder (float16 in both).
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.recipes import load
from core.targets import get_target
from tests.core.targets.build import save_model, size_of

CASES = {
    "gptq": (
        "int4-g128",
        "int4-g64-asym",
        "int4",
        "int8-g32",
        "int8-asym",
        "int3-g32",
        "int3-g128-asym",
        "int2-g32",
        "int2-g16-asym",
    ),
    "awq": ("int4-g32", "int4-g64-asym", "int4-g128", "int4-g128-asym"),
}
SHAPES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
IDS = torch.tensor([[3, 70, 8, 255, 19, 44, 101, 7]])


def main() -> None:
    warnings.simplefilter("ignore")
    print("target recipe           client modules       bytes = plan  |logits|   effect   off by")
    with tempfile.TemporaryDirectory() as place:
        source = save_model(Path(place) / "source", dtype=torch.float16, **SHAPES)
        before = logits(plain(source))
        for target, recipes in CASES.items():
            for recipe in recipes:
                out = Path(place) / f"{target}-{recipe}"
                with open_checkpoint(source) as checkpoint:
                    plan = make_plan(checkpoint, load(recipe), get_target(target))
                    run(plan, checkpoint, out)
                client = loaded(out)
                kinds = sorted({type(m).__name__ for m in client.modules() if hasattr(m, "qweight")})
                same = "yes" if size_of(out) == plan.nbytes else "NO"
                wanted = logits(ours(source, out))
                try:
                    got = logits(client)
                except RuntimeError as error:
                    print(f"{target:6} {recipe:16} {', '.join(kinds):20} {same:>12} fails in its own kernel: {error}")
                    continue
                print(
                    f"{target:6} {recipe:16} {', '.join(kinds):20} {same:>12} {wanted.abs().max():9.3f} "
                    f"{(wanted - before).abs().max():8.3f} {(got - wanted).abs().max():8.4f}",
                    flush=True,
                )


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).eval()


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float16).eval()


def ours(source: Path, folder: Path) -> Any:
    """The model with the weights that we read from the quantized folder."""
    model = plain(source)
    with open_checkpoint(folder) as checkpoint:
        weights = {name: checkpoint.read(name).reshape(info.shape) for name, info in checkpoint.tensors.items()}
    model.load_state_dict({name: w.half() for name, w in weights.items()}, strict=False)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()


if __name__ == "__main__":
    main()
