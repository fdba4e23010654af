"""Perplexity and distance are those of transformers on the whole model; what is evaluated is what was written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.context import SILENT
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import Cancelled, CheckpointError, EvaluationError, WorkbenchError
from core.evaluation.perplexity import Evaluation, evaluate
from core.evaluation.subjects import as_model, as_written
from core.evaluation.text import HALF, HELD_OUT, Windows, WindowSettings, read_windows
from core.recipes import load
from core.targets import get_target
from tests.core.calibration.build import MODELS, model, text_file
from tests.core.targets import llama_cpp

WINDOW = 24


def windows_of(folder: Path, work: Path, **options: Any) -> Windows:
    given = {"window": WINDOW, "windows": 6} | options
    return read_windows(folder, WindowSettings(text_file(work), **given))


def whole(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def judged(folder: Path, windows: Windows, other: Path | None = None, **options: Any) -> Evaluation:
    with open_checkpoint(folder) as checkpoint:
        if other is None:
            return evaluate(checkpoint, windows, **options)
        with open_checkpoint(other) as made, as_model(made, checkpoint) as second:
            return evaluate(checkpoint, windows, against=second, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_perplexity_is_that_of_transformers_own_loss(tmp_path: Path, kind: str) -> None:
    made = model(tmp_path / "m", kind)
    windows = windows_of(tmp_path / "m", tmp_path)
    ids = torch.from_numpy(windows.samples.ids)
    with torch.no_grad():
        losses = [float(made(input_ids=row[None], labels=row[None]).loss) for row in ids]
    found = judged(tmp_path / "m", windows).perplexity
    assert found.tokens == 6 * (WINDOW - 1)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert 0.005 < found.error / found.value < 0.5


def test_the_demo_model_on_text_it_knows(demo: Path) -> None:
    """A trained model: far from chance, and to the digit what transformers says."""
    windows = read_windows(demo, WindowSettings(None, 128, windows=6))
    assert windows.samples.name == HELD_OUT
    made = whole(demo)
    ids = torch.from_numpy(windows.samples.ids)
    with torch.no_grad():
        losses = [float(made(input_ids=row[None], labels=row[None]).loss) for row in ids]
    found = judged(demo, windows).perplexity
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert 5 < found.value < 200


def test_overlapping_windows_score_each_token_once(tmp_path: Path) -> None:
    """The loop of transformers' page on perplexity: what an earlier window scored counts for nothing in a later one."""
    made = model(tmp_path / "m", "llama")
    windows = windows_of(tmp_path / "m", tmp_path, stride=10, windows=5)
    stream = read_windows(tmp_path / "m", WindowSettings(text_file(tmp_path), 4 * 10 + WINDOW, windows=1))
    ids = torch.from_numpy(stream.samples.ids)
    total, count, previous = 0.0, 0, 0
    with torch.no_grad():
        for begin in range(0, ids.shape[1] - WINDOW + 1, 10):
            end = begin + WINDOW
            labels = ids[:, begin:end].clone()
            labels[:, : WINDOW - (end - previous)] = -100
            scored = int((labels[:, 1:] != -100).sum())
            total += float(made(input_ids=ids[:, begin:end], labels=labels).loss) * scored
            count, previous = count + scored, end
    found = judged(tmp_path / "m", windows).perplexity
    assert found.tokens == count == 4 * 10 + WINDOW - 1
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-5)


def test_llama_cpp_agrees_on_our_gguf(demo: Path, tmp_path: Path) -> None:
    """Its logits, scored by its own convention, of a file without rounding; of a quantized one, where llama.cpp also
    rounds the activations, as near as that allows."""
    windows = read_windows(demo, WindowSettings(None, 64, windows=3, score=HALF))
    assert windows.first == (33, 33, 33)
    with open_checkpoint(demo) as checkpoint:
        for recipe, within in (("f32", 2e-5), ("Q4_K_M", 5e-3)):
            out = tmp_path / f"{recipe}.gguf"
            run(make_plan(checkpoint, load(recipe), get_target("gguf")), checkpoint, out)
            with open_checkpoint(out) as made, as_model(made, checkpoint) as same:
                found = evaluate(same, windows).perplexity
            nll = []
            for row in windows.samples.ids:
                (answer,) = llama_cpp.ask((out, [], row.tolist()))
                logits = torch.from_numpy(answer.logits).double().log_softmax(-1)
                nll += [-float(logits[n - 1, row[n]]) for n in range(33, 64)]
            assert found.tokens == len(nll) == 93
            assert found.value == pytest.approx(math.exp(np.mean(nll)), rel=within)


