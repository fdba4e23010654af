"""BERT and XLM-RoBERTa: the embedding of a text in llama.cpp is transformers' mean over its tokens, and texts become
the same tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from core.checkpoints import open_checkpoint
from core.targets import get_target
from tests.core.targets.build import TEXTS, assemble, save_tokenizer
from tests.core.targets.llama_cpp import Answer, ask
from tests.core.targets.test_gguf_architectures import save

IDS = [2, 17, 90, 44, 101, 7, 63, 30, 31, 3]
SHAPE = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
}
MEAN = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
READ = {
    # llama.cpp takes the vowels of Korean for accents.
    "uncased": [text.replace("、안녕하세요", "") for text in TEXTS],
    "cased": TEXTS,
    # Without a map of characters, only spaces are spaces to it.
    "xlm": [" ".join(text.split()) + " " * n for n, text in enumerate(TEXTS)],
}


def word_pieces(*, lower: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=None)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    around = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=330, special_tokens=special, unk_token="<unk>", max_piece_length=8, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    around = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    return tokenizer


BERT_WORDS = {"bos_token": None, "eos_token": None, "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
XLM_WORDS = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
XLM = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
KINDS: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "uncased": ("Bert", {}, lambda: word_pieces(lower=True), BERT_WORDS),
    "cased": ("Bert", {}, lambda: word_pieces(lower=False), BERT_WORDS),
    "xlm": ("XLMRoberta", XLM, unigram, XLM_WORDS),
}


@dataclass
class Made:
    folder: Path
    file: Path
    tokenizer: Tokenizer
    answer: Answer
    texts: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("embedders")
    found = {}
    for number, (name, (kind, settings, build, words)) in enumerate(KINDS.items()):
        folder = save(root / name, kind, SHAPE | settings, number, head="Model")
        tokenizer = build()
        save_tokenizer(folder, tokenizer, **words)
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(MEAN))
        file = root / f"{name}.gguf"
        assemble(folder, "gguf", file, lambda t: "f32", slice_rows=7)
        (answer,) = ask((file, READ[name], IDS), pooled=True)
        found[name] = Made(folder, file, tokenizer, answer, READ[name])
    return found


@pytest.mark.parametrize("name", KINDS)
def test_llama_cpp_computes_the_same_embedding(made, name) -> None:
    from transformers import AutoModel

    case = made[name]
    assert not case.answer.error
    model = AutoModel.from_pretrained(case.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = model(torch.tensor([IDS])).last_hidden_state.mean(1)[0].numpy()
    assert wanted.std() > 0.05
    assert np.abs(case.answer.logits[0] - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("name", KINDS)
def test_texts_become_the_same_ids(made, name) -> None:
    case = made[name]
    expected = [case.tokenizer.encode(text).ids for text in case.texts]
    assert case.answer.tokens == expected
    assert all(len(ids) > 20 for ids in expected)


def test_metadata(made) -> None:
    def fields(name: str) -> dict[str, Any]:
        return {k: f.contents() for k, f in gguf.GGUFReader(made[name].file).fields.items()}

    bert, cased, xlm = (fields(name) for name in KINDS)
    assert bert["tokenizer.ggml.model"] == cased["tokenizer.ggml.model"] == "bert"
    assert xlm["tokenizer.ggml.model"] == "t5"
    assert bert["tokenizer.ggml.normalizer.lowercase"] is True
    assert cased["tokenizer.ggml.normalizer.lowercase"] is False
    assert (bert["bert.context_length"], xlm["bert.context_length"]) == (130, 128)
    assert (bert["tokenizer.ggml.token_type_count"], xlm["tokenizer.ggml.token_type_count"]) == (2, 1)
    assert bert["bert.pooling_type"] == 1
    assert bert["bert.attention.causal"] is False
    assert bert["tokenizer.ggml.cls_token_id"] == bert["tokenizer.ggml.bos_token_id"] == 2
    assert bert["tokenizer.ggml.tokens"][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(made["uncased"].file).tensors}
    assert kinds["token_types.weight"] == kinds["position_embd.weight"] == "F32"


def test_position_tables_stay_in_f32_and_the_pooler_is_left_out(made) -> None:
    target = get_target("gguf")
    with open_checkpoint(made["uncased"].folder) as checkpoint:
        outline = target.outline(checkpoint)
    tensors = {t.name: t for t in outline.tensors}
    assert target.keeps(tensors["token_types.weight"]).name == "f32"
    assert target.keeps(tensors["position_embd.weight"]).name == "f32"
    assert set(outline.dropped) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not outline.tied
    assert any("Korean" in note for note in outline.notes)


def test_without_pooling_a_note_says_so(made, tmp_path) -> None:
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(made["cased"].folder, folder)
    shutil.rmtree(folder / "1_Pooling")
    with open_checkpoint(folder) as checkpoint:
        outline = get_target("gguf").outline(checkpoint)
    assert any("--pooling" in note for note in outline.notes)
    assemble(folder, "gguf", tmp_path / "m.gguf")
    assert "bert.pooling_type" not in gguf.GGUFReader(tmp_path / "m.gguf").fields


def test_vocab_txt_gives_the_same_vocabulary(made, tmp_path) -> None:
    import shutil

    case = made["uncased"]
    folder = tmp_path / case.folder.name
    shutil.copytree(case.folder, folder)
    (folder / "tokenizer.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vocab = sorted(case.tokenizer.get_vocab().items(), key=lambda v: v[1])
    (folder / "vocab.txt").write_text("".join(f"{text}\n" for text, _ in vocab))
    assemble(folder, "gguf", tmp_path / "m.gguf", lambda t: "f32")
    a, b = (gguf.GGUFReader(path).fields for path in (case.file, tmp_path / "m.gguf"))
    for key in ("tokens", "token_type", "cls_token_id", "normalizer.lowercase", "normalizer.strip_accents"):
        assert a[f"tokenizer.ggml.{key}"].contents() == b[f"tokenizer.ggml.{key}"].contents(), key
