"""Scenes of the panels that look into tensors and files."""

from __future__ import annotations

from PySide6.QtCore import Qt

from app.pictures.oddities import HUMPS, NAN, SPIKE
from app.pictures.stage import DOWN, VALUE, Stage, counted, exact, written


def histogram(stage: Stage, name: str) -> bool:
    """The grid of int4 in groups, on a logarithmic axis."""
    if not (stage.open(stage.demo, "W4A16", "compressed-tensors") and stage.select(VALUE)):
        return False
    panel = stage.show_panel("histogram")
    ready = stage.wait(lambda: exact(panel)) and stage.seen()
    panel.log.setChecked(True)
    ready = stage.take(name, settled=lambda: exact(panel)) and ready
    panel.log.setChecked(False)
    return ready


def overlay(stage: Stage, name: str) -> bool:
    """Several selected tensors over one another."""
    if not (stage.open(stage.demo) and stage.select(VALUE)):
        return False
    outline = stage.session.outline
    assert outline is not None
    wanted = [t.name for t in outline.tensors if t.name.endswith(("attn_v.weight", "blk.0.ffn_down.weight"))]
    stage.session.select(tuple(wanted[:4]))
    panel = stage.show_panel("histogram")

    def ready() -> bool:
        return exact(panel) and len(panel.state.laid_over) == len(wanted[:4]) - 1

    return stage.wait(ready) and stage.take(name, settled=ready)


def humps(stage: Stage, name: str) -> bool:
    """A tensor with two humps."""
    return _odd_histogram(stage, name, HUMPS)


def notanumber(stage: Stage, name: str) -> bool:
    """A tensor with a NaN."""
    if not (stage.open(stage.odd) and stage.select(NAN)):
        return False
    panel = stage.show_panel("outliers")
    return stage.seen() and stage.take(name, settled=lambda: counted(panel))


def outliers(stage: Stage, name: str) -> bool:
    """A spike, a dead column and three loud channels."""
    if not (stage.open(stage.odd) and stage.select(SPIKE)):
        return False
    panel = stage.show_panel("outliers")
    return stage.seen() and stage.take(name, settled=lambda: counted(panel))


def errormap(stage: Stage, name: str) -> bool:
    """Every tensor measured, one role selected."""
    if not stage.open(stage.demo):
        return False
    panel = stage.show_panel("errormap")
    ready = stage.wait(lambda: panel.state.ready and panel.state.complete)
    layout = panel.state.layout
    if ready and layout is not None:
        line = layout.lines.index("down")
        stage.session.select(panel.state.in_cells((line, c) for c in range(1, len(layout.columns))))
        panel.canvas.hovered.emit(line, 1)
    return stage.take(name) and ready


def bench(stage: Stage, name: str) -> bool:
    """A tensor of the demo under what GGUF carries."""
    if not (stage.open(stage.demo) and stage.select(DOWN)):
        return False
    panel = stage.show_panel("bench")

    def done() -> bool:
        state = panel.state
        return state.request is not None and not panel.busy and all(r.final for r in state.listed())

    return stage.wait(done) and stage.take(name, settled=done)


def info(stage: Stage, name: str) -> bool:
    """What is known of one tensor."""
    if not (stage.open(stage.demo) and stage.select(DOWN)):
        return False
    stage.show_panel("info")
    return stage.seen() and stage.take(name)


def compare(stage: Stage, name: str) -> bool:
    """The demo as Q4_K_M and as Q8_0, each against what they were made from."""
    made = [stage.folder / f"demo-{preset}.gguf" for preset in ("Q8_0", "Q4_K_M")]
    for preset, out in zip(("Q8_0", "Q4_K_M"), made, strict=True):
        if not out.exists() and not written(stage, out, preset):
            return False
    stage.window.notices.dismiss()
    panel = stage.show_panel("compare")
    panel.choose("a", str(made[0]))
    panel.choose("source", str(stage.demo))
    panel.compare_with(str(made[1]))
    ready = stage.wait(lambda: panel.state.result is not None)
    panel.table.horizontalHeader().setSortIndicator(panel.model.section_of("source_b"), Qt.SortOrder.AscendingOrder)
    return stage.take(name) and ready


def _odd_histogram(stage: Stage, name: str, tensor: str) -> bool:
    if not (stage.open(stage.odd) and stage.select(tensor)):
        return False
    panel = stage.show_panel("histogram")
    return stage.seen() and stage.take(name, settled=lambda: exact(panel))
