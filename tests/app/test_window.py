"""The whole window on the demo checkpoint, driven as a user would: open, look, assign, undo, preflight, run, reopen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtWidgets import QLabel
from safetensors.torch import save_file

from app.frame.problems import grouped
from app.jobs import Done
from core.recipes.model import Strategy


def test_the_empty_window_says_what_to_do(window) -> None:
    assert window.pages.currentWidget() is window.empty
    texts = [label.text() for label in window.empty.findChildren(QLabel)]
    assert any("Ctrl+O" in text for text in texts)
    assert window.windowTitle() == "Quantbench"
    for record in window.made_panels():
        assert record is not None


def test_from_open_to_reopen(window, qtbot, dialogs, demo: Path, settled, tmp_path: Path) -> None:
    session, actions = window.session, window.actions_by_id
    dialogs.folder = demo
    actions["open-folder"].trigger()
    settled()
    assert window.pages.currentWidget() is window.rows
    assert window.windowTitle() == "demo · Quantbench"
    assert window.settings.get("files/recent") == (str(demo),)
    first = session.plan.nbytes
    assert "→" in window.toolbar.size_label.text()
    assert window.toolbar.size_label.text().endswith("fits")

    panel = window.commands.tensors
    panel.bar.edit.setText("attn_v")
    assert panel.model.shown == session.outline.layers
    panel.table.selectAll()
    panel.assign(Strategy("q8_0"))
    settled()
    larger = session.plan.nbytes
    assert larger > first
    actions["undo"].trigger()
    settled()
    assert session.plan.nbytes == first
    assert actions["redo"].text().startswith("Redo: assign q8_0 to")
    actions["redo"].trigger()
    settled()
    assert session.plan.nbytes == larger
    panel.bar.clear()

    assert not [p for p in session.problems if p.severity == "error"]
    out = tmp_path / "demo.gguf"
    dialogs.output = out
    seen = []
    window.jobs.partial.connect(lambda job, value: seen.extend(value if isinstance(value, tuple) else (value,)))
    with qtbot.waitSignal(window.quantizer.finished, timeout=60_000) as done:
        actions["quantize"].trigger()
    window.jobs.partial.disconnect()
    report = done.args[0]
    assert out.stat().st_size == larger == report.nbytes
    assert {t.name for t in report.tensors} <= {getattr(v, "name", "") for v in seen}
    assert "demo.gguf: " in window.notices.text.text()
    assert "SQNR mean" in window.notices.text.text()
    name = next(t.tensor.name for t in session.plan.tensors if str(t.strategy) == "q8_0")
    error = session.error(name)
    assert error.written
    assert 35 < error.sqnr_db < 60
    qtbot.waitUntil(lambda: not panel.busy)
    assert panel.model.text(panel.model.lines_of([name])[0], "sqnr") == f"{error.sqnr_db:.1f}"

    actions["open-result"].trigger()
    qtbot.waitUntil(lambda: session.checkpoint is not None and session.checkpoint.path == out, timeout=10_000)
    settled()
    assert session.checkpoint.kind == "gguf"
    assert session.checkpoint.tensors[name].dtype == "Q8_0"
    assert not session.undo_label


def test_previews_fill_in_errors_before_the_run(opened, qtbot) -> None:
    session = opened.session
    quantized = [t for t in session.plan.tensors if t.quantized and not t.copy]
    qtbot.waitUntil(lambda: all(session.error(t.tensor.name) for t in quantized), timeout=30_000)
    errors = [session.error(t.tensor.name) for t in quantized]
    assert not any(e.written for e in errors)
    assert all(10 < e.sqnr_db < 60 for e in errors)


def test_a_preset_and_a_target_change_the_plan(opened, settled) -> None:
    session = opened.session
    gguf = session.plan.nbytes
    opened.toolbar.preset.chosen.emit("Q8_0")
    settled()
    assert session.plan.nbytes > gguf
    assert opened.toolbar.preset.text() == "Q8_0"
    opened.toolbar.preset.chosen.emit("bf16")
    opened.toolbar.target.chosen.emit("dense")
    settled()
    assert session.plan.target.name == "dense"
    assert opened.settings.get("work/target") == "dense"


def test_what_the_target_cannot_carry_is_said_before_anything_is_written(opened, settled, dialogs) -> None:
    opened.toolbar.target.chosen.emit("compressed-tensors")
    settled()
    opened.toolbar.preset.chosen.emit("q4_k")
    settled()
    assert [p for p in opened.session.problems if p.severity == "error"]
    assert "error" in opened.toolbar.preflight.text()
    opened.actions_by_id["quantize"].trigger()
    assert dialogs.asked == []
    assert opened.notices.notice.severity == "error"
    popover = opened.show_problems()
    assert popover.list.count() == len(grouped(opened.session.problems)) < len(opened.session.problems)
    popover.close()


def test_why_there_is_no_plan_goes_when_there_is_one(window, settled, tmp_path: Path) -> None:
    save_file({"w": torch.randn(64, 256)}, tmp_path / "w.safetensors")
    window.commands.open_path(tmp_path / "w.safetensors")
    settled()
    assert window.notices.isVisible()
    assert "GGUF needs that" in window.notices.text.text()
    window.commands.set_target("dense")
    settled()
    assert window.session.plan is not None
    assert not window.notices.isVisible()


def test_an_output_on_top_of_the_input_fails_inline(opened, demo: Path, qtbot) -> None:
    with qtbot.waitSignal(opened.jobs.finished, timeout=20_000):
        opened.commands.quantize_to(demo / "model.safetensors")
    qtbot.waitUntil(lambda: opened.notices.notice is not None and opened.notices.notice.severity == "error")
    assert "input" in opened.notices.text.text()


def test_a_broken_file_is_one_line_in_the_bar(window, qtbot, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 40)
    window.commands.open_path(broken)
    qtbot.waitUntil(lambda: window.notices.notice is not None, timeout=10_000)
    assert "broken.gguf" in window.notices.text.text()
    assert "\n" not in window.notices.text.text()
    flags = window.notices.text.textInteractionFlags()
    assert flags & Qt.TextInteractionFlag.TextSelectableByMouse
    assert window.pages.currentWidget() is window.empty
    window.notices.details_button.click()
    assert "Traceback" in window.notices.details.toPlainText()
    assert window.notices.details.isVisible()


def drop(window, *paths: Path) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(p)) for p in paths])
    window.dropEvent(
        QDropEvent(
            QPointF(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        )
    )


def test_dropping_a_folder_a_config_and_a_recipe(window, demo: Path, settled, tmp_path: Path) -> None:
    drop(window, demo / "config.json")
    settled()
    assert window.session.checkpoint.path == demo
    recipe = tmp_path / "r.toml"
    recipe.write_text('quantbench = 1\nname = "mine"\n[[rule]]\nstrategy = "q8_0"\n', encoding="utf-8")
    drop(window, recipe)
    settled()
    assert window.session.recipe.name == "mine"
    assert {str(t.strategy) for t in window.session.plan.tensors} == {"q8_0", "keep"}


def test_recipes_are_saved_and_opened(opened, dialogs, settled, tmp_path: Path) -> None:
    session = opened.session
    name = next(t.tensor.name for t in session.plan.tensors if t.tensor.role.kind == "v")
    opened.commands.tensors.table.select_lines(opened.commands.tensors.model.lines_of([name]))
    opened.commands.tensors.assign(Strategy("q8_0"))
    saved = session.recipe
    dialogs.saved_recipe = dialogs.recipe = tmp_path / "mine.toml"
    opened.actions_by_id["save-recipe"].trigger()
    assert not list(tmp_path.glob(".*partial"))
    opened.commands.set_preset("Q8_0")
    opened.actions_by_id["undo"].trigger()
    opened.actions_by_id["undo"].trigger()
    assert session.recipe != saved
    opened.actions_by_id["open-recipe"].trigger()
    settled()
    assert session.recipe == saved
    assert session.tensor(name).strategy == Strategy("q8_0")


def test_cancel_keeps_the_rest_and_resume_finishes_it(opened, gate, qtbot, tmp_path: Path) -> None:
    out = tmp_path / "c.gguf"
    opened.commands.quantize_to(out)
    assert gate.reached.wait(20)
    qtbot.waitUntil(lambda: opened.actions_by_id["cancel"].isEnabled(), timeout=5000)
    opened.actions_by_id["cancel"].trigger()
    gate.open.set()
    qtbot.waitUntil(lambda: opened.commands.stopped.first is not None, timeout=20_000)
    assert not out.exists()
    left = [p for p in tmp_path.iterdir() if "c.gguf" in p.name]
    assert left, "nothing kept to resume"
    assert "was stopped" in opened.notices.text.text()
    with qtbot.waitSignal(opened.quantizer.finished, timeout=60_000) as done:
        opened.actions_by_id["resume-run"].trigger()
    assert "resumed" in done.args[0].notes
    assert [p for p in tmp_path.iterdir() if "c.gguf" in p.name] == [out]


def test_cancel_and_discard_leave_nothing(opened, gate, qtbot, tmp_path: Path) -> None:
    out = tmp_path / "d.gguf"
    opened.commands.quantize_to(out)
    assert gate.reached.wait(20)
    opened.commands.cancel_job()
    gate.open.set()
    qtbot.waitUntil(lambda: opened.commands.stopped.first is not None, timeout=20_000)
    opened.actions_by_id["discard-run"].trigger()
    assert not [p for p in tmp_path.iterdir() if "d.gguf" in p.name]
    assert opened.notices.notice is None


@pytest.mark.parametrize(("answer", "kept"), [("pause", True), ("discard", False)])
def test_closing_beside_a_job_asks_once(opened, gate, dialogs, qtbot, tmp_path: Path, answer, kept: bool) -> None:
    out = tmp_path / "e.gguf"
    opened.commands.quantize_to(out)
    assert gate.reached.wait(20)
    opened.close()
    assert opened.isVisible(), "it stays when asked to stay"
    assert dialogs.asked == ["ask_close"]
    dialogs.close = answer
    opened.close()
    gate.open.set()
    qtbot.waitUntil(lambda: not opened.isVisible(), timeout=20_000)
    assert dialogs.asked == ["ask_close", "ask_close"]
    assert not out.exists()
    assert bool([p for p in tmp_path.iterdir() if "e.gguf" in p.name]) is kept


def test_pause_and_resume_from_the_menu(opened, gate, qtbot, tmp_path: Path) -> None:
    opened.commands.quantize_to(tmp_path / "f.gguf")
    assert gate.reached.wait(20)
    qtbot.waitUntil(lambda: opened.actions_by_id["pause"].isEnabled(), timeout=5000)
    job = opened.jobs.running()[0].id
    with qtbot.waitSignal(opened.jobs.paused, timeout=5000):
        opened.actions_by_id["pause"].trigger()
    assert opened.jobs.is_paused(job)
    gate.open.set()
    with qtbot.waitSignal(opened.quantizer.finished, timeout=30_000):
        opened.actions_by_id["pause"].trigger()
    assert isinstance(opened.jobs.outcome(job), Done)


def test_a_change_is_shown_before_it_is_planned(opened, qtbot) -> None:
    first = opened.session.plan
    opened.toolbar.preset.chosen.emit("Q8_0")
    assert opened.planner.busy
    assert not [job for job in opened.jobs.previews() if job.title == "Plan"]
    opened.toolbar.preset.chosen.emit("Q4_0")
    qtbot.waitUntil(lambda: opened.session.planned and not opened.planner.busy, timeout=20_000)
    assert opened.session.plan is not first
    assert opened.session.plan.recipe.name == "Q4_0"


def test_after_a_run_the_place_is_looked_at_and_the_plan_is_kept(opened, qtbot, tmp_path: Path, monkeypatch) -> None:
    plan, before = opened.session.plan, opened.planner.free_bytes
    assert before is not None
    assert not [p for p in opened.session.problems if p.severity == "error"]
    opened.planner.output_folder = str(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=2000, used=1000, free=1000))
    opened.planner.look_again()
    qtbot.waitUntil(lambda: opened.planner.free_bytes == 1000, timeout=20_000)
    assert [p for p in opened.session.problems if p.severity == "error"]
    monkeypatch.undo()
    asked: list[str] = []
    opened.jobs.queued.connect(lambda info: asked.append(info.title))
    with qtbot.waitSignal(opened.quantizer.finished, timeout=60_000):
        opened.commands.quantize_to(tmp_path / "out.gguf")
    qtbot.waitUntil(lambda: opened.planner.free_bytes != 1000, timeout=20_000)
    assert not [p for p in opened.session.problems if p.severity == "error"]
    assert opened.session.plan is plan
    assert "Check" in asked
    assert "Plan" not in asked


def test_the_place_is_looked_at_once_a_plan_under_way_is_made(opened, qtbot) -> None:
    plan, asked = opened.session.plan, []
    opened.jobs.queued.connect(lambda info: asked.append((info.title, opened.session.plan is plan)))
    opened.toolbar.preset.chosen.emit("Q4_0")
    opened.planner.look_again()
    qtbot.waitUntil(lambda: ("Check", False) in asked, timeout=20_000)
    assert [title for title, _ in asked if title in ("Plan", "Check")] == ["Plan", "Check"]
    assert opened.session.plan.recipe.name == "Q4_0"


def test_the_window_comes_back_as_it_was_left(qtbot, settings, dialogs) -> None:
    from PySide6.QtWidgets import QApplication

    from app.main_window import MainWindow
    from app.theme import Theme

    theme = Theme(QApplication.instance())
    first = MainWindow(theme, settings, dialogs)
    qtbot.addWidget(first)
    first.show()
    first.resize(960, 640)  # the offscreen screen is 800 × 800: larger windows are cut to it
    first.columns.setSizes([500, 459])
    first.show_panel("info")
    first.commands.set_theme("dark")
    sizes = first.columns.sizes()
    first.close()
    second = MainWindow(Theme(QApplication.instance()), settings, dialogs)
    qtbot.addWidget(second)
    second.show()
    assert second.size() == first.size()
    assert second.columns.sizes() == sizes
    assert second.theme.dark
    qtbot.waitUntil(lambda: second.inspector.currentWidget().isAncestorOf(second.panel("info")))
    second.commands.set_theme("system")
    second.close()


def test_closing_and_opening_again_and_again_leaves_nothing(opened, demo: Path, settled) -> None:
    for _ in range(3):
        opened.actions_by_id["close-checkpoint"].trigger()
        assert opened.session.checkpoint is None
        assert opened.pages.currentWidget() is opened.empty
        assert opened.commands.tensors.model.rowCount() == 0
        opened.commands.open_path(demo)
        settled()
    assert opened.commands.tensors.model.shown == len(opened.session.plan.tensors)
