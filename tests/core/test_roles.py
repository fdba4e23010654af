from __future__ import annotations

import pytest

from core.roles import ROLES, Role, role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.embed_tokens.weight", Role("embedding")),
        ("token_embd.weight", Role("embedding")),
        ("transformer.wte.weight", Role("embedding")),
        ("lm_head.weight", Role("head")),
        ("output.weight", Role("head")),
        ("output_norm.weight", Role("norm")),
        ("model.norm.weight", Role("norm")),
        ("model.layers.11.input_layernorm.weight", Role("norm", 11)),
        ("blk.3.attn_q_norm.weight", Role("norm", 3)),
        ("transformer.h.2.ln_1.weight", Role("norm", 2)),
        ("model.layers.0.self_attn.q_proj.weight", Role("q", 0)),
        ("model.layers.0.self_attn.q_proj.bias", Role("bias", 0)),
        ("model.layers.7.self_attn.k_proj.weight", Role("k", 7)),
        ("model.layers.7.self_attn.v_proj.weight", Role("v", 7)),
        ("model.layers.7.self_attn.o_proj.weight", Role("o", 7)),
        ("blk.12.attn_output.weight", Role("o", 12)),
        ("blk.12.attn_qkv.weight", Role("qkv", 12)),
        ("transformer.h.0.attn.c_attn.weight", Role("qkv", 0)),
        ("transformer.h.0.attn.c_proj.weight", Role("o", 0)),
        ("transformer.h.0.mlp.c_proj.weight", Role("down", 0)),
        ("transformer.h.0.mlp.c_fc.weight", Role("up", 0)),
        ("model.layers.3.mlp.gate_proj.weight", Role("gate", 3)),
        ("model.layers.3.mlp.gate_up_proj.weight", Role("gate_up", 3)),
        ("model.layers.3.mlp.gate.weight", Role("router", 3)),
        ("blk.3.ffn_gate_inp.weight", Role("router", 3)),
        ("blk.3.ffn_gate.weight", Role("gate", 3)),
        ("blk.3.ffn_gate_exps.weight", Role("gate", 3)),
        ("blk.3.ffn_down_shexp.weight", Role("down", 3)),
        ("model.layers.5.block_sparse_moe.experts.6.w2.weight", Role("down", 5, 6)),
        ("model.layers.5.block_sparse_moe.gate.weight", Role("router", 5)),
        ("model.layers.5.mlp.experts.63.up_proj.weight", Role("up", 5, 63)),
        ("embeddings.token_type_embeddings.weight", Role("position")),
        ("token_types.weight", Role("position")),
        ("encoder.layer.2.attention.self.query.weight", Role("q", 2)),
        ("encoder.layer.2.attention.output.dense.weight", Role("o", 2)),
        ("encoder.layer.2.output.dense.weight", Role("down", 2)),
        ("encoder.layer.2.output.LayerNorm.weight", Role("norm", 2)),
        ("transformer.blocks.1.ffn.up_proj.weight", Role("up", 1)),
        ("transformer.blocks.1.norm_1.weight", Role("norm", 1)),
        ("something.else", Role("other")),
    ],
)
def test_role(name: str, role: Role) -> None:
    assert role_of(name) == role
    assert role.kind in ROLES
