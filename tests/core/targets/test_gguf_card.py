"""general.* key-values from a model's card and its generation_config.json, against those that gguf's own reading of the
folder comes to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from core.targets.gguf.card import front_matter, pairs, title
from tests.core.targets.build import assemble, save_model

CARD = """---
license: other
license_name: "tiny-license"   # a word of its own
license_link: https://example.org/LICENSE
base_model:
- meta-llama/Llama-3.1-8B
- https://huggingface.co/someone/else-7b
datasets: [wikitext/wikitext-2, 'plain name']
language:
  - en
  - "no"
tags:
- text-generation-inference
- conversational
pipeline_tag: text-generation
model-index:
- name: nothing
  results:
  - task:
      type: x
---
# A model
license: not this one
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), hidden_size=32, num_hidden_layers=1, vocab_size=64)


def with_card(model: Path, folder: Path, card: str, **generation: Any) -> Path:
    shutil.copytree(model, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def general(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {k: (f.contents(), [t.name for t in f.types]) for k, f in fields.items() if k.startswith("general.")}


def test_it_is_what_ggufs_own_reading_of_the_folder_writes(model, tmp_path) -> None:
    sampling = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "do_sample": True, "eos_token_id": 1}
    folder = with_card(model, tmp_path / "Tiny-Model", CARD, **sampling)
    assemble(folder, "gguf", tmp_path / "ours.gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    gguf.Metadata.load(model_path=folder).set_gguf_meta_model(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours, theirs = general(tmp_path / "ours.gguf"), general(tmp_path / "theirs.gguf")
    # What a name is taken apart into is a guess of theirs.
    guessed = ("general.name", "general.basename", "general.finetune")
    wanted = {k: v for k, v in theirs.items() if k not in guessed and not k.endswith(".version")}
    assert len(wanted) > 20
    assert {k: ours.get(k) for k in wanted} == wanted
    own = {"type", "name", "size_label", "quantization_version", "file_type"}
    assert ours.keys() - theirs.keys() <= {f"general.{k}" for k in own}


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("", {}),
        ("license: mit\n", {}),
        ("---\nlicense: mit\n", {"license": ["mit"]}),
        ("---\nlicense:\n  - mit\n  - apache-2.0\n---\n", {"license": ["mit", "apache-2.0"]}),
        ("---\nlicense: ''\ntags: []\nlanguage: null\n---\n", {}),
        ("---\ntags:\n- a: b\n- c\n---\n", {"tags": ["c"]}),
        ("---\nlicense: |\n  a\n  - b\n---\n", {}),
        ("---\ntags: &x [a]\nlicense: *x\n---\n", {}),
        ("---\ntags:\n- a # said\n- '#b'\n---\n", {"tags": ["a", "#b"]}),
        ("---\nlicense: \x07\n---\n", {}),
        (f"---\nlicense: {'m' * 2000}\n---\n", {}),
    ],
)
def test_heads_of_cards(card: str, found: dict[str, list[str]]) -> None:
    assert front_matter(card) == found


def test_odd_files_beside_the_weights_stop_nothing(tmp_path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: m\xff\xfet\n---\n")
    (tmp_path / "generation_config.json").write_bytes(b"{")
    assert [key for key, _ in pairs(tmp_path)] == ["general.license"]
    (tmp_path / "README.md").unlink()
    odd = {"temperature": "hot", "top_k": -1, "top_p": 1e999, "min_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(odd))
    assert pairs(tmp_path) == []


def test_titles_are_ggufs() -> None:
    for name in ("meta-llama", "Llama-3.1-8B", "qwen", "v0.3-beta", "7b-chat", "TheBloke", "deepseek-ai"):
        assert title(name) == gguf.Metadata.id_to_title(name)
