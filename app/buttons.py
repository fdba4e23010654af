"""The flat buttons of panels: an icon, a word beside it or none, and a sentence that says what it does."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtWidgets import QToolButton

from app.labels import beside
from app.theme import Theme


def flat_button(
    theme: Theme,
    icon: str,
    help: str,
    text: str = "",
    handler: Callable[[], object] | None = None,
    *,
    check: bool = False,
) -> QToolButton:
    """check: it stays pressed. handler: a panel's method rather than a lambda, which would keep the panel alive."""
    button = QToolButton()
    button.setProperty("kind", "flat")
    button.setIcon(theme.icon(icon))
    button.setText(text)
    button.setToolTip(help)
    button.setAccessibleName(text or help)
    button.setCheckable(check)
    if text:
        beside(button)
    if handler is not None:
        button.clicked.connect(handler)
    return button
