"""What the main job promises, looked at through other people's software: llama.cpp, transformers, gguf."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.plan import make_plan
from core.formats import get_format
from core.recipes import PRESETS, load
from core.targets import TARGETS, get_target

PROMPT = "import os\n\ndef "
GENERATE = """
import json, os, sys
import xllamacpp
p = xllamacpp.CommonParams()
p.model.path = sys.argv[1]
p.n_ctx = 256
p.n_parallel = 1
server = xllamacpp.Server(p)
answer = server.handle_completions({"prompt": sys.argv[2], "max_tokens": 24, "temperature": 0.0})
sys.stdout.write("ANSWER " + json.dumps(answer) + "\\n")
sys.stdout.flush()
os._exit(0)
"""


# llama.cpp multiplies by 8-bit activations and keeps 16-bit keys and values: where the two likeliest tokens are closer
# than this, their order may turn.
NEAR = 0.05


def kld(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over tokens of KL(reference ‖ other), nats."""
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def test_llama_cpp_generates_from_the_gguf(quantize, demo) -> None:
    """llama.cpp continues a prompt, greedily, as transformers does with the same file: every token is the most likely
    one, or as good as that."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, _, _ = quantize("Q4_K_M", "gguf")
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(path), PROMPT], capture_output=True, text=True, timeout=120
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("ANSWER ")), None)
    assert line, done.stderr[-2000:]
    answer = json.loads(line.removeprefix("ANSWER "))
    assert answer["usage"]["completion_tokens"] == 24
    text = answer["choices"][0]["text"]

    tokenizer = AutoTokenizer.from_pretrained(demo)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    start, ties = len(ids), 0
    for _ in range(24):
        with torch.inference_mode():
            last = model(torch.tensor([ids])).logits[0, -1]
        likely = last.argsort(descending=True)[: int((last >= last.max() - NEAR).sum())].tolist()
        said = [tokenizer.decode([*ids[start:], token]) for token in likely]
        agreeing = [i for i, words in enumerate(said) if text.startswith(words)]
        assert agreeing, f"llama.cpp: {text!r}, transformers: {said}"
        ids.append(likely[agreeing[0]])
        ties += agreeing[0] > 0
    assert tokenizer.decode(ids[start:]) == text
    assert ties <= 2


def test_transformers_reads_the_gguf(quantize, original, logits) -> None:
    from transformers import AutoModelForCausalLM

    path, _, _ = quantize("Q4_K_M", "gguf")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # llama.cpp's own quantizer reaches 0.0075 on this model; far below would mean that nothing was quantized.
    assert 0.002 < kld(logits(original), logits(model)) < 0.015


def test_gguf_of_full_precision_changes_nothing(quantize, original, logits) -> None:
    from transformers import AutoModelForCausalLM

    path, _, _ = quantize("bf16", "gguf")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert torch.equal(logits(original), logits(model))


def test_transformers_reads_int4_compressed_tensors(quantize, original, logits, demo) -> None:
    """Logits equal those of the original model with our own dequantized weights put in."""
    from transformers import AutoModelForCausalLM

    path, plan, _ = quantize("int4-g128", "compressed-tensors")
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ours = copy.deepcopy(original)
    parameters = dict(ours.named_parameters())
    quantized = 0
    with open_checkpoint(demo) as checkpoint, torch.no_grad():
        for planned in plan.tensors:
            if planned.quantized:
                w = planned.tensor.source.read(checkpoint, 0, planned.tensor.rows)
                parameters[planned.tensor.name].copy_(planned.format.quantize(w).dequantize())
                quantized += 1
    assert quantized >= 28
    reference = logits(ours)
    torch.testing.assert_close(logits(theirs), reference, rtol=1e-4, atol=1e-4)
    assert 0.002 < kld(logits(original), reference) < 0.1


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_plan_is_the_disk_to_the_byte(quantize, demo, target) -> None:
    """Every preset and every format this container takes: planned bytes, reported bytes, bytes on disk."""
    from core.formats import FORMATS

    names = [p.name for p in PRESETS if p.available] + [f.name for f in FORMATS if f.encodable]
    written = 0
    for name in names:
        with open_checkpoint(demo) as checkpoint:
            plan = make_plan(checkpoint, load(name), target)
        if any(p.severity == "error" for p in plan.problems):
            continue
        out, plan, report = quantize(name, target.name)
        assert size_on_disk(out) == plan.nbytes == report.nbytes, name
        written += 1
    least = {"gguf": 10, "compressed-tensors": 8, "gptq": 8, "awq": 6, "bitsandbytes": 5, "torchao": 10, "dense": 20}
    assert written >= least.get(target.name, 1)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q4_K_S", "q4_0", "q4_1", "q8_0", "q6_k"])
def test_our_decoder_agrees_with_ggufs_on_our_files(quantize, recipe) -> None:
    path, _, _ = quantize(recipe, "gguf")
    reader = gguf.GGUFReader(path)
    with open_checkpoint(path) as ours:
        assert [t.name for t in reader.tensors] == [n for n in (t.name for t in reader.tensors) if n in ours.tensors]
        assert len(ours.tensors) == len(reader.tensors) == 39
        for t in reader.tensors:
            theirs = gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1)
            mine = ours.read(t.name).float().reshape(-1).numpy()
            assert np.array_equal(theirs.view(np.uint32), mine.view(np.uint32)), t.name


def test_gguf_to_gguf_keeps_all_metadata(quantize, tmp_path) -> None:
    from core.engine.pipeline import run

    first, _, _ = quantize("bf16", "gguf")
    with open_checkpoint(first) as checkpoint:
        plan = make_plan(checkpoint, load("Q4_K_M"), get_target("gguf"))
        run(plan, checkpoint, tmp_path / "second.gguf", workers=1)
    direct, _, _ = quantize("Q4_K_M", "gguf")
    a, b = gguf.GGUFReader(direct), gguf.GGUFReader(tmp_path / "second.gguf")
    # Through bf16 or straight from safetensors: the weights are the same, so the blocks are.
    assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
    for x, y in zip(a.tensors, b.tensors, strict=True):
        assert x.tensor_type == y.tensor_type
        assert np.array_equal(x.data, y.data), x.name
    keys = {k: str(f.contents()) for k, f in gguf.GGUFReader(first).fields.items() if not k.startswith("GGUF.")}
    kept = {k: str(f.contents()) for k, f in b.fields.items() if not k.startswith("GGUF.")}
    assert {k: v for k, v in keys.items() if k not in ("general.file_type", "general.quantization_version")} == {
        k: v for k, v in kept.items() if k not in ("general.file_type", "general.quantization_version")
    }


def test_report_agrees_with_an_independent_error(quantize, demo) -> None:
    """The SQNR in the report is the one numpy finds between the original and gguf's decoding of the file."""
    path, _, report = quantize("q4_k", "gguf")
    reported = {t.name: t for t in report.tensors}
    data = {t.name: t for t in gguf.GGUFReader(path).tensors}["blk.2.ffn_down.weight"]
    decoded = gguf.quants.dequantize(data.data, data.tensor_type).astype(np.float64)
    with open_checkpoint(demo) as checkpoint:
        w = checkpoint.read("model.layers.2.mlp.down_proj.weight").double().numpy()
    sqnr = 10 * np.log10((w**2).sum() / ((w - decoded) ** 2).sum())
    assert reported["blk.2.ffn_down.weight"].sqnr_db == pytest.approx(sqnr, abs=1e-3)
    assert get_format("q4_k").bpw(w.shape) == 4.5
