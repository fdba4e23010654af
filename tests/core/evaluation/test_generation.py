"""Generation: the tokens of a plain loop on transformers, and the same from llama.cpp; figures that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import Cancelled, EvaluationError, WorkbenchError
from core.evaluation.generation import LLAMA, TRANSFORMERS, Request, generate
from core.recipes import load
from core.targets import get_target
from tests.core.evaluation.test_perplexity import Counting

PROMPT = "def main(args):\n    "


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    out = tmp_path_factory.mktemp("generation") / "f32.gguf"
    with open_checkpoint(demo) as checkpoint:
        run(make_plan(checkpoint, load("f32"), get_target("gguf")), checkpoint, out)
    return out


def greedy(folder: Path, tokens: int) -> tuple[int, str]:
    """The likeliest token again and again, without a cache."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    before = ids.shape[1]
    with torch.no_grad():
        for _ in range(tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return before, tokenizer.decode(ids[0, before:])


def test_both_runtimes_say_what_a_plain_loop_says(demo: Path, gguf: Path) -> None:
    before, wanted = greedy(demo, 16)
    ctx = Counting()
    for path, runtime in ((demo, ""), (gguf, ""), (gguf, TRANSFORMERS)):
        with open_checkpoint(path) as checkpoint:
            made = generate(checkpoint, Request(PROMPT, 16), runtime=runtime, ctx=ctx)
        assert made.text == wanted
        assert made.runtime == (LLAMA if path == gguf and not runtime else TRANSFORMERS)
        assert (made.input_tokens, made.output_tokens) == (before, 16)
        assert 0 < made.prompt_seconds < made.seconds < 60
        assert 15 / made.seconds < made.tokens_per_second < 1e5
        assert 2**24 < made.peak_rss_bytes < 2**34
    assert ctx.said[-1] == (16, 16)


def test_sampling_follows_its_seed(demo: Path) -> None:
    with open_checkpoint(demo) as checkpoint:
        said = [generate(checkpoint, Request(PROMPT, 12, 1.5, seed)).text for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_generation_can_be_stopped(demo: Path, gguf: Path) -> None:
    for path in (demo, gguf):
        with open_checkpoint(path) as checkpoint, pytest.raises(Cancelled):
            generate(checkpoint, Request(PROMPT, 500), ctx=Counting(2))


def test_what_cannot_be_run_says_so(demo: Path, gguf: Path, tmp_path: Path) -> None:
    with open_checkpoint(demo) as checkpoint:
        with pytest.raises(EvaluationError, match="GGUF files only"):
            generate(checkpoint, Request(PROMPT), runtime=LLAMA)
        with pytest.raises(EvaluationError, match="no runtime is called 'vllm'"):
            generate(checkpoint, Request(PROMPT), runtime="vllm")
        with pytest.raises(EvaluationError, match="0 tokens are none"):
            generate(checkpoint, Request(PROMPT, 0))
        with pytest.raises(WorkbenchError, match="no tokens"):
            generate(checkpoint, Request(""))
    odd = bytearray(gguf.read_bytes())
    at = odd.index(b"llama", odd.index(b"general.architecture"))
    odd[at : at + 5] = b"enigm"
    (tmp_path / "odd.gguf").write_bytes(bytes(odd))
    with open_checkpoint(tmp_path / "odd.gguf") as checkpoint, pytest.raises(EvaluationError) as caught:
        generate(checkpoint, Request(PROMPT))
    assert "llama.cpp cannot run it" in str(caught.value)
    assert "\n" not in str(caught.value)