def test_distance_is_that_of_the_whole_models(tmp_path: Path) -> None:
    made, other = model(tmp_path / "a", "llama"), model(tmp_path / "b", "llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.004)
    other.save_pretrained(tmp_path / "b")
    windows = windows_of(tmp_path / "a", tmp_path)
    ids = torch.from_numpy(windows.samples.ids)
    with torch.no_grad():
        first, second = (m(input_ids=ids, output_hidden_states=True) for m in (made, other))
    p, q = (x.logits[:, :-1].double().log_softmax(-1) for x in (first, second))
    kld = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).flatten().numpy()
    nll = [-x.gather(2, ids[:, 1:, None]).flatten().numpy() for x in (p, q)]
    result = judged(tmp_path / "a", windows, tmp_path / "b")
    assert result.against is not None
    d = result.against.distance
    assert d.kld_mean == pytest.approx(kld.mean(), rel=1e-4)
    assert d.kld_median == pytest.approx(np.median(kld), rel=1e-3)
    assert d.kld_p99 == pytest.approx(np.quantile(kld, 0.99), rel=1e-3)
    assert d.kld_max == pytest.approx(kld.max(), rel=1e-3)
    assert d.kld_error == pytest.approx(kld.std(ddof=1) / math.sqrt(len(kld)), rel=1e-3)
    assert d.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert 0.2 < d.top1_agreement < 0.999
    values = [math.exp(x.mean()) for x in nll]
    assert result.perplexity.value == pytest.approx(values[0], rel=1e-5)
    assert result.against.perplexity.value == pytest.approx(values[1], rel=1e-5)
    assert d.ratio == pytest.approx(values[1] / values[0], rel=1e-5)
    assert d.difference == pytest.approx(values[1] - values[0], abs=1e-3 * values[0])
    # A bootstrap over tokens knows nothing of formulas.
    drawn = np.random.default_rng(0).integers(0, len(kld), (4000, len(kld)))
    a, b = (np.exp(x[drawn].mean(1)) for x in nll)
    assert d.ratio_error == pytest.approx((b / a).std(), rel=0.1)
    assert d.difference_error == pytest.approx((b - a).std(), rel=0.1)
    assert result.perplexity.error == pytest.approx(a.std(), rel=0.1)
    # Behind the last block transformers only shows the normalised states.
    for n, block in enumerate(result.against.blocks[:-1]):
        h, hh = (x.hidden_states[n + 1].double() for x in (first, second))
        assert block.relative_error == pytest.approx(float((h - hh).square().sum() / h.square().sum()), rel=1e-3)


