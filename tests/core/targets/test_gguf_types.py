"""Every GGML type that is written: llama.cpp loads a model of it, and computes what transformers computes from the
weights that we decode from the file.

Two ways of use tell different things. Rows of an embedding are decoded and nothing else: there the logits must be those
of the decoded weights to 1e-4. In a matrix product llama.cpp also rounds what the matrix is multiplied with, to 8 bits,
so that a small difference remains; it must be far below what quantizing itself did.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.checkpoints.gguf import Gguf
from core.evaluation.gguf_model import GgufAsModel
from core.formats import FORMATS
from core.formats.ggml.types import GGML_TYPES
from core.roles import role_of
from tests.core.targets.build import Choose, assemble
from tests.core.targets.llama_cpp import Answer, ask
from tests.core.targets.test_gguf_architectures import IDS, WORDS, save

TYPES = [f.name for f in FORMATS if f.encodable and f.family in ("ggml", "dense") and f.name != "f32"]
# Both experts see every token, so that none is chosen otherwise after rounding.
SHAPE = WORDS | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
EXPERTS = SHAPE | {"num_local_experts": 2, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {"llama": ("Llama", SHAPE), "mixtral": ("Mixtral", EXPERTS)}


@dataclass(frozen=True)
class Case:
    """Logits: of the original by transformers, of the decoded weights by transformers, of the file by llama.cpp."""

    original: np.ndarray
    decoded: np.ndarray
    answer: Answer

    @property
    def effect(self) -> float:
        """Of quantizing: root of the mean square, as a share of the logits' own."""
        return rms(self.decoded - self.original) / rms(self.original)

    @property
    def apart(self) -> float:
        """llama.cpp and transformers with the same weights."""
        return rms(self.answer.logits - self.decoded) / rms(self.original)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


# What is quantized of which model.
CASES = {
    "embedding": ("llama", ("embedding",)),
    "matrices": ("llama", ("q", "k", "v", "o", "gate", "up", "down", "head")),
    "experts": ("mixtral", ("gate", "up", "down")),
}


def chosen(name: str, roles: tuple[str, ...]) -> Choose:
    return lambda tensor: name if len(tensor.shape) > 1 and tensor.role.kind in roles else None


# So many at a time go to one process of llama.cpp.
GROUP = 6


class Lab:
    """The two models, and what becomes of them in some types at a time."""

    def __init__(self, root: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.root = root
        self.groups: dict[int, dict[str, dict[str, Case]]] = {}
        self.folders: dict[str, Path] = {}
        self.models: dict[str, Any] = {}
        for seed, (kind, (cls, settings)) in enumerate(MODELS.items()):
            self.folders[kind] = save(root / kind, cls, settings, seed, spread=0.06)
            self.models[kind] = AutoModelForCausalLM.from_pretrained(self.folders[kind], dtype=torch.float32).eval()
        self.states = {kind: copy.deepcopy(model.state_dict()) for kind, model in self.models.items()}
        self.originals = {kind: logits(model) for kind, model in self.models.items()}

    def cases(self, name: str) -> dict[str, Case]:
        number = TYPES.index(name) // GROUP
        if number not in self.groups:
            self.groups[number] = self._made(number)
        return self.groups[number][name]

    def _made(self, number: int) -> dict[str, dict[str, Case]]:
        names = TYPES[number * GROUP :][:GROUP]
        decoded, jobs = {}, {}
        for name, (case, (kind, roles)) in product(names, CASES.items()):
            key = name, case
            jobs[key] = self.root / f"{name}-{case}.gguf"
            assemble(self.folders[kind], "gguf", jobs[key], chosen(name, roles))
            decoded[key] = logits(self.loaded(kind, jobs[key], roles))
        answers = dict(zip(jobs, ask(*((path, [], IDS) for path in jobs.values())), strict=True))

        def case_of(name: str, case: str) -> Case:
            return Case(self.originals[CASES[case][0]], decoded[name, case], answers[name, case])

        return {name: {case: case_of(name, case) for case in CASES} for name in names}

    def loaded(self, kind: str, path: Path, roles: tuple[str, ...]) -> Any:
        """The model with the weights of these roles from a GGUF, experts put together as transformers holds them."""
        with open_checkpoint(self.folders[kind]) as source, open_checkpoint(path) as gguf:
            assert isinstance(gguf, Gguf)
            weights = GgufAsModel(gguf, source)
            taken = {n: t for n, t in weights.tensors.items() if role_of(n).kind in roles and len(t.shape) > 1}
            given = {name: weights.read(name).view(info.shape) for name, info in taken.items()}
        for layer in {k.split(".experts.")[0] for k in given if ".experts." in k}:
            w1, w2, w3 = ([given.pop(f"{layer}.experts.{n}.{w}.weight") for n in range(2)] for w in ("w1", "w2", "w3"))
            given[f"{layer}.experts.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(w1, w3, strict=True)])
            given[f"{layer}.experts.down_proj"] = torch.stack(w2)
        known = self.states[kind] | {k.replace("block_sparse_moe", "mlp"): v for k, v in given.items()}
        self.models[kind].load_state_dict(known)
        return self.models[kind]


def logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("types"))


@pytest.mark.parametrize("name", TYPES)
def test_llama_cpp_computes_with_the_weights_that_we_decode(lab, name) -> None:
    cases = lab.cases(name)
    for case in cases.values():
        assert not case.answer.error
    rows = cases["embedding"]
    assert rows.effect > 1e-5
    assert rows.apart < 1e-5
    # What the 8 bits of the other factor leave: 0.006 to 0.031, and half of it where only experts are quantized.
    bits = GGML_TYPES[name.upper()].bits
    for case, most in (cases["matrices"], 0.04), (cases["experts"], 0.02):
        assert 1e-5 < case.apart < (most if bits < 16 else 0.006)
        assert bits > 5 or case.apart < case.effect / 3


def test_every_type_of_gguf_is_among_them() -> None:
    """But integers, what is only in memory, and NVFP4, which is another format here."""
    others = {"F32", "F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "NVFP4"}
    assert {name.lower() for name in GGML_TYPES.keys() - others} == set(TYPES)
