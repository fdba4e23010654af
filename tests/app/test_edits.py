"""Edits and the undo stack: every edit can be taken back, in any order of doing and undoing. No event loop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.edits import (
    AddRule,
    AssignStrategy,
    Document,
    Edit,
    MoveRule,
    RemoveRule,
    ReplaceRule,
    SetPreset,
    SetRecipe,
    SetTarget,
    is_by_hand,
)
from app.history import signed_bytes
from app.session import Changes, Session
from core.engine.model import Planned
from core.errors import RecipeError
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.targets.base import Outline

NAMES = tuple(f"blk.{i}.attn_q.weight" for i in range(6))
PRESET = Rule(Match(), preset="Q4_K_M")
BASE = Document(Recipe("Q4_K_M", (PRESET,)), "gguf")

strategies = st.sampled_from([Strategy("q4_k"), Strategy("q6_k"), Strategy("keep"), Strategy("q4_k", "gptq")])
rules = st.builds(Rule, st.builds(Match, name=st.sampled_from(["*.weight", "re:attn", "blk.*"])), strategies)
some_names = st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple)
edits = st.one_of(
    st.builds(AssignStrategy, some_names, st.one_of(st.none(), strategies)),
    st.builds(AddRule, st.integers(-1, 4), rules),
    st.builds(RemoveRule, st.integers(0, 4)),
    st.builds(MoveRule, st.integers(0, 4), st.integers(0, 4)),
    st.builds(ReplaceRule, st.integers(0, 4), rules),
    st.builds(SetPreset, st.sampled_from([Recipe("Q8_0", (Rule(Match(), preset="Q8_0"),)), BASE.recipe])),
    st.builds(SetRecipe, st.builds(Recipe, st.just("own"), st.lists(rules, max_size=3).map(tuple))),
    st.builds(SetTarget, st.sampled_from(["gguf", "dense"])),
)


def effective(document: Document) -> dict[str, str]:
    """What each name gets from rules by hand alone, by the first that names it."""
    found: dict[str, str] = {}
    for rule in document.recipe.rules:
        if is_by_hand(rule):
            for name in rule.match.names:
                found.setdefault(name, str(rule.strategy))
    return found


@given(st.lists(edits, max_size=12))
@settings(max_examples=150, deadline=None)
def test_every_edit_has_an_inverse(steps: list[Edit]) -> None:
    document = BASE
    for edit in steps:
        try:
            after = edit.apply(document)
        except RecipeError:
            continue
        assert edit.label
        assert edit.invert(document).apply(after) == document
        document = after


@given(st.lists(st.one_of(edits, st.sampled_from(["undo", "redo"])), max_size=25))
@settings(max_examples=150, deadline=None)
def test_the_session_undoes_and_redoes_everything(steps: list[Edit | str]) -> None:
    session = Session()
    session.begin(BASE)
    documents = []
    session.changed.connect(lambda changes, initiator: documents.append(session.document))
    for step in steps:
        before = session.document
        if step == "undo":
            session.undo()
        elif step == "redo":
            session.redo()
        else:
            try:
                changes = session.apply(step)
            except RecipeError:
                assert session.document == before
                continue
            assert bool(changes) == (session.document != before)
    while session.redo_label:
        session.redo()
    end = session.document
    count = 0
    while session.undo_label:
        assert session.undo()
        count += 1
        assert count <= len(steps)
    assert session.document == BASE
    while session.redo_label:
        session.redo()
    assert session.document == end
    session.changed.disconnect()


def test_assignments_by_hand_are_joined_and_win() -> None:
    q4, q6 = Strategy("q4_k"), Strategy("q6_k")
    document = AssignStrategy(NAMES[:2], q4).apply(BASE)
    document = AssignStrategy(NAMES[2:4], q4).apply(document)
    assert [r.match.names for r in document.recipe.rules] == [NAMES[:4], ()]
    document = AssignStrategy(NAMES[1:3], q6).apply(document)
    assert effective(document) == {NAMES[0]: "q4_k", NAMES[1]: "q6_k", NAMES[2]: "q6_k", NAMES[3]: "q4_k"}
    assert len(document.recipe.rules) == 3
    document = AssignStrategy(NAMES, None).apply(document)
    assert document == BASE


def test_an_assignment_goes_before_rules_that_were_put_in_front() -> None:
    front = Rule(Match(name="*"), Strategy("q8_0"))
    document = AssignStrategy(NAMES[:1], Strategy("q4_k")).apply(BASE)
    document = AddRule(0, front).apply(document)
    document = AssignStrategy(NAMES[1:2], Strategy("q4_k")).apply(document)
    assert document.recipe.rules[0].match.names == NAMES[1:2]
    assert document.recipe.rules[1] == front


def test_a_preset_leaves_assignments_by_hand_alone() -> None:
    document = AssignStrategy(NAMES[:1], Strategy("q4_k")).apply(BASE)
    after = SetPreset(Recipe("Q8_0", (Rule(Match(), preset="Q8_0"),))).apply(document)
    assert [r.preset for r in after.recipe.rules] == ["", "Q8_0"]
    assert after.recipe.name == "Q8_0"


@pytest.mark.parametrize("edit", [RemoveRule(1), MoveRule(0, 1), ReplaceRule(-1, PRESET), MoveRule(5, 0)])
def test_a_rule_that_is_not_there_is_an_error(edit: Edit) -> None:
    with pytest.raises(RecipeError, match="there is no rule"):
        edit.apply(BASE)


@pytest.mark.parametrize(
    ("edit", "label"),
    [
        (AssignStrategy(NAMES[:1], Strategy("q4_k")), "Assign q4_k to blk.0.attn_q.weight"),
        (AssignStrategy(NAMES[:3], Strategy("q4_k", "gptq")), "Assign q4_k+gptq to 3 tensors"),
        (AssignStrategy(NAMES[:3], Strategy("keep")), "Keep 3 tensors"),
        (AssignStrategy(NAMES[:3], None), "Let the rules decide for 3 tensors"),
        (AddRule(0, Rule(Match(role=("v", "down")), Strategy("q6_k"))), "Add rule v/down → q6_k"),
        (MoveRule(0, 2), "Move rule 1 to 3"),
        (SetTarget("dense"), "Write dense"),
    ],
)
def test_labels(edit: Edit, label: str) -> None:
    assert edit.label == label


def test_dragging_a_rule_far_is_one_step() -> None:
    session = Session()
    many = Document(Recipe("r", tuple(Rule(Match(name=n), Strategy("q4_k")) for n in "abcd")), "gguf")
    session.begin(many)
    for step in range(3):
        session.apply(MoveRule(step, step + 1))
    assert [r.match.name for r in session.recipe.rules] == ["b", "c", "d", "a"]
    session.undo()
    assert session.document == many
    session.redo()
    assert [r.match.name for r in session.recipe.rules] == ["b", "c", "d", "a"]


def plan_of(session: Session, nbytes: int) -> SimpleNamespace:
    """The few fields of a plan that the session looks at."""
    target = SimpleNamespace(name=session.target)
    return SimpleNamespace(
        recipe=session.recipe,
        target=target,
        nbytes=nbytes,
        outline=Outline(()),
        tensors=(),
        planned=Planned(()),
        bpw=4.5,
    )


def test_undo_says_the_change_in_bytes() -> None:
    session = Session()
    session.begin(BASE)
    session.set_plan(plan_of(session, 5_000_000), {})
    session.apply(AssignStrategy(NAMES[:1], Strategy("q2_k")))
    assert session.undo_label == f"Assign q2_k to {NAMES[0]}"
    assert not session.planned
    session.set_plan(plan_of(session, 5_000_000 - (1 << 20)), {})
    assert session.undo_label == f"Assign q2_k to {NAMES[0]} (−1.0 MiB)"
    session.undo()
    assert session.redo_label.endswith("(−1.0 MiB)")


@pytest.mark.parametrize(("delta", "text"), [(0, "± 0 B"), (512, "+512 B"), (-(3 << 30), "−3.0 GiB")])
def test_signed_bytes(delta: int, text: str) -> None:
    assert signed_bytes(delta) == text


def test_changes_know_whether_they_are_any() -> None:
    assert not Changes()
    assert Changes(plan=True)
    assert Changes(errors=frozenset({"a"}))


def test_who_changed_it_is_passed_on() -> None:
    session = Session()
    seen = []
    session.changed.connect(lambda changes, initiator: seen.append((changes.recipe, changes.target, initiator)))
    session.apply(SetTarget("dense"), "me")
    session.apply(SetTarget("dense"), "again")
    assert seen == [(False, True, "me")]


def test_opening_forgets_names_but_not_the_preset() -> None:
    session = Session()
    session.begin(BASE)
    session.apply(AssignStrategy(NAMES[:1], Strategy("q4_k")))
    session.select(NAMES[:1])
    session.open(SimpleNamespace(path=Path("/m"), nbytes=1, parameters=1))
    assert session.document == BASE
    assert session.selection == ()
    assert not session.undo_label