def test_layer_errors_are_those_of_outputs_seen_by_hooks(tmp_path: Path) -> None:
    made = model(tmp_path / "m", "gpt2")
    windows = windows_of(tmp_path / "m", tmp_path)
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in made.named_modules():
        if type(module).__name__ == "Conv1D":
            module.register_forward_pre_hook(lambda m, args, name=name: seen.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        made(input_ids=torch.from_numpy(windows.samples.ids))
    with open_checkpoint(tmp_path / "m") as checkpoint:
        plan = make_plan(checkpoint, load("int4-g32-asym"), get_target("dense"))
        with as_written(plan, checkpoint) as other:
            result = evaluate(checkpoint, windows, against=other, layers=True)
            assert result.against is not None
            errors = {e.name: e for e in result.against.layers}
            assert len(errors) == 3 * 4
            for name, inputs in seen.items():
                w = checkpoint.read(f"{name}.weight").double()
                off = w - other.read(f"{name}.weight").double()
                x = torch.cat(inputs).double().flatten(0, 1)
                found = errors[f"{name}.weight"]
                assert found.tokens == len(x)
                wanted = float((x @ off).square().sum() / (x @ w).square().sum())
                assert found.output_error == pytest.approx(wanted, rel=1e-3)
                assert found.weight_error == pytest.approx(float(off.square().sum() / w.square().sum()), rel=1e-5)
            assert any(e.output_error != pytest.approx(e.weight_error, rel=0.05) for e in errors.values())


def test_experts_count_by_their_tokens(tmp_path: Path) -> None:
    model(tmp_path / "m", "mixtral")
    windows = windows_of(tmp_path / "m", tmp_path)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        plan = make_plan(checkpoint, load("q8_0"), get_target("gguf"))
        with as_written(plan, checkpoint) as other:
            result = evaluate(checkpoint, windows, against=other, layers=True)
    assert result.against is not None
    tokens = [e.tokens for e in result.against.layers if "layers.0" in e.name and ".w1." in e.name]
    assert sum(tokens) == 6 * WINDOW * 2
    experts = [e for e in result.against.layers if ".experts." in e.name]
    assert len(experts) == 3 * 4 * 3
    assert all(1e-6 < e.weight_error < 1e-4 for e in experts)


@pytest.mark.parametrize(
    ("kind", "recipe", "target"),
    [
        ("llama", "q4_0", "gguf"),  # rows permuted
        ("mixtral", "q8_0", "gguf"),  # experts stacked
        ("gpt2", "q5_0", "gguf"),  # transposed
        ("gemma3", "q4_1", "gguf"),  # norms plus one, head tied
        ("bloom", "q8_0", "gguf"),  # fused projection regrouped
        ("llama", "int4-g32", "compressed-tensors"),
        ("gpt2", "int8", "dense"),
    ],
)
def test_a_recipe_is_judged_as_what_it_writes(tmp_path: Path, kind: str, recipe: str, target: str) -> None:
    model(tmp_path / "m", kind, **({"query_pre_attn_scalar": 16} if kind == "gemma3" else {}))
    windows = windows_of(tmp_path / "m", tmp_path)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target(target))
        out = tmp_path / ("out.gguf" if target == "gguf" else "out")
        run(plan, checkpoint, out)
        with as_written(plan, checkpoint) as other:
            simulated = evaluate(checkpoint, windows, against=other).against
        with open_checkpoint(out) as made, as_model(made, checkpoint) as other:
            assert set(other.tensors) <= set(checkpoint.tensors)
            written = evaluate(checkpoint, windows, against=other).against
    assert simulated is not None
    assert written is not None
    assert written.distance == simulated.distance
    assert 1e-7 < written.distance.kld_mean < 1


def test_a_gguf_by_itself_is_run_by_its_key_values(demo: Path, tmp_path: Path) -> None:
    with open_checkpoint(demo) as checkpoint:
        windows = read_windows(demo, WindowSettings(None, 64, windows=4))
        run(make_plan(checkpoint, load("Q5_K_M"), get_target("gguf")), checkpoint, tmp_path / "x.gguf")
        with open_checkpoint(tmp_path / "x.gguf") as made, as_model(made, checkpoint) as same:
            wanted = evaluate(same, windows).perplexity
        with open_checkpoint(tmp_path / "x.gguf") as made, as_model(made) as alone:
            again = read_windows(alone.folder(), WindowSettings(None, 64, windows=4))
            assert np.array_equal(again.samples.ids, windows.samples.ids)
            assert evaluate(alone, again).perplexity == wanted


def test_a_calibrated_recipe_is_judged_as_what_it_writes(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.calibration.text import TextSettings, read_samples

    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "kept"))
    windows = read_windows(demo, WindowSettings(None, 64, windows=2))
    with open_checkpoint(demo) as checkpoint:
        samples = read_samples(checkpoint, TextSettings(None, 2, 64))
        plan = make_plan(checkpoint, load("q4_0"), get_target("gguf"), calibration=samples)
        run(plan, checkpoint, tmp_path / "x.gguf")
        with as_written(plan, checkpoint) as other:
            simulated = evaluate(checkpoint, windows, against=other).against
        with open_checkpoint(tmp_path / "x.gguf") as made, as_model(made, checkpoint) as other:
            written = evaluate(checkpoint, windows, against=other).against
    assert simulated is not None
    assert written is not None
    assert simulated.distance == written.distance


class Counting:
    """Progress that is written down, and a cancel after some checks."""

    def __init__(self, stop: int = 1 << 30) -> None:
        self.said: list[tuple[int, int]] = []
        self.left = stop
        self.partial = SILENT.partial

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.said.append((done, total))

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled


def test_progress_is_in_tokens_and_it_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))
    (tmp_path / "room").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    model(tmp_path / "m", "llama")
    windows = windows_of(tmp_path / "m", tmp_path)
    ctx = Counting()
    judged(tmp_path / "m", windows, tmp_path / "m", ctx=ctx)
    done = [d for d, _ in ctx.said]
    assert done == sorted(done)
    assert ctx.said[-1] == (2 * 6 * WINDOW, 2 * 6 * WINDOW)
    for checks in range(0, 12, 3):
        with pytest.raises(Cancelled):
            judged(tmp_path / "m", windows, tmp_path / "m", ctx=Counting(checks))
    assert list((tmp_path / "room").iterdir()) == []


