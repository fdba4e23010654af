"""Calibration in the window: choosing a text, gathering, planning and running with it; methods and their parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from app.calibration import CalibrationChoice, plan_options, walks_along
from app.edits import Document, SetCalibration, SetMethod
from app.forms import MethodForm
from app.panels.calibration.state import LossState, ticks
from core.calibration.statistics import Statistic
from core.engine.model import TensorReport
from core.errors import CalibrationError, RecipeError
from core.recipes import load
from core.recipes.model import Match, Recipe, Rule, Strategy

SMALL = CalibrationChoice("text", None, samples=4, length=32)


@pytest.fixture(autouse=True)
def kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "kept"))


def test_a_choice_in_words() -> None:
    assert CalibrationChoice().label == ""
    assert SMALL.label == "Python's standard library · 4 × 32 tokens"
    assert CalibrationChoice("imatrix", Path("a/b.gguf")).label == "b.gguf"


def test_the_method_of_the_last_rule() -> None:
    document = Document(load("Q4_K_M"), "gguf")
    after = SetMethod("hqq", (("p", 0.5),)).apply(document)
    assert after.recipe.rules[-1].method == "hqq"
    assert after.recipe.name == "Q4_K_M+hqq(p=0.5)"
    assert SetMethod("nearest").apply(after) == document
    assert SetMethod("nearest").invert(after).apply(document) == after
    by_hand = Document(Recipe("mine", (Rule(Match(), Strategy("int4-g128-asym")),)), "dense")
    assert SetMethod("hqq").apply(by_hand).recipe.rules[0].strategy == Strategy("int4-g128-asym", "hqq")
    assert SetMethod("hqq").apply(by_hand).recipe.name == "mine"
    with pytest.raises(RecipeError, match="there is no rule"):
        SetMethod("hqq").apply(Document(Recipe(), "gguf"))
    with pytest.raises(RecipeError, match="hqq does not go with q4_k"):
        SetMethod("hqq").apply(Document(load("q4_k"), "gguf"))


def test_one_undo_for_a_method_and_its_parameters() -> None:
    assert SetMethod("hqq").merged(SetMethod("hqq", (("p", 0.5),))) == SetMethod("hqq", (("p", 0.5),))
    assert SetMethod("hqq").merged(SetCalibration(SMALL)) is None


def test_the_form_gives_what_differs_from_the_defaults(qtbot) -> None:
    form = MethodForm()
    qtbot.addWidget(form)
    assert (form.method.name, form.params) == ("nearest", ())
    form.show_choice("hqq", {"p": 0.5, "iterations": 20})
    assert (form.method.name, form.params) == ("hqq", (("p", 0.5),))
    with qtbot.waitSignal(form.changed):
        form.field("refine_scale").setChecked(False)  # type: ignore[attr-defined]
    assert form.params == (("p", 0.5), ("refine_scale", False))
    with qtbot.waitSignal(form.changed):
        form.combo.setCurrentIndex(0)
    assert (form.method.name, form.params) == ("nearest", ())


def test_methods_that_make_no_sense_cannot_be_chosen(qtbot) -> None:
    from core.formats import get_format

    form = MethodForm()
    qtbot.addWidget(form)
    place = form.combo.findData("hqq")
    item = form.combo.model().item(place)  # type: ignore[attr-defined]
    form.allow((get_format("q4_k"),))
    assert not item.isEnabled()
    assert item.toolTip()
    form.allow((get_format("q4_k"), get_format("int4-g128-asym")))
    assert item.isEnabled()


def test_losses_by_role_and_layer() -> None:
    state = LossState()
    assert not state.add(TensorReport("blk.0.attn_q.weight", "q4_k", 1, 1, 0.0))
    assert not state.add(TensorReport("output.weight", "q6_k", 1, 1, 0.0, output_error=0.1))
    for layer, value in ((1, 0.02), (0, 0.01)):
        assert state.add(TensorReport(f"blk.{layer}.attn_q.weight", "q4_k", 1, 1, 0.0, output_error=value))
    assert [p.value for p in state.series["q"]] == [0.01, 0.02]
    assert state.title == "Largest output error 2 % in blk.1.attn_q.weight"
    assert state.values().splitlines()[1] == "blk.0.attn_q.weight,q,0,0.01"
    assert ticks(0.0012, 0.3) == pytest.approx([0.001, 0.01, 0.1, 1.0])
    assert ticks(0.1, 0.1) == pytest.approx([0.1, 1.0])


def test_a_text_is_read_gathered_and_used(opened, qtbot, settled) -> None:
    window, session = opened, opened.session
    panel = window.panel("calibration")
    assert "every column counts the same" in panel.status.text()
    before = session.plan.nbytes
    session.apply(SetCalibration(SMALL))
    assert not session.planned
    qtbot.waitUntil(lambda: session.calibration_data is not None, timeout=60_000)
    settled()
    assert session.plan.calibration is not None
    assert session.plan.nbytes > before  # where the importance comes from is written down
    assert window.commands.can_gather
    assert panel.gather.isEnabled()
    size = session.plan.nbytes
    qtbot.mouseClick(panel.gather, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not window.jobs.running() and window.calibrator.gathering is None, timeout=60_000)
    settled()
    assert session.plan.calibration is None
    assert Statistic.IMPORTANCE in session.plan.known.kinds
    assert session.plan.nbytes == size
    assert panel.status.text().startswith("Known of 29 tensors")
    assert not window.commands.can_gather
    session.undo()
    settled()
    assert session.plan.nbytes == before
    assert session.plan.outline.statistics is None


def test_a_run_gathers_what_it_needs(opened, qtbot, settled, tmp_path: Path) -> None:
    """The bytes are those of the command line's --calibration."""
    from core.cli import main

    window, session = opened, opened.session
    session.apply(SetCalibration(SMALL))
    qtbot.waitUntil(lambda: session.calibration_data is not None, timeout=60_000)
    settled()
    planned = session.plan.nbytes
    window.commands.quantize_to(tmp_path / "window.gguf")
    qtbot.waitUntil(lambda: session.report is not None and not window.jobs.running(), timeout=120_000)
    assert (tmp_path / "window.gguf").stat().st_size == planned
    assert session.calibration_data.gathered is not None
    asked = ["quantize", str(session.checkpoint.path), "--recipe", "Q4_K_M", "--target", "gguf"]
    small = ["--calibration", "--samples", "4", "--length", "32"]
    assert main([*asked, *small, "--out", str(tmp_path / "line.gguf")]) == 0
    assert (tmp_path / "line.gguf").read_bytes() == (tmp_path / "window.gguf").read_bytes()


