"""When previews of errors begin, and what they find before a run does."""

from __future__ import annotations

import shutil

from safetensors.torch import load_file, save_file

from app.edits import AssignStrategy
from app.previews import KEY, SETTLE_MS
from core.recipes.model import Strategy


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


def test_weights_that_would_stop_a_run_are_a_finding(window, qtbot, settled, dialogs, demo, tmp_path) -> None:
    """Preflight reads no weights. Once a preview met NaN, the window says so before the run that would stop there, and
    no longer once the tensor is kept as it is."""
    folder = tmp_path / "odd"
    shutil.copytree(demo, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][300, 7] = float("nan")
    save_file(weights, file, {"format": "pt"})
    window.commands.open_path(folder)
    settled()
    session = window.session
    output = "blk.1.ffn_up.weight"
    qtbot.waitUntil(lambda: session.error(output) is not None, timeout=60_000)
    assert [(p.severity, p.tensor) for p in session.found] == [("error", output)]
    assert "row 300 holds NaN" in str(session.found[0])
    assert session.found[0] in session.problems
    assert window.toolbar.preflight.text() == "1 error"
    window.actions_by_id["quantize"].trigger()
    assert dialogs.asked == []
    assert "row 300" in window.notices.notice.text
    session.apply(AssignStrategy((output,), Strategy("keep")))
    settled()
    assert session.found == ()
    assert "OK" in window.toolbar.preflight.text()
    session.undo()
    settled()
    assert [p.tensor for p in session.found] == [output], "what is known is said at once"
    session.close()
    assert session.problems == ()
