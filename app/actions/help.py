"""The Help menu. What explains."""

from __future__ import annotations

from app.actions.record import Action

HELP = (
    Action(
        "tour",
        "First steps",
        "Help",
        lambda c: c.show_tour(),
        "F1",
        "compass",
        "Four sentences on how to get from a model to a small one",
    ),
    Action("about", "About Quantbench", "Help", lambda c: c.about()),
)
