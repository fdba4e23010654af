"""BERT: embeddings of texts, no head."""

from __future__ import annotations

from collections.abc import Sequence

from core.targets.gguf import checks, keys
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import u32
from core.targets.gguf.record import MUST, Architecture, Pairs, norm, part
from core.targets.sides import side_json

_POOLING = "1_Pooling/config.json"
# Numbers of llama.cpp.
_MODES = {"mean_tokens": 1, "cls_token": 2, "lasttoken": 3}


def _check(hyper: Hyper) -> Sequence[str]:
    checks.activation(hyper, known=checks.GELU, what="gelu")
    checks.fixed(hyper, "which is not converted", position_embedding_type="absolute", is_decoder=False)
    if not _pooling(hyper):
        return [f"no {_POOLING} says how tokens become one embedding: llama.cpp has to be told (--pooling)"]
    return ()


def _pairs(hyper: Hyper) -> Pairs:
    return [
        *keys.shape(hyper),
        *keys.layer_norm(hyper, "layer_norm_eps"),
        ("attention.causal", keys.boolean(False)),
        *_pooling(hyper),
    ]


def _pooling(hyper: Hyper) -> Pairs:
    """How the embeddings of a text's tokens become one, as the files of sentence-transformers say it."""
    said = side_json(hyper.where, _POOLING) if hyper.where.is_dir() else {}
    number = next((n for mode, n in _MODES.items() if said.get(f"pooling_mode_{mode}") is True), None)
    return [] if number is None else [("pooling_type", u32(number))]


BERT = Architecture(
    name="bert",
    classes=("BertModel", "BertForMaskedLM"),
    first=(
        part("token_embd", "embeddings.word_embeddings", "vocabulary", "hidden"),
        part("position_embd", "embeddings.position_embeddings", "positions", "hidden"),
        part("token_types", "embeddings.token_type_embeddings", "types", "hidden"),
        norm("token_embd_norm", "embeddings.LayerNorm", bias=MUST),
    ),
    layer=(
        part("attn_q", "attention.self.query", "heads", "hidden", bias=MUST),
        part("attn_k", "attention.self.key", "kv_heads", "hidden", bias=MUST),
        part("attn_v", "attention.self.value", "kv_heads", "hidden", bias=MUST),
        part("attn_output", "attention.output.dense", "hidden", "heads", bias=MUST),
        norm("attn_output_norm", "attention.output.LayerNorm", bias=MUST),
        part("ffn_up", "intermediate.dense", "ffn", "hidden", bias=MUST),
        part("ffn_down", "output.dense", "hidden", "ffn", bias=MUST),
        norm("layer_output_norm", "output.LayerNorm", bias=MUST),
    ),
    last=(),
    check=_check,
    pairs=_pairs,
    roots=("", "bert."),
    layers="encoder.layer",
    ignored={
        r"embeddings\.position_ids$": "llama.cpp computes it",
        r"(?:^|\.)pooler\.": "llama.cpp pools by itself",
        r"^cls\.": "the head for masked words has no place in a GGUF of BERT",
    },
    causal=False,
)
