"""BERT and XLM-RoBERTa: embeddings of texts, no head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.targets.gguf import checks, keys
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import u32
from core.targets.gguf.record import MUST, Architecture, Pairs, Part, norm, part
from core.targets.gguf.ways import WithoutFirst
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
        ("tokenizer.ggml.token_type_count", u32(hyper.whole("type_vocab_size"))),
    ]


def _pooling(hyper: Hyper) -> Pairs:
    """How the embeddings of a text's tokens become one, as the files of sentence-transformers say it."""
    said = side_json(hyper.where, _POOLING) if hyper.where.is_dir() else {}
    number = next((n for mode, n in _MODES.items() if said.get(f"pooling_mode_{mode}") is True), None)
    return [] if number is None else [("pooling_type", u32(number))]


_LAYER = (
    part("attn_q", "attention.self.query", "heads", "hidden", bias=MUST),
    part("attn_k", "attention.self.key", "kv_heads", "hidden", bias=MUST),
    part("attn_v", "attention.self.value", "kv_heads", "hidden", bias=MUST),
    part("attn_output", "attention.output.dense", "hidden", "heads", bias=MUST),
    norm("attn_output_norm", "attention.output.LayerNorm", bias=MUST),
    part("ffn_up", "intermediate.dense", "ffn", "hidden", bias=MUST),
    part("ffn_down", "output.dense", "hidden", "ffn", bias=MUST),
    norm("layer_output_norm", "output.LayerNorm", bias=MUST),
)


def _first(positions: Part) -> tuple[Part, ...]:
    return (
        part("token_embd", "embeddings.word_embeddings", "vocabulary", "hidden"),
        positions,
        part("token_types", "embeddings.token_type_embeddings", "types", "hidden"),
        norm("token_embd_norm", "embeddings.LayerNorm", bias=MUST),
    )


BERT = Architecture(
    name="bert",
    classes=("BertModel", "BertForMaskedLM"),
    first=_first(part("position_embd", "embeddings.position_embeddings", "positions", "hidden")),
    layer=_LAYER,
    last=(),
    check=_check,
    pairs=_pairs,
    roots=("", "bert."),
    layers="encoder.layer",
    ignored={
        r"embeddings\.position_ids$": "llama.cpp computes it",
        r"(?:^|\.)pooler\.": "llama.cpp pools by itself",
        r"^cls\.|^lm_head\.": "the head for masked words has no place in a GGUF of BERT",
    },
    causal=False,
)

# Its positions count from the one behind the padding token's.
_UNUSED = 2


def _check_xlm(hyper: Hyper) -> Sequence[str]:
    checks.fixed(hyper, "and positions are taken to begin behind 1", pad_token_id=1)
    return _check(hyper)


def _positions(hyper: Hyper) -> int:
    stored = hyper.whole("max_position_embeddings")
    if stored <= _UNUSED:
        raise hyper.error(f"max_position_embeddings is {stored}, of which {_UNUSED} are never used")
    return stored - _UNUSED


def _xlm_pairs(hyper: Hyper) -> Pairs:
    return list({**dict(_pairs(hyper)), "context_length": u32(_positions(hyper))}.items())


XLM_ROBERTA = replace(
    BERT,
    classes=("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    first=_first(
        part(
            "position_embd",
            "embeddings.position_embeddings",
            "positions",
            "hidden",
            way=WithoutFirst(_UNUSED),
        )
    ),
    check=_check_xlm,
    pairs=_xlm_pairs,
    roots=("", "roberta."),
    sizes={"positions": _positions},
)