def test_a_text_that_is_too_short_is_said_and_nothing_runs(opened, qtbot, settled, dialogs, tmp_path: Path) -> None:
    window, session = opened, opened.session
    short = tmp_path / "short.txt"
    short.write_text("a few words\n")
    dialogs.calibration = short
    window.actions_by_id["calibrate-text"].trigger()
    assert dialogs.asked[-1] == "open_calibration text"
    assert session.calibration.path == short
    qtbot.waitUntil(lambda: session.calibration_data is not None, timeout=60_000)
    settled()
    panel = window.panel("calibration")
    assert "tokens" in panel.status.text()
    assert panel.status.property("kind") == "failure"
    assert session.plan is None
    assert not window.commands.can_quantize
    session.undo()
    settled()
    assert window.commands.can_quantize


def test_the_method_popover_edits_the_recipe(opened, qtbot, settled) -> None:
    window, session = opened, opened.session
    popover = window.show_method()
    place = popover.form.combo.findData("nearest")
    popover.form.combo.setCurrentIndex(place)
    popover.form.field("effort").setCurrentText("exact")
    qtbot.waitUntil(lambda: session.recipe.name == "Q4_K_M(effort=exact)", timeout=5_000)
    popover.close()
    settled()
    assert window.toolbar.method.text() == "+ nearest (effort=exact)"
    assert {str(t.strategy) for t in session.plan.tensors if t.quantized} == {
        "q4_k(effort=exact)",
        "q6_k(effort=exact)",
    }
    session.undo()
    assert session.recipe.name == "Q4_K_M"


def test_the_picker_takes_the_forms_method(opened, qtbot, settled) -> None:
    window, session = opened, opened.session
    tensors = window.commands.tensors
    session.select(("blk.0.attn_q.weight",))
    tensors.open_picker()
    picker = tensors.assigner.picker
    picker.form.field("effort").setCurrentText("exact")
    qtbot.keyClick(picker.edit, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: session.recipe.rules[0].strategy is not None, timeout=5_000)
    chosen = session.recipe.rules[0].strategy
    assert chosen.method == "nearest"
    assert chosen.params == (("effort", "exact"),)


def test_options_of_a_plan() -> None:
    recipe = load("Q4_K_M")
    assert not walks_along(recipe)
    assert plan_options(None, recipe)["statistics"]
    from app.calibration import NOTHING, CalibrationData

    assert plan_options(NOTHING, recipe) == {}
    with pytest.raises(CalibrationError, match="no such text"):
        plan_options(CalibrationData(SMALL, error="no such text"), recipe)
