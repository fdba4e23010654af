"""The record of a preset: a name under which a format is chosen for each tensor of a whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import RecipeError
from core.parameters import PLAIN
from core.recipes.model import KEEP

if TYPE_CHECKING:
    from core.kinds import Shared
    from core.targets.base import Outline


@dataclass(frozen=True, slots=True)
class Choice:
    """What a preset gives one output tensor.

    format    a format's name, or "keep"
    reason    why it is not the preset's default format; "" when it is
    fallback  the shape forced a substitute
    inputs    what clients shall do with the layer's inputs, as the parameter of that name says
    """

    format: str
    reason: str = ""
    fallback: bool = False
    inputs: str = PLAIN


KEPT = Choice(KEEP)

# (outline, whether importance data will be there) → one choice per output tensor, in the outline's order.
Choose = Callable[["Outline", bool], "Shared[Choice]"]


@dataclass(frozen=True)
class Preset:
    """One entry of PRESETS.

    family   "llama.cpp", "compressed-tensors" or "dense": menus group by it
    target   the container it is made for, "" for any
    formats  every format it may choose on shapes that fit
    needs_importance  nobody makes it without importance data
    """

    name: str
    title: str
    help: str
    family: str
    target: str
    formats: tuple[str, ...]
    choose: Choose
    needs_importance: bool = False

    @property
    def unavailable(self) -> str:
        """Why the preset cannot be used yet, or ""."""
        from core.formats import get_format

        missing = []
        for name in self.formats:
            try:
                if not get_format(name).encodable:
                    missing.append(name)
            except RecipeError:
                missing.append(name)
        return f"needs {', '.join(missing)}, which cannot be written yet" if missing else ""

    @property
    def available(self) -> bool:
        return not self.unavailable
