"""The experiments panel: filter, sort, front and CSV without Qt; then the real window, from a job to a row."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication

from app.evaluating import Judged
from app.job_service import JobService
from app.panels.experiments.state import COLUMNS, ICONS, ExperimentsState, tooltip
from app.panels.experiments.view import ExperimentsPanel
from app.session import Session
from app.theme import icon_names
from core.evaluation.experiments import Experiment, Log
from core.evaluation.text import WindowSettings

MIB = 2**20


def row(recipe: str, mib: float | None, kld: float | None, number: int = 0, **more) -> Experiment:
    size = None if mib is None else int(mib * MIB)
    given = {"kind": "evaluation", "model": "models/demo", "time": 1e9 + number, "id": number} | more
    return Experiment(recipe=recipe, bytes=size, kld=kld, **given)


ROWS = (
    row("q8_0", 4.0, 0.001, 1),
    row("q4_k", 2.0, 0.01, 2),
    row("q4_0", 2.1, 0.02, 3),
    row("q2_k", 1.0, 0.1, 4),
    row("", None, None, 5, kind="generation", tokens_per_second=300.0),
)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setenv("QUANTBENCH_EXPERIMENTS", str(tmp_path / "log.db"))
    return Log()


def state(rows=ROWS) -> ExperimentsState:
    made = ExperimentsState()
    made.take(rows)
    return made


def test_icons_are_there():
    assert set(ICONS.values()) <= set(icon_names())
    assert len(set(ICONS.values())) == 3


def test_rows_are_filtered_and_sorted_and_what_is_unknown_is_last():
    made = state()
    titles = [c.title for c in COLUMNS]
    made.sort(titles.index("KLD"), False)
    assert [r.recipe for r in made.shown] == ["q8_0", "q4_k", "q4_0", "q2_k", ""]
    made.sort(titles.index("KLD"), True)
    assert [r.recipe for r in made.shown] == ["q2_k", "q4_0", "q4_k", "q8_0", ""]
    made.filter("Q4 demo", "")
    assert [r.recipe for r in made.shown] == ["q4_0", "q4_k"]
    made.filter("", "generation")
    assert [r.id for r in made.shown] == [5]
    for column in range(len(COLUMNS)):
        made.filter("", "")
        made.sort(column, False)
        assert sorted(r.id for r in made.shown) == [1, 2, 3, 4, 5]


def test_the_front_is_what_nothing_beats():
    made = state()
    assert [(p.row.recipe, p.front) for p in made.points] == [
        ("q2_k", True),
        ("q4_k", True),
        ("q4_0", False),
        ("q8_0", True),
    ]
    assert made.finding == "3 of 4 are the best for their size"
    other = state((*ROWS, row("q4_0", 3.0, 0.5, 6, model="another", text="b")))
    assert "2 models together" in other.finding
    assert "2 different texts" in state((*ROWS, row("q4_0", 3.0, 0.5, 6, text="b"))).finding
    assert state(()).finding == ""
    assert state(ROWS[:1]).finding == "q8_0: KLD 0.00100 at 4.0 MiB"


def test_csv_has_every_field_of_the_rows_shown():
    made = state()
    made.filter("q4", "")
    found = list(csv.DictReader(io.StringIO(made.csv())))
    assert {r["recipe"] for r in found} == {"q4_k", "q4_0"}
    assert found[0]["model"] == "models/demo"
    assert "models/demo" in tooltip(ROWS[0])


@pytest.fixture
def panel(qtbot, log: Log):
    session = Session()
    jobs = JobService(session, inline=True)
    made = ExperimentsPanel(session, jobs)
    qtbot.addWidget(made)
    made.session, made.jobs = session, jobs
    return made


def test_an_empty_log_says_what_will_come(panel, qtbot, log: Log):
    qtbot.waitUntil(lambda: panel._reading is None)
    assert panel._stack.currentWidget() is panel.empty
    assert "leaves a row here" in panel.empty.text()
    log.path.write_bytes(b"nonsense" * 300)
    panel.refresh()
    qtbot.waitUntil(lambda: "damaged" in panel.empty.text())


def test_rows_appear_are_chosen_copied_and_exported(panel, qtbot, log: Log, tmp_path: Path):
    for each in ROWS:
        assert log.add(each) == ""
    panel.refresh()
    qtbot.waitUntil(lambda: panel.model.rowCount() == 5)
    panel.resize(1100, 260)
    panel.show()
    assert panel._stack.currentWidget() is panel.split
    assert "3 of 4" in panel.title.text()
    what = [c.title for c in COLUMNS].index("what")
    assert panel.model.index(0, what).data() == "as it is"
    assert panel.model.index(1, what).data() == "q2_k"
    assert panel.model.index(1, what).data(Qt.ItemDataRole.AccessibleTextRole) == "evaluation: q2_k"
    panel._pick(panel.state.shown[1].id)
    assert [r.recipe for r in panel.chosen()] == ["q2_k"]
    panel.table.sortByColumn([c.title for c in COLUMNS].index("size, MiB"), Qt.SortOrder.AscendingOrder)
    assert panel.model.index(0, what).data() == "q2_k"
    assert [r.recipe for r in panel.chosen()] == ["q2_k"]
    panel.copy()
    assert QGuiApplication.clipboard().text().count("\n") == 2
    panel.ask_path = lambda name, kinds: str(tmp_path / "out")
    panel.export()
    assert (tmp_path / "out.csv").read_text().count("\n") == 6
    seen = []
    panel.open_url = lambda url: seen.append(url.toLocalFile())
    panel.reveal()
    assert seen == []  # the model is gone
    panel.filter.words.setText("q4")
    assert panel.model.rowCount() == 2
    assert len(panel.plot._state.points) == 2
    panel.filter.words.setText("nothing like it")
    assert panel.model.rowCount() == 0
    assert panel.title.text().startswith("Evaluations appear here")
    panel.close()


def test_the_model_keeps_qts_rules(panel, qtbot, log: Log, qtmodeltester):
    for each in ROWS:
        log.add(each)
    panel.refresh()
    qtbot.waitUntil(lambda: panel.model.rowCount() == 5)
    qtmodeltester.check(panel.model, force_py=True)


def test_a_recipe_and_its_file_are_judged_in_the_window(window, qtbot, settled, demo: Path, log: Log, tmp_path: Path):
    window.commands.open_path(demo)
    qtbot.waitUntil(lambda: window.session.checkpoint is not None, timeout=20_000)
    settled()
    panel = window.panel("experiments")
    text = tmp_path / "text.py"
    text.write_text("import os\n\n\ndef size(path):\n    return os.stat(path).st_size\n" * 20)
    judged: list[Judged] = []
    window.evaluator.finished.connect(judged.append)
    notices = []
    window.session.noticed.connect(notices.append)
    small = WindowSettings(text, 64, windows=2)
    job = window.evaluator.recipe(small)
    assert job is not None
    qtbot.waitUntil(lambda: len(judged) == 1, timeout=120_000)
    out = tmp_path / "x.gguf"
    window.commands.quantize_to(out)
    qtbot.waitUntil(lambda: window.commands.has_result, timeout=60_000)
    assert window.evaluator.file(out, small) is not None
    qtbot.waitUntil(lambda: len(judged) == 2, timeout=60_000)
    assert judged[0].row.kld == judged[1].row.kld
    assert 0 < judged[0].row.kld < 0.1
    done = [n for n in notices if n.severity == "done" and "KLD" in n.text]
    assert len(done) == 2
    assert "same top token" in done[0].details
    qtbot.waitUntil(lambda: panel.model.rowCount() == 3, timeout=10_000)
    assert [r.kind for r in sorted(panel.state.rows, key=lambda r: r.time)] == [
        "evaluation",
        "quantization",
        "evaluation",
    ]
    jobs = window.panel("jobs").state
    assert any(r.read.endswith("tokens") for r in jobs)


def test_what_cannot_be_judged_ends_as_a_notice(window, qtbot, settled, demo: Path, log: Log, tmp_path: Path):
    window.commands.open_path(demo)
    qtbot.waitUntil(lambda: window.session.checkpoint is not None, timeout=20_000)
    settled()
    short = tmp_path / "short.txt"
    short.write_text("x")
    notices = []
    window.session.noticed.connect(notices.append)
    window.evaluator.recipe(WindowSettings(short))
    qtbot.waitUntil(lambda: any(n.severity == "error" for n in notices), timeout=60_000)
    assert any("and a window 512" in n.text for n in notices)
    assert log.rows() == ()


def test_the_text_is_chosen_and_remembered(window, dialogs, tmp_path: Path):
    text = tmp_path / "text.txt"
    dialogs.calibration = text
    window.commands.choose_evaluation_text()
    assert window.commands._windows().path == text
    dialogs.calibration = None
    window.commands.choose_evaluation_text()
    assert window.commands._windows().path is None


def test_a_run_that_cannot_be_logged_says_so(window, qtbot, settled, demo: Path, log: Log, tmp_path: Path):
    window.commands.open_path(demo)
    qtbot.waitUntil(lambda: window.session.checkpoint is not None, timeout=20_000)
    settled()
    log.path.write_bytes(b"nonsense" * 300)
    notices = []
    window.session.noticed.connect(notices.append)
    window.commands.quantize_to(tmp_path / "x.gguf")
    qtbot.waitUntil(lambda: window.commands.has_result, timeout=60_000)
    assert (tmp_path / "x.gguf").exists()
    assert any("logged beside the log" in n.details for n in notices)
