"""Scenes of the window itself: the first start, the table, what opens over it, a file that cannot be opened."""

from __future__ import annotations

from PySide6.QtWidgets import QWidget

from app.pictures.stage import DOWN, EMBEDDING, Stage, exact


def empty(stage: Stage, name: str) -> bool:
    """The first start, with its first steps; and the step that speaks of the toolbar, over the demo."""
    tour = stage.window.tour
    tour.begin()
    ready = stage.take(name)
    ready = stage.open(stage.demo) and ready
    for _ in range(2):
        tour.next.click()
    panel = stage.window.panel("histogram")
    ready = stage.wait(lambda: exact(panel)) and stage.seen() and ready
    stage.quiet()  # kernels that were compiled for the first time
    ready = stage.take("tour", settled=lambda: exact(panel)) and ready
    tour.end()
    stage.session.close()
    return stage.take("empty-recent") and ready


def tensors(stage: Stage, name: str) -> bool:
    """The table, and the levels of a K-quant over the weights of the selected tensor."""
    if not (stage.open(stage.demo) and stage.select(DOWN)):
        return False
    panel = stage.show_panel("histogram")
    ready = stage.seen() and stage.wait(lambda: exact(panel))
    return stage.take(name, settled=lambda: exact(panel)) and ready


def palette(stage: Stage, name: str) -> bool:
    """Every action by its name."""
    return stage.open(stage.demo) and stage.take(name, stage.window.open_palette, lambda: _drawn(stage))


def preflight(stage: Stage, name: str) -> bool:
    """What is known before the first byte is written: a container that cannot carry what was asked for."""
    if not stage.open(stage.demo, "W4A16"):
        return False
    ready = stage.wait(lambda: bool(stage.session.problems) or bool(stage.session.plan_error))
    return stage.take(name, stage.window.show_problems, lambda: _drawn(stage)) and ready


def picker(stage: Stage, name: str) -> bool:
    """A strategy for the selected tensors, with the parameters of its method."""
    if not (stage.open(stage.demo) and stage.select(EMBEDDING)):
        return False
    assigner = stage.window.commands.tensors.assigner

    def opened() -> QWidget | None:
        stage.window.commands.tensors.open_picker()
        found = assigner.picker
        if found is not None:
            found.form.show_choice("gptq", {})
            stage.pause(0.1)
            found.adjustSize()
        return found

    return stage.take(name, opened, lambda: _drawn(stage))


def method(stage: Stage, name: str) -> bool:
    """How codes are chosen for all that the recipe's last rule decides over."""
    return stage.open(stage.demo) and stage.take(name, stage.window.show_method, lambda: _drawn(stage))


def error(stage: Stage, name: str) -> bool:
    """A file that is no checkpoint: what, where, what to try."""
    if not stage.open(stage.demo):
        return False
    broken = stage.folder / "cut-off.safetensors"
    broken.write_bytes((stage.demo / "model.safetensors").read_bytes()[:4096])
    stage.window.commands.open_path(broken)
    ready = stage.wait(lambda: stage.window.notices.notice is not None)
    ready = stage.take(name, settled=lambda: _drawn(stage)) and ready
    stage.window.notices.dismiss()
    return ready


def _drawn(stage: Stage) -> bool:
    """Whether the histogram behind is exact, if it is on show."""
    panel = stage.window.panel("histogram")
    return not panel.isVisible() or exact(panel)
