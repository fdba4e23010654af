"""What an action is. Which there are is in the modules of the menus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.commands import Commands


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a user can do.

    menu      which menu it is in; "" for none (the palette and buttons have it still)
    shortcut  as Qt spells it ("Ctrl+O"); "" for none
    handler   called with the window's commands; enabled too (None: always)
    checked   for switches: whether it is on
    section   True puts a line above it in the menu
    """

    id: str
    text: str
    menu: str
    handler: Callable[[Commands], object]
    shortcut: str = ""
    icon: str = ""
    help: str = ""
    enabled: Callable[[Commands], bool] | None = None
    checked: Callable[[Commands], bool] | None = None
    section: bool = False