def test_what_cannot_be_judged_says_so(tmp_path: Path, demo: Path) -> None:
    model(tmp_path / "m", "llama")
    short = tmp_path / "short.txt"
    short.write_text("only this")

    def words(action: Any) -> str:
        with pytest.raises(WorkbenchError) as caught:
            action()
        line = str(caught.value)
        assert "\n" not in line
        return line

    folder = tmp_path / "m"
    assert "and a window 512" in words(lambda: read_windows(folder, WindowSettings(short)))
    assert "not within the window" in words(lambda: read_windows(folder, WindowSettings(short, 8, 9)))
    assert "lie side by side" in words(lambda: read_windows(folder, WindowSettings(short, 8, 4, score=HALF)))
    assert "no way to score" in words(lambda: read_windows(folder, WindowSettings(short, score="some")))
    missing = words(lambda: read_windows(tmp_path, WindowSettings(None)))
    assert "no tokenizer" in missing
    assert "evaluation needs tokenizer.json" in missing
    long = read_windows(folder, WindowSettings(None, 3000, windows=1))
    assert "longer than the 2,048" in words(lambda: judged(folder, long))
    windows = windows_of(folder, tmp_path)
    assert "the original" in words(lambda: judged(folder, windows, demo))
    with open_checkpoint(demo) as checkpoint:
        run(make_plan(checkpoint, load("q8_0"), get_target("gguf")), checkpoint, tmp_path / "x.gguf")
    assert "is it a GGUF of this model?" in words(lambda: judged(folder, windows, tmp_path / "x.gguf"))


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    made = model(tmp_path / "m", "llama")
    windows = windows_of(tmp_path / "m", tmp_path)
    made.lm_head.weight.data[3] = math.nan
    made.save_pretrained(tmp_path / "n")
    with pytest.raises(EvaluationError, match="predictions hold NaN or Inf"):
        judged(tmp_path / "m", windows, tmp_path / "n")
    made.model.layers[1].mlp.up_proj.weight.data[3] = math.nan
    made.save_pretrained(tmp_path / "n")
    with pytest.raises(WorkbenchError, match=r"model\.layers\.1.*NaN or Inf on the text"):
        judged(tmp_path / "m", windows, tmp_path / "n")


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    import json

    model(tmp_path / "m", "llama")
    windows = windows_of(tmp_path / "m", tmp_path)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(
        json.dumps(config | {"model_type": "enigma", "architectures": ["EnigmaForCausalLM"]})
    )
    with pytest.raises((EvaluationError, CheckpointError, WorkbenchError), match="EnigmaForCausalLM") as caught:
        judged(tmp_path / "m", windows)
    assert "calibration" not in str(caught.value)


def test_windows_begin_with_the_tokenizers_own_token(demo: Path, tmp_path: Path) -> None:
    """All: a token in front, within the length, and the text's first token is scored. Half: it takes the place of each
    window's first token, and the text's own beginning has one too, as llama.cpp has it."""
    import json

    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((demo / name).read_bytes())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    (start,) = {json.loads((demo / "config.json").read_text())["bos_token_id"]}
    token = tokenizer.id_to_token(start)
    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, start)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    bare = read_windows(demo, WindowSettings(None, 64, windows=3)).samples.ids.reshape(-1)
    every = read_windows(tmp_path, WindowSettings(None, 16, windows=4))
    assert every.samples.ids[:, 0].tolist() == [start] * 4
    assert every.samples.ids[:, 1:].reshape(-1).tolist() == bare[: 4 * 15].tolist()
    assert every.first == (1, 1, 1, 1)
    assert every.scored == 60
    overlapping = read_windows(tmp_path, WindowSettings(None, 16, stride=5, windows=3))
    assert [row[1:].tolist() for row in overlapping.samples.ids] == [bare[n : n + 15].tolist() for n in (0, 5, 10)]
    assert overlapping.first == (1, 11, 11)
    half = read_windows(tmp_path, WindowSettings(None, 16, windows=4, score=HALF))
    stream = [start, *bare.tolist()]
    for n, row in enumerate(half.samples.ids.tolist()):
        assert row == [start, *stream[16 * n + 1 : 16 * n + 16]]
    assert half.first == (9,) * 4
