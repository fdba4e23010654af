"""The table without Qt: blocks, filters, orders, folds, and what selected lines stand for."""

from __future__ import annotations

import numpy as np
import pytest

from app.panels.tensors.state import (
    MODEL,
    OUTSIDE,
    Arrangement,
    Filter,
    Order,
    Rows,
    arrange,
    block_entry,
    make_rows,
    matching,
    ordering,
    runs,
    tensors_of,
)
from core.errors import RecipeError
from tests.app.outlines import large_outline, small_outline

NONE: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(small_outline())


def names(rows: Rows, entries: list[int]) -> list[str]:
    return [rows.names[e] if e >= 0 else f"<{'model' if e == MODEL else rows.blocks[-2 - e]}>" for e in entries]


def arranged(rows: Rows, wanted=None, order=None, grouped=True, folded=NONE) -> Arrangement:
    wanted, order = wanted or Filter(), order or Order()
    ordered = ordering(rows, None, None, order)
    backwards = order.column == "name" and order.descending
    made = arrange(rows, ordered, matching(rows, wanted), grouped, folded, backwards)
    assert made.array is not None
    assert made.array.dtype == np.int64
    assert made.array.tolist() == made.entries
    return made


def test_blocks_come_in_natural_order_and_hold_their_tensors(rows: Rows) -> None:
    assert rows.blocks == [OUTSIDE, *(f"blk.{i}" for i in range(12))]
    assert sum(len(m) for m in rows.members) == len(rows)
    inside = rows.members[3]
    assert {rows.names[i].split(".")[1] for i in inside} == {"2"}
    assert rows.short[inside[0]] == rows.names[inside[0]].removeprefix("blk.2.")


def test_the_tree_is_model_then_blocks_then_tensors(rows: Rows) -> None:
    entries = arranged(rows).entries
    shown = names(rows, entries)
    assert shown[:4] == ["<model>", f"<{OUTSIDE}>", "output_norm.weight", "token_embd.weight"]
    assert shown[4:6] == ["<blk.0>", "blk.0.attn_k.weight"]
    assert len(entries) == 1 + 13 + len(rows)
    assert sorted(e for e in entries if e >= 0) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 98),
        ("attn_q", 12),
        ("ATTN_Q", 12),
        ("attn 11.", 5),
        ("blk.1. ffn", 3),
        ("nothing like it", 0),
        (r"re:blk\.(1|2)\.ffn_(up|down)", 4),
        ("re:^token", 1),
        ("re:Q.WEIGHT$", 12),
    ],
)
def test_filter_by_text(rows: Rows, text: str, count: int) -> None:
    assert arranged(rows, Filter(text)).shown == count


def test_filters_hold_together(rows: Rows) -> None:
    found = matching(rows, Filter("blk.1.", frozenset({"q", "norm"}), "BF16"))
    assert found is not None
    assert [rows.names[i] for i in np.flatnonzero(found)] == ["blk.1.attn_q.weight"]


def test_a_bad_pattern_says_so(rows: Rows) -> None:
    with pytest.raises(RecipeError, match="not a regular expression"):
        matching(rows, Filter("re:(unclosed"))


def test_filtered_blocks_without_tensors_are_gone(rows: Rows) -> None:
    shown = names(rows, arranged(rows, Filter("blk.3.attn_q")).entries)
    assert shown == ["<model>", "<blk.3>", "blk.3.attn_q.weight"]


def test_folding(rows: Rows) -> None:
    folded = arranged(rows, folded=frozenset(rows.blocks)).entries
    assert folded == [MODEL, *(block_entry(b) for b in range(13))]
    assert arranged(rows, folded=frozenset({""})).entries == [MODEL]
    one = arranged(rows, folded=frozenset({"blk.0"})).entries
    assert len(one) == 1 + 13 + len(rows) - 8


@pytest.mark.parametrize("descending", [False, True])
def test_sorting_by_a_column_keeps_blocks_or_not(rows: Rows, descending: bool) -> None:
    order = Order("shape", descending)
    grouped = arranged(rows, order=order).entries
    assert [e for e in grouped if e < 0] == [MODEL, *(block_entry(b) for b in range(13))]
    at = grouped.index(block_entry(1))
    sizes = [rows.numel[e] for e in grouped[at + 1 : at + 9]]
    assert sizes == sorted(sizes, reverse=descending)
    flat = [rows.numel[e] for e in arranged(rows, order=order, grouped=False).entries]
    assert flat == sorted(flat, reverse=descending)


def test_equals_stay_in_natural_order_of_names(rows: Rows) -> None:
    flat = arranged(rows, order=Order("role"), grouped=False).entries
    queries = [rows.names[e] for e in flat if rows.roles[e] == "q"]
    assert queries == [f"blk.{i}.attn_q.weight" for i in range(12)]


def test_names_backwards_turns_blocks_too(rows: Rows) -> None:
    entries = arranged(rows, order=Order("name", True)).entries
    assert names(rows, entries)[1] == "<blk.11>"


@pytest.mark.parametrize("descending", [False, True])
def test_unknown_errors_stay_at_the_end(rows: Rows, descending: bool) -> None:
    sqnr = np.full(len(rows), np.nan)
    sqnr[[5, 9, 20]] = [30.0, 10.0, 20.0]
    order = ordering(rows, None, sqnr, Order("sqnr", descending))
    assert order[:3].tolist() == ([5, 20, 9] if descending else [9, 20, 5])
    assert sorted(order.tolist()) == list(range(len(rows)))


def test_what_lines_stand_for(rows: Rows) -> None:
    assert tensors_of([MODEL], rows, None) == list(range(len(rows)))
    block = tensors_of([block_entry(2)], rows, None)
    assert block == sorted(rows.members[2])
    passing = matching(rows, Filter("attn_q"))
    only = tensors_of([block_entry(2)], rows, passing)
    assert [rows.names[i] for i in only] == ["blk.1.attn_q.weight"]
    assert tensors_of([7, 3, block_entry(2)], rows, passing) == sorted({7, 3, *only})


def test_runs() -> None:
    assert runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 7), (9, 10)]
    assert runs([]) == []


def test_an_empty_outline() -> None:
    from core.targets.base import Outline

    empty = make_rows(Outline(()))
    assert arranged(empty).entries == [MODEL]
    assert empty.role_names == ()


def test_fifty_thousand_tensors_are_filtered_and_arranged() -> None:
    """What it costs: benchmarks/window_stall.py."""
    rows = make_rows(large_outline())
    assert 49_000 < len(rows) < 51_000
    ordered = ordering(rows, None, None, Order())
    for text, count in (("experts", 61 * 272 * 3), ("q_proj", 61), ("layers.3. gate", 272)):
        assert arrange(rows, ordered, matching(rows, Filter(text)), True, NONE).shown == count
