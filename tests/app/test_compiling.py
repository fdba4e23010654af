"""The window says that a kernel is being compiled, and only while it is."""

from __future__ import annotations

import threading

import pytest

from app import compiling
from app.compiling import CompilingNotice
from app.frame.notices import NoticeBar
from app.session import Notice
from app.theme import Theme
from core.formats.fitting import compiled


@pytest.fixture
def bar(qtbot, qapp, monkeypatch: pytest.MonkeyPatch) -> NoticeBar:
    monkeypatch.setattr(compiling, "PATIENCE_MS", 0)
    made = NoticeBar(Theme(qapp), {}, None)
    qtbot.addWidget(made)
    made.compiling = CompilingNotice(made)
    return made


def tell(name: str, begins: bool) -> None:
    """As a worker's thread does."""

    def all_of_them() -> None:
        for observer in tuple(compiled._observers):
            observer(name, begins)

    thread = threading.Thread(target=all_of_them)
    thread.start()
    thread.join()


def test_a_note_while_compiling(qtbot, bar: NoticeBar) -> None:
    tell("q4_k", True)
    qtbot.waitUntil(lambda: bar.notice is not None)
    assert bar.notice.text == "Compiling the search for q4_k: some seconds, once on this machine"
    tell("q6_k", True)
    qtbot.waitUntil(lambda: "q4_k, q6_k" in bar.notice.text)
    tell("count_into", True)
    qtbot.waitUntil(lambda: "what counts weights and the search for q4_k, q6_k:" in bar.notice.text)
    tell("count_into", False)
    tell("q4_k", False)
    tell("q6_k", False)
    qtbot.waitUntil(lambda: bar.notice is None)


def test_other_notices_are_left_alone(qtbot, bar: NoticeBar) -> None:
    error = Notice("error", "model.safetensors: truncated")
    bar.show_notice(error)
    tell("q4_k", True)
    qtbot.wait(30)
    assert bar.notice is error
    tell("q4_k", False)
    qtbot.wait(30)
    assert bar.notice is error


def test_a_quick_kernel_says_nothing(qtbot, bar: NoticeBar) -> None:
    bar.compiling._patience.setInterval(10_000)
    tell("q4_k", True)
    tell("q4_k", False)
    qtbot.wait(30)
    assert bar.notice is None


def test_nobody_is_told_after_the_window_is_gone(qtbot, qapp) -> None:
    before = len(compiled._observers)
    bar = NoticeBar(Theme(qapp), {}, None)
    bar.compiling = CompilingNotice(bar)
    assert len(compiled._observers) == before + 1
    bar.deleteLater()
    qtbot.waitUntil(lambda: len(compiled._observers) == before)
