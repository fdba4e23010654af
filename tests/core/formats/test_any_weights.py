"""Every GGML type on whatever weights there are: ours are llama.cpp's bytes, or refused where its file would hold a
scale that is no number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from core.errors import OutOfRange
from core.formats import get_format
from tests.core.formats import llama
from tests.core.formats.test_ggml_quantize import CASES, importance

KINDS = ("zero", "constant", "one-sided", "tiny", "huge", "integers", "plain", "outlier")
COLUMNS = 512
RUN = 32


def run(kind: str, g: np.random.Generator) -> np.ndarray:
    """float32 [RUN]"""
    w = g.standard_normal(RUN)
    if kind == "zero":
        w[:] = g.choice([0.0, -0.0])
    elif kind == "constant":
        w[:] = w[0]
    elif kind == "one-sided":
        w = np.abs(w) * g.choice([-1, 1])
    elif kind == "tiny":
        w *= 1e-30
    elif kind == "huge":
        w *= 10.0 ** g.integers(3, 8)
    elif kind == "integers":
        w = g.integers(-4, 5, RUN).astype(float)
    elif kind == "outlier":
        w[g.integers(RUN)] *= 100
    return w.astype(np.float32)


@pytest.mark.parametrize(("name", "weighted"), CASES, ids=[f"{n}-{'importance' if g else 'plain'}" for n, g in CASES])
@settings(max_examples=5, deadline=None)
@drawn(
    seed=st.integers(0, 1 << 20),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True),
)
def test_bytes_are_llamas_on_any_weights(name: str, weighted: bool, seed: int, kinds: list[str]) -> None:
    g = np.random.default_rng(seed)
    w = np.stack([run(g.choice(kinds), g) for _ in range(3 * COLUMNS // RUN)])
    if name == "IQ3_S":
        w[~w.any(1)] = 1  # llama.cpp's answer is broken there: test_lattices.py
    w = w.reshape(3, COLUMNS)
    given = importance(COLUMNS) if weighted else None
    theirs = llama.quantize(name, w, given)
    imp = None if given is None else torch.from_numpy(given)
    sound = [llama.valid(name, row) for row in theirs]
    if all(sound):
        ours = get_format(name).quantize(torch.from_numpy(w), imp, "exact").parts["blocks"].numpy()
        assert np.array_equal(ours, theirs)
    else:
        with pytest.raises(OutOfRange) as caught:
            get_format(name).quantize(torch.from_numpy(w), imp, "exact")
        assert caught.value.row == sound.index(False)
