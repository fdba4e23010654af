"""The error of outputs from a Hessian is the error of outputs."""

from __future__ import annotations

import pytest
import torch

from core.analysis import output
from core.analysis.output import OutputSums


@pytest.mark.parametrize("panel", [7, 16, 512])
def test_it_is_what_the_tokens_give(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PANEL", panel)
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(200, 33, generator=g), torch.randn(9, 33, generator=g)
    w_hat = w + 0.05 * torch.randn(9, 33, generator=g)
    sums = OutputSums.of(w.half(), w_hat, 2 * x.T @ x / 200)
    error, whole = (2 / 200 * float(((a @ x.T) ** 2).sum()) for a in (w.half().float() - w_hat, w.half().float()))
    assert sums.error == pytest.approx(error, rel=1e-5)
    assert sums.whole == pytest.approx(whole, rel=1e-5)
    both = sums + OutputSums(*sums.to_tuple())
    assert both.relative == pytest.approx(error / whole, rel=1e-5)


def test_nothing_and_exact_copies() -> None:
    assert OutputSums().relative == 0.0
    assert OutputSums(1.0, 0.0).relative is None
    w = torch.ones(2, 4)
    assert OutputSums.of(w, w, torch.eye(4)).relative == 0.0
