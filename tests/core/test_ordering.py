"""Natural order against the same said another way: parts of a name, numbers as numbers."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ordering import PIECE, natural_key, natural_order, order_of


def parts(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def test_numbers_come_in_their_order() -> None:
    names = ["layer.10.a", "layer.2.b", "layer.2.a", "layer", "10", "9", ""]
    assert sorted(names, key=natural_key) == ["", "9", "10", "layer", "layer.2.a", "layer.2.b", "layer.10.a"]


@given(st.lists(st.text(alphabet="ab.0129é٣", max_size=8), max_size=40))
def test_any_names(names: list[str]) -> None:
    assert sorted(names, key=natural_key) == sorted(names, key=parts)


def test_a_number_too_long_for_int() -> None:
    assert natural_key("a" + "7" * 5000) == "a" + "7" * 5000


@pytest.mark.parametrize("count", [0, 1, PIECE, PIECE + 1, 5 * PIECE + 3])
def test_sorted_piece_by_piece_is_sorted(count: int) -> None:
    draw = random.Random(1)
    values = [draw.randrange(max(1, count // 3)) for _ in range(count)]
    assert order_of(values) == sorted(range(count), key=values.__getitem__)


def test_items_of_one_name_stay_as_they_were() -> None:
    pairs = [("b", 1), ("a", 2), ("b", 0), ("a", 1)]
    assert natural_order(pairs, lambda pair: pair[0]) == [("a", 2), ("a", 1), ("b", 1), ("b", 0)]
