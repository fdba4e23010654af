"""What the session knows of output tensors, for the states of several panels. No Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.session import Session
    from core.targets.base import OutputTensor


def output_tensor(session: Session, name: str) -> OutputTensor | None:
    """A tensor of the plan, or of the outline before there is one."""
    planned = session.tensor(name)
    if planned is not None:
        return planned.tensor
    tensors = session.outline.tensors if session.outline is not None else ()
    return next((t for t in tensors if t.name == name), None)
