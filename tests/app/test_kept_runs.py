"""Runs that outlive their window: written down while they last, paused when it closes, offered and continued by the
next one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtWidgets import QApplication

from app.calibration import CalibrationChoice
from app.kept_runs import KeptRun, discard_rest, forget, keep, kept_runs
from core.engine.journal import in_use, journal_path
from core.engine.writer import partial_path
from core.recipes import load
from core.recipes.model import Match, Recipe, Rule, Strategy


def left_by_a_run(out: Path) -> None:
    """What a stopped run has beside its output."""
    journal_path(out).write_text("{}\n", encoding="utf-8")
    partial_path(out).write_bytes(b"")


@pytest.fixture
def run(tmp_path: Path) -> KeptRun:
    names = Rule(Match(names=("a.weight", 'b "quoted".weight')), Strategy("q8_0"))
    recipe = Recipe("Q4_K_M", (names, *load("Q4_K_M").rules), "by hand")
    choice = CalibrationChoice("text", tmp_path / "text.txt", samples=3, length=64, seed=7)
    return KeptRun(tmp_path / "o.gguf", tmp_path / "model", recipe, "gguf", "cpu", choice, True, 451)


def test_a_run_comes_back_as_it_was_written(run: KeptRun) -> None:
    left_by_a_run(run.out)
    assert keep(run) == ""
    (found,) = kept_runs()
    assert found.time > 0
    assert replace(found, time=0.0) == run
    assert found.progress == "at 45 %"
    forget(run.out)
    assert kept_runs() == []


def test_the_last_one_comes_first_and_one_output_has_one_run(run: KeptRun, tmp_path: Path) -> None:
    other = replace(run, out=tmp_path / "p.gguf")
    for each in (run, other, run):
        left_by_a_run(each.out)
        keep(each)
    assert [found.out.name for found in kept_runs()] == ["o.gguf", "p.gguf"]


def test_what_has_nothing_left_is_forgotten_and_what_never_began_is_not(run: KeptRun, runs_folder: Path) -> None:
    keep(replace(run, permille=-1))
    assert kept_runs() == []
    assert not list(runs_folder.iterdir())
    keep(replace(run, permille=0))
    assert [found.permille for found in kept_runs()] == [0]


def test_an_unwanted_rest_is_removed_at_the_next_start(run: KeptRun, runs_folder: Path) -> None:
    left_by_a_run(run.out)
    keep(replace(run, discard=True))
    assert kept_runs() == []
    assert not journal_path(run.out).exists()
    assert not partial_path(run.out).exists()
    assert not list(runs_folder.iterdir())


def test_a_run_whose_disk_is_away_is_not_offered_and_not_forgotten(run: KeptRun, tmp_path: Path) -> None:
    keep(replace(run, out=tmp_path / "gone" / "o.gguf", permille=0))
    assert kept_runs() == []
    (tmp_path / "gone").mkdir()
    assert len(kept_runs()) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"quantbench": 99}', '{"quantbench": 1, "out": 3}'])
def test_what_cannot_be_read_is_left_alone(runs_folder: Path, content: str) -> None:
    runs_folder.mkdir()
    (runs_folder / "x.json").write_text(content, encoding="utf-8")
    assert kept_runs() == []
    assert (runs_folder / "x.json").exists()


def test_a_place_that_cannot_be_written_is_said(run: KeptRun, runs_folder: Path) -> None:
    runs_folder.write_text("a file, not a folder", encoding="utf-8")
    assert keep(run)
    forget(run.out)
    discard_rest(run.out)
    assert kept_runs() == []


class Starter:
    """Windows one after the other, with the same settings, as a user starts the program again and again."""

    def __init__(self, qtbot, settings, dialogs) -> None:
        self._qtbot, self._settings, self._dialogs = qtbot, settings, dialogs

    def __call__(self):
        from app.main_window import MainWindow
        from app.theme import Theme

        app = QApplication.instance()
        assert isinstance(app, QApplication)
        made = MainWindow(Theme(app), self._settings, self._dialogs)
        self._qtbot.addWidget(made)
        made.show()
        return made

    def end(self, window) -> None:
        self._dialogs.close = "discard"
        window.close()
        self._qtbot.waitUntil(lambda: not window.isVisible(), timeout=20_000)


@pytest.fixture
def start(qtbot, settings, dialogs) -> Starter:
    return Starter(qtbot, settings, dialogs)


def test_paused_at_closing_and_resumed_by_the_next_window(
    opened, settled, gate, dialogs, qtbot, start, tmp_path: Path, runs_folder: Path
) -> None:
    session, out = opened.session, tmp_path / "g.gguf"
    opened.commands.set_preset("Q8_0")
    settled()
    name = next(t.tensor.name for t in session.plan.tensors if t.tensor.role.kind == "v")
    opened.commands.tensors.assigner.assign((name,), Strategy("q4_0"))
    settled()
    recipe, nbytes = session.recipe, session.plan.nbytes
    opened.commands.quantize_to(out)
    assert gate.reached.wait(60)
    assert in_use(journal_path(out))
    assert len(list(runs_folder.glob("*.json"))) == 1, "a crash now would leave it"
    assert kept_runs() == [], "it is being done"
    dialogs.close = "pause"
    opened.close()
    gate.open.set()
    qtbot.waitUntil(lambda: not opened.isVisible(), timeout=20_000)
    assert dialogs.close_lists == (("Quantize g.gguf",), ())
    assert not out.exists()
    assert not in_use(journal_path(out))

    second = start()
    assert second.commands.stopped.first is None
    second.quantizer.look_for_kept()
    qtbot.waitUntil(lambda: second.commands.stopped.first is not None, timeout=10_000)
    kept = second.commands.stopped.first
    assert (kept.out, kept.recipe, kept.target) == (out, recipe, "gguf")
    assert 0 < kept.permille < 1000
    assert second.notices.notice.actions == ("resume-run", "discard-run")
    assert second.notices.text.text() == f"g.gguf stopped {kept.progress} and can go on"
    with qtbot.waitSignal(second.quantizer.finished, timeout=60_000) as done:
        second.actions_by_id["resume-run"].trigger()
    report = done.args[0]
    assert "resumed" in report.notes
    assert out.stat().st_size == nbytes == report.nbytes
    assert [p.name for p in tmp_path.iterdir() if "g.gguf" in p.name] == ["g.gguf"]
    assert not list(runs_folder.iterdir())
    # The window shows what it is about, with the errors that were measured.
    assert second.session.checkpoint.path == kept.checkpoint
    qtbot.waitUntil(lambda: second.session.planned and not second.planner.busy, timeout=20_000)
    assert second.session.recipe == recipe
    assert second.session.error(name).written
    assert second.session.report is report

    # Byte for byte what a run gives that nobody stopped.
    other = tmp_path / "h.gguf"
    with qtbot.waitSignal(second.quantizer.finished, timeout=60_000):
        second.commands.quantize_to(other)
    assert other.read_bytes() == out.read_bytes()
    start.end(second)


def test_a_kept_run_is_discarded_by_the_next_window(
    opened, settled, gate, dialogs, qtbot, start, tmp_path: Path, runs_folder: Path
) -> None:
    out = tmp_path / "i.gguf"
    opened.commands.set_preset("Q8_0")
    settled()
    opened.commands.quantize_to(out)
    assert gate.reached.wait(60)
    dialogs.close = "pause"
    opened.close()
    gate.open.set()
    qtbot.waitUntil(lambda: not opened.isVisible(), timeout=20_000)
    second = start()
    second.quantizer.look_for_kept()
    qtbot.waitUntil(lambda: second.commands.stopped.first is not None, timeout=10_000)
    second.actions_by_id["discard-run"].trigger()
    assert second.commands.stopped.first is None
    assert not [p for p in tmp_path.iterdir() if "i.gguf" in p.name]
    assert not list(runs_folder.iterdir())
    start.end(second)


def test_a_run_that_waits_for_its_turn_is_paused_too(
    opened, settled, gate, dialogs, qtbot, start, tmp_path: Path, runs_folder: Path
) -> None:
    opened.commands.set_preset("Q8_0")
    settled()
    opened.commands.quantize_to(tmp_path / "first.gguf")
    assert gate.reached.wait(60)
    opened.commands.quantize_to(tmp_path / "second.gguf")
    dialogs.close = "pause"
    opened.close()
    gate.open.set()
    qtbot.waitUntil(lambda: not opened.isVisible(), timeout=20_000)
    assert dialogs.close_lists[0] == ("Quantize first.gguf", "Quantize second.gguf")
    second = start()
    second.quantizer.look_for_kept()
    qtbot.waitUntil(lambda: len(second.commands.stopped.runs) == 2, timeout=10_000)
    assert "(1 more like it)" in second.notices.text.text()
    written = []
    second.quantizer.finished.connect(lambda report: written.append(report.out.name))
    second.actions_by_id["resume-run"].trigger()
    assert "1 more" not in second.notices.text.text()
    second.actions_by_id["resume-run"].trigger()
    qtbot.waitUntil(lambda: len(written) == 2, timeout=60_000)
    assert sorted(written) == ["first.gguf", "second.gguf"]
    assert not list(runs_folder.iterdir())
    start.end(second)


def test_a_checkpoint_that_is_gone_is_said_and_the_run_stays(run: KeptRun, qtbot, start) -> None:
    left_by_a_run(run.out)
    keep(run)
    window = start()
    window.quantizer.look_for_kept()
    qtbot.waitUntil(lambda: window.commands.stopped.first is not None, timeout=10_000)
    window.actions_by_id["resume-run"].trigger()
    qtbot.waitUntil(lambda: window.notices.notice is not None, timeout=10_000)
    assert window.notices.notice.severity == "error"
    assert "model" in window.notices.text.text()
    assert window.notices.notice.actions == ("resume-run", "discard-run")
    assert window.commands.stopped.first == kept_runs()[0]
    start.end(window)


def test_what_cannot_be_paused_is_named_apart(window, dialogs, qtbot) -> None:
    from threading import Event

    release = Event()

    def task(request, ctx) -> None:
        release.wait(20)
        ctx.check()

    window.jobs.submit(task, None, title="Evaluate q.gguf", unit="tokens")
    window.close()
    assert window.isVisible()
    assert dialogs.close_lists == ((), ("Evaluate q.gguf",))
    release.set()
    qtbot.waitUntil(lambda: window.jobs.settled, timeout=10_000)
