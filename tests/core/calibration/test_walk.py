"""A walk block by block finds what plain hooks find in the whole model, for every kind of layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.calibration.gathering import Gatherer, Split
from core.calibration.runner import ALL
from core.calibration.statistics import Statistic, TensorStatistics
from core.calibration.walk import Walk
from core.checkpoints import open_checkpoint
from core.errors import CalibrationError
from tests.core.calibration.build import LENGTH, MODELS, SAMPLES, Hooked, model, samples_of, text_file

IMPORTANCE = Statistic.IMPORTANCE


def walked(folder: Path, work: Path) -> dict[str, TensorStatistics]:
    with open_checkpoint(folder) as checkpoint:
        walk = Walk(checkpoint, samples_of(checkpoint, text_file(work)), work / "walk", "x", ALL)
        walk.restart()
        found: dict[str, TensorStatistics] = {}
        for block in range(walk.count):
            found |= walk.gather(block, onward=lambda kept: None)
        found |= walk.head()
        walk.close()
        return found


def ids_of(folder: Path, work: Path) -> torch.Tensor:
    with open_checkpoint(folder) as checkpoint:
        return torch.from_numpy(samples_of(checkpoint, text_file(work)).ids)


def close(found: np.ndarray, wanted: torch.Tensor, within: float = 1e-5) -> None:
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=within * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", MODELS)
def test_statistics_are_those_of_plain_hooks(tmp_path: Path, kind: str) -> None:
    made = model(tmp_path / "m", kind)
    found = walked(tmp_path / "m", tmp_path)
    hooked = Hooked(made, ids_of(tmp_path / "m", tmp_path))
    checked = 0
    for name, count in hooked.counts.items():
        known = found.get(f"{name}.weight")
        if known is None:
            assert name == "lm_head", name  # tied: the embedding has it
            tied = made.get_input_embeddings().weight
            known = found[next(n for n, p in made.named_parameters() if p is tied)]
        assert known.counts == (count,)
        close(known.values[IMPORTANCE], hooked.importance(name))
        close(known.values[Statistic.HESSIAN], hooked.hessian(name))
        close(known.values[Statistic.ABSMAX], hooked.largest[name])
        low, high = known.values[Statistic.RANGE]
        assert -float(hooked.largest[name].max()) * 1.001 <= low <= high <= float(hooked.largest[name].max()) * 1.001
        tokens = known.values[Statistic.ACTIVATIONS]
        assert 100 <= len(tokens) <= SAMPLES * LENGTH
        assert np.abs(tokens).max() <= float(hooked.largest[name].max()) * 1.001
        checked += 1
    assert checked >= 13
    assert {known.transposed for known in found.values()} == ({True, False} if kind in ("gpt2", "gpt-oss") else {False})


def test_every_expert_has_the_statistics_of_its_own_tokens(tmp_path: Path) -> None:
    """Mixtral's experts are apart in the file and fused in transformers; their inputs are recomputed here."""
    made = model(tmp_path / "m", "mixtral")
    found = walked(tmp_path / "m", tmp_path)
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    inner: dict[tuple[int, int], list[torch.Tensor]] = {}

    def hook(layer: int):
        def look(module, args):
            x, index, _ = args
            for e in range(module.num_experts):
                mine = x[(index == e).any(1)]
                seen.setdefault((layer, e), []).append(mine)
                gate, up = (mine @ module.gate_up_proj[e].T).chunk(2, -1)
                inner.setdefault((layer, e), []).append(torch.nn.functional.silu(gate) * up)

        return look

    for n, layer in enumerate(made.model.layers):
        layer.mlp.experts.register_forward_pre_hook(hook(n))
    with torch.no_grad():
        for sample in ids_of(tmp_path / "m", tmp_path):
            made(input_ids=sample[None])
    counts = set()
    for (layer, e), parts in seen.items():
        base = f"model.layers.{layer}.block_sparse_moe.experts.{e}"
        for stem, inputs in (("w1", parts), ("w3", parts), ("w2", inner[layer, e])):
            x = torch.cat(inputs).double()
            known = found[f"{base}.{stem}.weight"]
            assert known.counts == (len(x),)
            close(known.values[IMPORTANCE], x.square().mean(0))
            close(known.values[Statistic.HESSIAN], 2 * x.T @ x / len(x))
            counts.add(len(x))
    assert len(counts) > 3


