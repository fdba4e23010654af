"""When previews of errors begin."""

from __future__ import annotations

from app.previews import KEY, SETTLE_MS


def test_they_wait_for_the_table(opened, qtbot, monkeypatch) -> None:
    waiting, asked = [True], []
    monkeypatch.setattr(opened.previews, "_waits", lambda: waiting[0])
    opened.jobs.queued.connect(lambda info: asked.append(info.key))
    opened.previews.look()
    qtbot.wait(4 * SETTLE_MS)
    assert KEY not in asked
    assert opened.previews.busy
    waiting[0] = False
    qtbot.waitUntil(lambda: KEY in asked, timeout=5000)
