"""The way in. No arguments, or a checkpoint alone: the window. A sub-command: the same engine without a window."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the process."""
    from core import cli

    args = list(sys.argv[1:] if argv is None else argv)
    if not _opens_window(args):
        return cli.main(args)
    try:
        from app.main import main as window
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("app", "core"):
            raise
        print(
            f"quantbench: the window needs {error.name}; pip install quantbench, or use a sub-command", file=sys.stderr
        )
        return 1
    return window(args)


def _opens_window(args: list[str]) -> bool:
    from core.cli import COMMANDS

    if not args:
        return True
    return len(args) == 1 and args[0] not in COMMANDS and os.path.exists(args[0])


if __name__ == "__main__":
    sys.exit(main())
