"""What a panel is to the window: a record that says where it goes and how it is made. Panels themselves live in folders
beside this file (`state.py` without Qt, `view.py`), know the session and the job service, and never each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PySide6.QtWidgets import QWidget

    from app.job_service import JobService
    from app.session import Session

Area = Literal["main", "inspector", "bottom"]


@dataclass(frozen=True, slots=True)
class PanelRecord:
    """One panel. area: "main" (left), "inspector" (tabs on the right), "bottom" (tabs below); icon: a name for
    Theme.icon; factory(session, jobs) imports the panel's module, so that the list itself stays cheap."""

    id: str
    title: str
    area: Area
    icon: str
    help: str
    factory: Callable[[Session, JobService], QWidget]