def test_an_expert_that_no_token_reaches(tmp_path: Path) -> None:
    model(tmp_path / "m", "mixtral", router_jitter_noise=0.0)
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    for layer in range(3):
        gate = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        # Two experts share the second place, in turn above and below the others; the last is never among the best two.
        gate[3] = -(gate[0] + gate[1] + gate[2])
        gate[3] -= 100 * gate[:3].mean(0)
    save_file(tensors, file, {"format": "pt"})
    found = walked(tmp_path / "m", tmp_path)
    idle = [n for n, k in found.items() if k.counts == (0,)]
    busy = {n: k.counts[0] for n, k in found.items() if ".experts." in n and n not in idle}
    total = sum(c for n, c in busy.items() if ".w1." in n and ".layers.0." in n)
    assert total == 2 * SAMPLES * LENGTH
    for name in idle:
        np.testing.assert_array_equal(found[name].values[IMPORTANCE], 1)
        assert set(found[name].values) == {IMPORTANCE}


def test_weights_that_give_nan_are_named(tmp_path: Path) -> None:
    model(tmp_path / "m", "llama")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 3] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CalibrationError, match=r"model\.layers\.1.* NaN or Inf on the calibration text"):
        walked(tmp_path / "m", tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model(tmp_path / "m", "llama")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CalibrationError, match=r"holds nothing for model\.layers\.2\.mlp\.up_proj\.weight"):
        walked(tmp_path / "m", tmp_path)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 64)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CalibrationError, match=r"has shape \[3, 64\] for it, config.json means \[96, 64\]"):
        walked(tmp_path / "m", tmp_path)


def test_matrices_with_the_same_inputs_share_their_sums() -> None:
    q, k, o = (torch.randn(8, 16) for _ in range(3))
    gatherer = Gatherer({"q": q, "k": k, "o": o}, ALL, 1.0)
    for seed in range(3):
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
        with gatherer.active():
            torch.nn.functional.linear(x, q)
            torch.nn.functional.linear(x, k)
            torch.nn.functional.linear(x + 1, o)
    found = gatherer.statistics()
    assert found[("q", None, False)] is found[("k", None, False)]
    assert found[("o", None, False)] is not found[("q", None, False)]
    assert found[("q", None, False)].counts == (15,)
    with gatherer.active():
        torch.nn.functional.linear(x, q)
        with pytest.raises(Split):
            torch.nn.functional.linear(x + 2, k)


@pytest.mark.parametrize("way", ["linear", "addmm", "matmul", "turned", "stack", "bmm"])
def test_ways_of_multiplying(way: str) -> None:
    w = torch.randn(4, 16, 8) if way in ("stack", "bmm") else torch.randn(16, 8)
    x = torch.randn(4, 5, 16) if way == "bmm" else torch.randn(5, 16)
    gatherer = Gatherer({"w": w}, ALL, 1.0)
    with gatherer.active():
        if way == "linear":
            torch.nn.functional.linear(x, w.T)
        elif way == "addmm":
            torch.addmm(torch.zeros(8), x, w)
        elif way == "matmul":
            x @ w
        elif way == "turned":
            torch.nn.functional.linear(x, w.mT)
        elif way == "stack":
            x @ w[2]
        else:
            torch.bmm(x, w)
    found = gatherer.statistics()
    experts = {"stack": [2], "bmm": [0, 1, 2, 3]}.get(way, [None])
    assert set(found) == {("w", e, True) for e in experts}
    for e in experts:
        seen = x[e] if way == "bmm" else x
        close(found["w", e, True].values[IMPORTANCE], seen.square().mean(0))
