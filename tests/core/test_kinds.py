"""Things of few kinds: divided, divided again, and answered for."""

from __future__ import annotations

import numpy as np
import pytest

from core.kinds import Kinds, Shared


def test_kinds_are_numbered_as_they_appear() -> None:
    kinds = Kinds.by("banana")
    assert kinds.of.tolist() == [0, 1, 2, 1, 2, 1]
    assert kinds.first == [0, 1, 2]
    assert len(kinds) == 3


def test_a_division_is_refined_by_numbers_of_any_range() -> None:
    kinds = Kinds.by("aabbab").split(np.array([7, -3, 7, 7, 7, -3]), np.array([True, True, True, False, True, True]))
    #       a7T a-3T b7T b7F a7T b-3T
    assert kinds.of.tolist() == [0, 1, 2, 3, 0, 4]
    assert kinds.first == [0, 1, 2, 3, 5]


def test_refining_agrees_with_keys_of_both() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 17, 300):
        a, b, c = rng.integers(-5, 5, (3, count))
        assert Kinds.by(a.tolist()).split(b, c).of.tolist() == Kinds.by(zip(a, b, c, strict=True)).of.tolist()


def test_a_question_is_asked_once_per_kind() -> None:
    asked: list[str] = []
    answers = Kinds.by(len(word) for word in ("to", "be", "or", "not")).ask(
        ("to", "be", "or", "not"), lambda word: asked.append(word) or word.upper()
    )
    assert asked == ["to", "not"]
    assert list(answers) == ["TO", "TO", "TO", "NOT"]
    assert answers[3] == "NOT"
    assert answers[1:3] == ["TO", "TO"]
    assert len(answers) == 4
    assert answers.where(lambda word: word == "TO") == [0, 1, 2]
    with pytest.raises(IndexError):
        answers[4]


def test_nothing_has_no_kinds() -> None:
    kinds = Kinds.by(()).split(np.zeros(0, np.int64))
    assert len(kinds) == 0
    assert kinds.first == []
    assert list(kinds.share([])) == []
    assert Shared([], kinds.of).where(bool) == []
