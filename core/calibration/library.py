"""The library that runs models: asked for where it is needed, and kept from talking to our user."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from core.calibration.purpose import CALIBRATION, Purpose
from core.errors import MissingExtra

# transformers' models import every quantizing library that is installed. We run nothing with torchao; what it says of
# its kernels for other machines while it is imported, and torch of its enumerations, is no news to our user.
_IMPORTED = ("torchao", "torch.utils._pytree")


def require_transformers(purpose: Purpose = CALIBRATION) -> Any:
    """The library that runs models. Raises MissingExtra."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra(
            f"{purpose.word} needs the package transformers", f'pip install "quantbench[{purpose.extra}]"'
        ) from error
    return transformers


@contextmanager
def hushed() -> Iterator[None]:
    """transformers, and what it imports, report errors only meanwhile."""
    words = require_transformers().logging
    before = words.get_verbosity()
    loggers = [logging.getLogger(name) for name in _IMPORTED]
    levels = [logger.level for logger in loggers]
    words.set_verbosity_error()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        words.set_verbosity(before)


@contextmanager
def quiet() -> Iterator[None]:
    """As `hushed`, and nothing needs gradients."""
    import torch

    with hushed(), torch.no_grad():
        yield
