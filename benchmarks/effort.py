"""What effort `best` brings over `exact` (llama.cpp's own answer): error, speed, and how far the demo model strays.

    python -m benchmarks.effort [folder of a Hugging Face checkpoint] [text file]

RMSE and weighted RMSE (llama.cpp's weights, see fitting/searches_best.py) are ratios best / exact on Gaussian weights;
speeds are million weights/s of one core, ours by turns with llama.cpp's C code, the best of several turns. KLD (nats
per token) and perplexity: the folder's model, demo by default, its linear layers and its embedding quantized and
decoded again, in float32 over windows of text: files of the interpreter's own library, or the file given.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.formats import best as fastest
from core.formats import get_format
from core.formats.fitting import warm
from core.formats.ggml.format import WRITTEN
from tests.core.formats import llama
from tests.core.formats.ggml_weights import search_weights

ROWS, COLUMNS = 512, 1024
TURNS = 7
# The C searches are slow: their time is taken from this share of the rows.
SHARE = 8
WINDOW, WINDOWS = 256, 48
MODEL_TYPES = (
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_XS",
    "IQ4_NL",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "MXFP4",
)
TEXTS = ("difflib.py", "textwrap.py", "statistics.py", "shelve.py")


def ratios(name: str, w: torch.Tensor, importance: torch.Tensor | None) -> str:
    f = get_format(name.lower())
    x, given = w.numpy(), None if importance is None else importance.numpy()
    e = [
        (llama.dequantize(name, f.quantize(w, importance, effort).parts["blocks"].numpy(), COLUMNS) - x).astype(float)
        ** 2
        for effort in f.efforts
    ]
    weights = search_weights(name, x, given)
    few = x[: ROWS // SHARE]
    ours, theirs = [], []
    for _ in range(TURNS):  # by turns
        ours.append(fastest(lambda: f.quantize(w, importance, "best").parts, 1) / x.size)
        theirs.append(fastest(lambda: llama.quantize(name, few, given), 1) / few.size)
    speed, reference = 1e-6 / min(ours), 1e-6 / min(theirs)
    label = name.lower() + ("" if importance is None else " +importance")
    error = np.sqrt(e[1].sum() / e[0].sum())
    weighted = np.sqrt((weights * e[1]).sum() / (weights * e[0]).sum())
    return f"{label:18} {error:8.4f} {weighted:8.4f} {speed:8.0f} {reference:8.0f} {speed / reference:7.2f}x"


def windows(folder: Path, text: Path | None) -> torch.Tensor:
    """int64 [windows, WINDOW]."""
    from transformers import AutoTokenizer

    library = Path(sysconfig.get_paths()["stdlib"])
    files = [text] if text else [library / t for t in TEXTS]
    ids = AutoTokenizer.from_pretrained(folder)("\n".join(f.read_text() for f in files))["input_ids"]
    count = min(WINDOWS, len(ids) // WINDOW)
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def predictions(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Log probabilities, float32 [windows, WINDOW − 1, words]."""
    with torch.no_grad():
        parts = [model(t[None]).logits[0, :-1].float().log_softmax(-1) for t in tokens]
    return torch.stack(parts)


def perplexity(log_p: torch.Tensor, tokens: torch.Tensor) -> float:
    return float(-log_p.gather(-1, tokens[:, 1:, None]).double().mean()) if log_p.numel() else 0.0


def strays(folder: Path, text: Path | None) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = windows(folder, text)
    reference = predictions(model, tokens)
    names = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)}
    matrices = {n: p for n, p in model.named_parameters() if n.removesuffix(".weight") in names}
    original = {n: p.detach().clone() for n, p in matrices.items()}
    print(f"\n{folder.name}: {len(tokens)} windows of {WINDOW}, perplexity {np.exp(perplexity(reference, tokens)):.3f}")
    print(f"{'':10} {'KLD exact':>10} {'best':>10} {'ratio':>7}   {'ppl exact':>9} {'best':>9}")
    for name in MODEL_TYPES:
        found = []
        for effort in ("exact", "best"):
            for n, p in matrices.items():
                if p.shape[1] % get_format(name.lower()).columns_per_grid == 0:
                    p.data.copy_(get_format(name.lower()).quantize(original[n], None, effort).dequantize())
            log_p = predictions(model, tokens)
            kld = float((reference.exp() * (reference - log_p)).sum(-1).double().mean())
            found.append((kld, float(np.exp(perplexity(log_p, tokens)))))
        (kld, ppl), (kld_best, ppl_best) = found
        print(f"{name:10} {kld:10.5f} {kld_best:10.5f} {kld_best / kld:7.3f}   {ppl:9.3f} {ppl_best:9.3f}", flush=True)


def main(folder: Path | None = None, text: Path | None = None) -> None:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    w = torch.randn(ROWS, COLUMNS, generator=g) * 0.02
    importance = torch.rand(COLUMNS, generator=g) + 0.01
    print(f"{'':18} {'RMSE':>8} {'weighted':>8} {'best M/s':>8} {'C M/s':>8} {'ratio':>8}")
    for name in WRITTEN:
        f = get_format(name.lower())
        if "best" in f.efforts:
            for given in (None, importance):
                warm(f, given is not None)
                print(ratios(name, w, given), flush=True)
    strays(folder or Path(__file__).parents[1] / "resources" / "demo", text)


if __name__ == "__main__":
    main(*(Path(a) for a in sys.argv[1:3]))
